//! The keeper of a template of mode 'snapshot': it has the snapshot taken, and is then only asked how it is. Clones do not
//! need it.
//!
//! ```text
//! Loading ── a child takes the snapshot ──> Ready ── a newer keeper has taken one ──> Ended
//!    └──── it could not, or is told to stop ──┴── told to stop: the snapshot goes ──────┘
//! ```

use std::os::fd::AsFd;

use chrono::{DateTime, Utc};
use nix::sched::CloneFlags;

use super::record::withdraw;
use super::{Recipe, Snapshot, take};
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::metrics::Durations;
use crate::ops::warm::caller::{Callers, Heard};
use crate::ops::warm::home::Home;
use crate::ops::warm::watch::{Source, Watch};
use crate::ops::warm::{leftover, place};
use crate::ops::{Place, save};
use crate::sys::channel::Channel;
use crate::sys::clone::{Birth, Parent, close_all_but, spawn};
use crate::sys::process::{Identity, Process};
use crate::sys::signal::{Blocked, Signal};
use crate::template::definition::Order;
use crate::template::message::{
    Answer, Command, Memory, PROTOCOL, Phase, Reply, Report, Request, Stage, Status, decode, encode,
};

/// The only one that takes.
const TAKER: Source = Source::Worker(0);

/// A template, and what is known of its snapshot.
#[derive(Debug)]
pub(in crate::ops::warm) struct Keeper {
    order: Order,
    container: ContainerId,
    place: Place,
    home: Home,
    watch: Watch,
    signals: Blocked,
    commands: Callers,
    /// Those who take it for a template that forks: they are told that it is none.
    requests: Option<Callers>,
    /// Whoever ordered us, until they were told what came of it.
    birth: Option<Channel>,
    taker: Option<Taker>,
    phase: Phase,
    reason: Option<Error>,
    identity: Identity,
    started: DateTime<Utc>,
    ready: Option<DateTime<Utc>>,
    notes: Vec<String>,
}

/// The process that takes the snapshot.
#[derive(Debug)]
struct Taker {
    process: Process,
    channel: Channel,
}

impl Keeper {
    /// Has the snapshot taken.
    pub(in crate::ops::warm) fn begin(birth: Channel, order: Order) -> Result<Self> {
        let place = place(&order)?;
        place.open_store()?;
        let home = Home::enter(&order)?;
        for container in leftover::find(&order, &place, &home)? {
            save::delete(&place, &container, true, None)?;
        }
        let signals = Blocked::all()?;
        let commands = Callers::new(home.listen_for_commands()?)?;
        let watch = Watch::new()?;
        watch.add(&signals, Source::Signals)?;
        watch.add(&birth, Source::Birth)?;
        if let Some(door) = commands.door() {
            watch.add(door, Source::Commands)?;
        }
        let step = format!("start '{}' and save it", order.container()?);
        birth.send_now(&encode(&Report::Progress { step })?)?;
        let taker = Taker::start(&order, &place, &signals)?;
        watch.add(&taker.channel, TAKER)?;
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        Ok(Self {
            container: order.container()?,
            place,
            home,
            watch,
            signals,
            commands,
            requests: None,
            birth: Some(birth),
            taker: Some(taker),
            phase: Phase::Loading,
            reason: None,
            identity: Identity::of(own)?,
            started: Utc::now(),
            ready: None,
            notes: Vec::new(),
            order,
        })
    }

    /// Until it is told to end.
    pub(in crate::ops::warm) fn keep(mut self) {
        while self.phase != Phase::Ended {
            match self.watch.wait(None) {
                Ok(sources) => sources.into_iter().for_each(|source| self.attend(source)),
                Err(error) => self.end(Some(error)),
            }
        }
        self.leave();
    }

