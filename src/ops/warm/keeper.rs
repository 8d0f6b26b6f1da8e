//! The keeper at work: one loop, which waits for anything to happen and never for one thing alone.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::caller::{Callers, Heard};
use super::clone::{Persona, Waiting};
use super::crew::{self, Crew, Urgency};
use super::home::Home;
use super::loading::{Loaded, Own};
use super::pool::Weight;
use super::stock::{Leaving, Sandbox};
use super::tail::Tail;
use super::task::Task;
use super::watch::{Source, Watch};
use crate::error::{Error, Result};
use crate::ids::ContainerId;
use crate::metrics::{Bounds, Durations};
use crate::ops::Place;
use crate::sys::channel::Channel;
use crate::sys::process::Identity;
use crate::sys::signal::{Blocked, Signal};
use crate::template::definition::Order;
use crate::template::message::{Answer, Command, Phase, Reply, Report, Request, Stage, encode};
use crate::template::proxy::Held;

/// How long to wait before what has failed is tried again.
const REST: Duration = Duration::from_millis(100);
/// How often those who are connected are looked at, while others wait to be let in or this keeper is to end.
const LOOK: Duration = Duration::from_millis(250);
/// How many messages of one connection are answered before somebody else gets a turn.
const TURNS: usize = 16;

/// A template and all that is held for it.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) order: Order,
    pub(super) place: Place,
    pub(super) home: Home,
    pub(super) watch: Watch,
    pub(super) signals: Blocked,
    pub(super) crew: Crew,
    /// Whoever ordered us, until they were told what came of it.
    pub(super) birth: Option<Channel>,
    pub(super) commands: Callers,
    /// Those who ask for clones, once there can be any.
    pub(super) requests: Option<Callers>,
    pub(super) phase: Phase,
    /// Why it makes no more clones, or never made any.
    pub(super) reason: Option<Error>,
    /// When it has to be loaded.
    pub(super) deadline: Option<Instant>,
    pub(super) tail: Tail,
    /// What the template's container is called.
    pub(super) container: ContainerId,
    /// The template's container.
    pub(super) own: Option<Own>,
    /// The template's program.
    pub(super) held: Option<Held>,
    pub(super) loaded: Option<Loaded>,
    /// Sandboxes that wait, the oldest first.
    pub(super) sandboxes: VecDeque<Sandbox>,
    /// Those that were taken, until their first process has said that it looks after the clone.
    pub(super) leaving: BTreeMap<u64, Leaving>,
    /// Requests that wait for a sandbox, the oldest first.
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) weight: Weight,
    /// The newest number of a sandbox.
    pub(super) number: u64,
    /// How often the program was told to fork.
    pub(super) forks: u64,
    /// How often it has answered: in the order in which it was told, and once.
    pub(super) answers: u64,
    /// Sandboxes in a row that could not be made.
    pub(super) failures: u32,
    /// The last one that somebody was in a foreign container.
    pub(super) foreign: Option<Persona>,
    pub(super) status: Books,
}

/// What is only told.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) identity: Identity,
    pub(super) started: DateTime<Utc>,
    pub(super) ready: Option<DateTime<Utc>>,
    pub(super) clones: u64,
    pub(super) failed: u64,
    /// How long clones took, from the request to the answer.
    pub(super) durations: Durations,
    pub(super) memory: crate::template::message::Memory,
    pub(super) measured: Option<Instant>,
    pub(super) notes: Vec<String>,
}

impl Keeper {
    /// Listens for commands, and has the template's container made.
    pub(super) fn new(order: Order, place: Place, home: Home, birth: Channel, left: Vec<ContainerId>) -> Result<Self> {
        let signals = Blocked::all()?;
        let commands = Callers::new(home.listen_for_commands()?)?;
        let (tail, sink) = Tail::new()?;
        let mut crew = Crew::new(encode(&order)?, order.definition.to_string());
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        crew.push(super::loading::task(&order)?, Urgency::Now);
        for container in left {
            crew.push(Task::Remove { container }, Urgency::Later);
        }
        let watch = Watch::new()?;
        watch.add(&signals, Source::Signals)?;
        if let Some(door) = commands.door() {
            watch.add(door, Source::Commands)?;
        }
        if let Some(source) = tail.source() {
            watch.add(source, Source::Output)?;
        }
        watch.add(&birth, Source::Birth)?;
        let keeper = Self {
            place,
            home,
            watch,
            signals,
            crew,
            birth: Some(birth),
            commands,
            requests: None,
            phase: Phase::Loading,
            reason: None,
            deadline: None,
            tail,
            container: order.container()?,
            own: Some(Own::Planned { sink }),
            held: None,
            loaded: None,
            sandboxes: VecDeque::new(),
            leaving: BTreeMap::new(),
            waiting: VecDeque::new(),
            weight: Weight::default(),
            number: 0,
            forks: 0,
            answers: 0,
            failures: 0,
            foreign: None,
            status: Books {
                identity: Identity::of(own)?,
                started: Utc::now(),
                ready: None,
                clones: 0,
                failed: 0,
                durations: Durations::new(Bounds::Answer),
                memory: crate::template::message::Memory::default(),
                measured: None,
                notes: Vec::new(),
            },
            order,
        };
        keeper.progress(&format!("create container '{}'", keeper.container));
        Ok(keeper)
    }