    fn attend(&mut self, source: Source) {
        match source {
            Source::Signals => self.hear_signals(),
            Source::Commands => self.admit(source),
            Source::Requests => self.admit(source),
            Source::Commander(number) => self.hear_commander(number),
            Source::Caller(number) => self.hear_caller(number),
            Source::Birth => self.orphaned(),
            Source::Worker(_) => self.hear_taker(),
            Source::Zygote | Source::Output | Source::Sandbox(_) => {}
        }
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(arrived)) = self.signals.take() {
            if matches!(arrived.signal, Signal::TERM | Signal::INT) {
                self.end(None);
            }
        }
    }

    fn door(&mut self, door: Source) -> Option<(&mut Callers, &Watch)> {
        let callers = if door == Source::Commands { Some(&mut self.commands) } else { self.requests.as_mut() };
        callers.map(|callers| (callers, &self.watch))
    }

    /// Lets in whoever comes, as long as there is room.
    fn admit(&mut self, door: Source) {
        let Some((callers, watch)) = self.door(door) else { return };
        while callers.has_room() {
            match callers.admit() {
                Ok(Some(number)) => {
                    let source =
                        if door == Source::Commands { Source::Commander(number) } else { Source::Caller(number) };
                    let added = callers.get(number).map(|caller| watch.add(&*caller, source));
                    if let Some(Err(error)) = added {
                        tracing::warn!("{error}");
                        callers.dismiss(number);
                    }
                }
                Ok(None) => return,
                Err(error) => return tracing::warn!("{error}"),
            }
        }
        if let Some(socket) = callers.door() {
            let _ = watch.mute(socket, door);
        }
    }

    fn dismiss(&mut self, number: u64, door: Source) {
        let Some((callers, watch)) = self.door(door) else { return };
        if let Some(caller) = callers.get(number) {
            watch.remove(&*caller);
        }
        callers.dismiss(number);
        if let Some(socket) = callers.door() {
            let _ = watch.unmute(socket, door);
        }
    }

    fn hear_commander(&mut self, number: u64) {
        let reply = match self.commands.hear(number) {
            Heard::Message(command, _) => self.obey(number, command),
            Heard::Nonsense(error) => Reply::Failed { error },
            Heard::Nothing => return,
            Heard::End => return self.dismiss(number, Source::Commands),
        };
        if !self.commands.say(number, &reply) {
            self.dismiss(number, Source::Commands);
        }
    }

    fn obey(&mut self, number: u64, command: Command) -> Reply {
        match command {
            Command::Status => Reply::Status(Box::new(self.describe())),
            Command::Watch => {
                if let Some(caller) = self.commands.get(number) {
                    caller.watches = true;
                }
                Reply::Status(Box::new(self.describe()))
            }
            Command::Retire => {
                self.end(None);
                Reply::Done
            }
            Command::Stop => {
                if self.phase == Phase::Ready
                    && let Err(error) = withdraw(self.home.path(), self.order.generation)
                {
                    tracing::warn!("{error}");
                }
                self.end(None);
                Reply::Done
            }
        }
    }

    fn hear_caller(&mut self, number: u64) {
        let Some(requests) = &mut self.requests else { return };
        let reason = || "its mode is 'snapshot': clones of it are made by 'regen clone'".to_owned();
        let answer = match requests.hear(number) {
            Heard::Message(Request::Fit | Request::Enter(_), _) => Answer::Unfit { reason: reason() },
            Heard::Message(Request::Take(_), _) => {
                let operation = format!("clone template '{}'", self.order.definition);
                let error = Error::new(Kind::Unsupported, operation, reason());
                Answer::Failed { error, stage: Stage::Before }
            }
            Heard::Nonsense(error) => Answer::Failed { error, stage: Stage::Before },
            Heard::Nothing => return,
            Heard::End => return self.dismiss(number, Source::Requests),
        };
        if !requests.say(number, &answer) {
            self.dismiss(number, Source::Requests);
        }
    }

    /// Whoever ordered us is gone before there was anything to tell: nobody would know of this keeper.
    fn orphaned(&mut self) {
        if let Some(channel) = self.birth.take() {
            self.watch.remove(&channel);
        }
        if self.phase == Phase::Loading {
            self.end(None);
        }
    }

    fn hear_taker(&mut self) {
        let Some(taker) = self.taker.take() else { return };
        self.watch.remove(&taker.channel);
        let taken = taker.finish();
        if taken.is_err() {
            // Whatever has killed it, if it was killed.
            clear(&self.order, &self.place);
        }
        if let Err(error) = taken.and_then(|()| self.publish()) {
            self.end(Some(error));
        }
    }

    fn publish(&mut self) -> Result<()> {
        let directory = self.home.path().to_owned();
        let snapshot = Snapshot::open(&Snapshot::place(&directory, self.order.generation))?;
        snapshot.publish(&directory)?;
        let requests = Callers::new(self.home.listen_for_requests()?)?;
        if let Some(door) = requests.door() {
            self.watch.add(door, Source::Requests)?;
        }
        self.requests = Some(requests);
        self.notes.push(format!("a snapshot of {}", crate::config::human_bytes(snapshot.size()?)));
        self.ready = Some(snapshot.taken());
        self.enter(Phase::Ready);
        if let Some(channel) = self.birth.take() {
            self.watch.remove(&channel);
            // Whoever ordered it and is gone will find it.
            let _ = channel.send_now(&encode(&Report::Ready(Box::new(self.describe())))?);
        }
        Ok(())
    }

    fn end(&mut self, reason: Option<Error>) {
        if self.phase == Phase::Ended {
            return;
        }
        if let Some(taker) = self.taker.take() {
            taker.kill();
            clear(&self.order, &self.place);
        }
        self.reason = reason;
        self.enter(Phase::Ended);
    }

    /// All who watch hear how it is now.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        let status = Reply::Status(Box::new(self.describe()));
        for watcher in self.commands.watchers() {
            if !self.commands.say(watcher, &status) {
                self.dismiss(watcher, Source::Commands);
            }
        }
    }

    fn leave(mut self) {
        let ended = Reply::Ended { error: self.reason.clone() };
        for watcher in self.commands.watchers() {
            self.commands.say(watcher, &ended);
        }
        if let Some(channel) = self.birth.take() {
            let stopped =
                || Error::new(Kind::State, format!("keep template '{}'", self.order.definition), "it was stopped");
            let error = self.reason.clone().unwrap_or_else(stopped);
            if let Err(error) = encode(&Report::Failed { error }).and_then(|text| channel.send(&text, &[])) {
                tracing::debug!("{error}");
            }
        }
        if let Err(error) = self.home.leave() {
            tracing::warn!("{error}");
        }
    }

    fn describe(&self) -> Status {
        Status {
            protocol: PROTOCOL,
            owner: self.order.definition.owner.clone(),
            name: self.order.definition.name.clone(),
            generation: self.order.generation,
            phase: self.phase,
            keeper: self.identity.clone(),
            container: self.container.clone(),
            process: None,
            language: None,
            started: self.started,
            ready: self.ready,
            sandboxes: 0,
            wanted: 0,
            reason: self.reason.as_ref().map(ToString::to_string),
            clones: 0,
            failed: 0,
            durations: Durations::default(),
            attended: 0,
            waiting: 0,
            memory: Memory::default(),
            notes: self.notes.clone(),
        }
    }
}