    /// Until there is nothing to keep any more.
    pub(super) fn keep(mut self) {
        while !self.is_over() {
            self.prepare();
            match self.watch.wait(self.wake()) {
                Ok(sources) => sources.into_iter().for_each(|source| self.attend(source)),
                Err(error) => {
                    self.note(&error);
                    std::thread::sleep(REST);
                }
            }
        }
        self.leave();
    }

    /// What can be done without anything having happened.
    fn prepare(&mut self) {
        self.serve_waiting();
        self.refill();
        let watch = &self.watch;
        if let Err(error) = self.crew.dispatch(|number, channel| watch.add(channel, Source::Worker(number))) {
            self.fail(error);
        }
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.too_late();
        }
        if self.is_crowded() || self.phase == Phase::Retiring {
            self.dismiss_idlers(now);
        }
    }

    /// When to look again although nothing happens.
    fn wake(&self) -> Option<Instant> {
        let crowded = self.is_crowded() || self.phase == Phase::Retiring;
        let look = crowded.then(|| Instant::now() + LOOK);
        [self.deadline, look].into_iter().flatten().min()
    }

    fn is_crowded(&self) -> bool {
        self.requests.as_ref().is_some_and(|callers| !callers.has_room()) || !self.commands.has_room()
    }

    fn attend(&mut self, source: Source) {
        match source {
            Source::Signals => self.hear_signals(),
            Source::Requests => self.admit_requests(),
            Source::Commands => self.admit_commands(),
            Source::Birth => self.orphaned(),
            Source::Zygote => self.hear_zygote(),
            Source::Output => self.hear_output(),
            Source::Caller(number) => self.hear_caller(number),
            Source::Commander(number) => self.hear_commander(number),
            Source::Worker(number) => self.hear_worker(number),
            Source::Sandbox(number) => self.hear_sandbox(number),
        }
    }

    fn hear_signals(&mut self) {
        loop {
            match self.signals.take() {
                Ok(Some(arrived)) if arrived.signal == Signal::TERM || arrived.signal == Signal::INT => self.stop(),
                // One for many; also what is not for us at all.
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    self.note(&error);
                    break;
                }
            }
        }
        self.crew.reap();
        self.attend_template();
    }

    fn hear_output(&mut self) {
        // What nobody prints to any more is closed, and has left the set.
        self.tail.take();
    }

    /// Lets in whoever wants to ask for clones, and hears them at once: most have spoken already.
    fn admit_requests(&mut self) {
        loop {
            let Some(callers) = &mut self.requests else { return };
            if !callers.has_room() {
                if let Some(door) = callers.door() {
                    let _ = self.watch.mute(door, Source::Requests);
                }
                return;
            }
            let number = match callers.admit() {
                Ok(Some(number)) => number,
                Ok(None) => return,
                Err(error) => return self.rest(&error),
            };
            let added = callers.get(number).map(|caller| self.watch.add(&*caller, Source::Caller(number)));
            match added {
                Some(Ok(())) => self.hear_caller(number),
                Some(Err(error)) => {
                    self.note(&error);
                    self.dismiss_caller(number);
                }
                None => {}
            }
        }
    }

    fn admit_commands(&mut self) {
        loop {
            if !self.commands.has_room() {
                if let Some(door) = self.commands.door() {
                    let _ = self.watch.mute(door, Source::Commands);
                }
                return;
            }
            let number = match self.commands.admit() {
                Ok(Some(number)) => number,
                Ok(None) => return,
                Err(error) => return self.rest(&error),
            };
            let added = self.commands.get(number).map(|caller| self.watch.add(&*caller, Source::Commander(number)));
            if let Some(Err(error)) = added {
                self.note(&error);
                self.dismiss_commander(number);
            }
        }
    }

    /// There are too many open files: they become fewer.
    fn rest(&mut self, error: &Error) {
        self.note(error);
        std::thread::sleep(REST);
    }

    fn hear_caller(&mut self, number: u64) {
        for turn in 0..TURNS {
            let Some(callers) = &mut self.requests else { return };
            // What comes while a request waits is heard after that: until then only an end wakes us.
            match callers.get(number).map(|caller| caller.waits) {
                Some(true) if turn == 0 => return self.dismiss_caller(number),
                Some(true) | None => return,
                Some(false) => {}
            }
            match callers.hear(number) {
                Heard::Message(request, files) => self.take_request(number, request, files),
                Heard::Nonsense(error) => self.answer(number, &Answer::Failed { error, stage: Stage::Before }),
                Heard::Nothing => return,
                Heard::End => return self.dismiss_caller(number),
            }
        }
    }

    fn take_request(&mut self, number: u64, request: Request, files: Vec<std::os::fd::OwnedFd>) {
        match request {
            Request::Fit => {
                let answer = self.fits();
                self.answer(number, &answer);
            }
            Request::Enter(enter) => {
                let answer = self.enter(*enter, files);
                self.answer(number, &answer);
            }
            Request::Take(take) => self.take(Waiting { caller: number, take: *take, files }),
        }
    }

    /// Whoever does not read what is said is not kept.
    pub(super) fn answer(&mut self, number: u64, answer: &Answer) {
        match answer {
            Answer::Failed { .. } => self.status.failed += 1,
            Answer::Entered { .. } | Answer::Taken { .. } => {
                // Nothing was heard from them since they asked for it.
                let asked = self.requests.as_mut().and_then(|callers| callers.get(number)).map(|caller| caller.heard());
                asked.into_iter().for_each(|asked| self.status.durations.observe(asked.elapsed()));
            }
            Answer::Fits(_) | Answer::Unfit { .. } => {}
        }
        if self.requests.as_mut().is_some_and(|callers| !callers.say(number, answer)) {
            self.dismiss_caller(number);
        }
    }

    /// Ends a connection. What goes with it goes.
    pub(super) fn dismiss_caller(&mut self, number: u64) {
        self.waiting.retain(|waiting| waiting.caller != number);
        let Some(callers) = &mut self.requests else { return };
        let was_full = !callers.has_room();
        if let Some(caller) = callers.get(number) {
            self.watch.remove(&*caller);
        }
        for container in callers.dismiss(number) {
            self.crew.push(Task::Remove { container }, Urgency::Now);
        }
        if let (true, Some(door)) = (was_full, callers.door()) {
            let _ = self.watch.unmute(door, Source::Requests);
        }
    }

    pub(super) fn dismiss_commander(&mut self, number: u64) {
        let was_full = !self.commands.has_room();
        if let Some(caller) = self.commands.get(number) {
            self.watch.remove(&*caller);
        }
        self.commands.dismiss(number);
        if let (true, Some(door)) = (was_full, self.commands.door()) {
            let _ = self.watch.unmute(door, Source::Commands);
        }
    }

    fn dismiss_idlers(&mut self, now: Instant) {
        while let Some(idler) = self.requests.as_ref().and_then(|callers| callers.idler(now)) {
            self.dismiss_caller(idler);
        }
        if !self.commands.has_room()
            && let Some(idler) = self.commands.idler(now)
        {
            self.dismiss_commander(idler);
        }
    }

    fn hear_commander(&mut self, number: u64) {
        for _ in 0..TURNS {
            let reply = match self.commands.hear(number) {
                Heard::Message(command, _) => self.obey(number, command),
                Heard::Nonsense(error) => Reply::Failed { error },
                Heard::Nothing => return,
                Heard::End => return self.dismiss_commander(number),
            };
            if !self.commands.say(number, &reply) {
                return self.dismiss_commander(number);
            }
        }
    }

    fn obey(&mut self, number: u64, command: Command) -> Reply {
        match command {
            Command::Status => {
                self.measure();
                Reply::Status(Box::new(self.describe()))
            }
            Command::Watch => {
                if let Some(caller) = self.commands.get(number) {
                    caller.watches = true;
                }
                Reply::Status(Box::new(self.describe()))
            }
            Command::Retire => {
                self.retire();
                Reply::Done
            }
            Command::Stop => {
                self.stop();
                Reply::Done
            }
        }
    }

    fn hear_worker(&mut self, number: u64) {
        match self.crew.hear(number) {
            Some(crew::Heard::Word(word)) => self.take_outcome(*word),
            Some(crew::Heard::Death(Some(task))) => self.replace_task(task),
            Some(crew::Heard::Death(None)) | None => {}
        }
    }

    /// Something went wrong that nobody waits for.
    pub(super) fn note(&mut self, error: &Error) {
        const MOST: usize = 16;
        let text = error.to_string();
        tracing::warn!("{text}");
        if !self.status.notes.contains(&text) {
            self.status.notes.truncate(MOST - 1);
            self.status.notes.insert(0, text);
        }
    }

    /// For whoever waits for the template. That nobody does any more is heard elsewhere.
    pub(super) fn progress(&self, step: &str) {
        let Some(channel) = &self.birth else { return };
        let told = encode(&Report::Progress { step: step.to_owned() }).and_then(|text| channel.send_now(&text));
        if let Err(error) = told {
            tracing::debug!("{error}");
        }
    }

    /// All who watch hear how it is now.
    pub(super) fn enter_phase(&mut self, phase: Phase) {
        self.phase = phase;
        let status = Reply::Status(Box::new(self.describe()));
        for watcher in self.commands.watchers() {
            if !self.commands.say(watcher, &status) {
                self.dismiss_commander(watcher);
            }
        }
    }
}