impl Taker {
    fn start(order: &Order, place: &Place, signals: &Blocked) -> Result<Self> {
        let mut recipe = Recipe::new(&order.definition, order.container()?, order.cgroup_manager.parse()?);
        recipe.mark = Some(order.mark());
        let directory = Snapshot::place(&order.directory(), order.generation);
        let (ours, theirs) = Channel::pair()?;
        let birth = Birth { namespaces: CloneFlags::empty(), cgroup: None, parent: Parent::Caller };
        let process = spawn(birth, || {
            // The program is to have no signal blocked, and the lock that says that the keeper lives is the keeper's.
            let alone = signals.before().thread_set_mask().is_ok() && close_all_but(3, &[theirs.as_fd()]).is_ok();
            let unprepared = || Error::new(Kind::System, "take a snapshot", "its process could not be prepared");
            let failed = if alone { take(place, &recipe, &directory).err() } else { Some(unprepared()) };
            i32::from(encode(&failed).and_then(|text| theirs.send(&text, &[])).is_err())
        })?;
        Ok(Self { process, channel: ours })
    }

    /// What came of it.
    fn finish(self) -> Result<()> {
        let received = self.channel.receive();
        self.process.reap()?;
        let gone = || Error::new(Kind::State, "take a snapshot", "who took it was killed");
        match decode::<Option<Error>>(&received?.ok_or_else(gone)?.bytes)? {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Ends it, wherever it is.
    fn kill(self) {
        if let Err(error) = self.process.signal(Signal::KILL).and_then(|_| self.process.reap()) {
            tracing::warn!("{error}");
        }
    }
}

/// Takes away what a taker has made so far that did not come to its end.
fn clear(order: &Order, place: &Place) {
    let deleted = order.container().and_then(|id| save::delete_unfinished(place, &id));
    let removed = withdraw(&order.directory(), order.generation);
    for error in [deleted.err(), removed.err()].into_iter().flatten() {
        tracing::warn!("{error}");
    }
}
