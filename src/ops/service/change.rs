//! A change: a new instance takes the place of the old one, or everything stays as it is.
//!
//! ```text
//! Planned ──> Started ──> Ready ──> Served ──> Committed ──> the old one drains
//!    │           │          │          │
//!    └───────────┴──────────┴──────────┘ failure: undone in reverse, the old one was never touched
//! ```
//!
//! Each phase is a type that the next one consumes. What is done is written down before it is begun ([`Record::pending`]), so
//! that a daemon that is killed in between leaves the old or the new state to the next one ([`super::judge`]).

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::book::{Book, Seen};
use super::core::{Claim, describe_end, has_come_up};
use super::judge::Farewell;
use super::plan::instance_id;
use super::record::{Change, ChangeKind, Key, Pending, Record, Wanted};
use super::ring::GiveBack;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::metrics;
use crate::ops::keep;
use crate::service::address::{Address, Listen, UnixKind};
use crate::service::definition::Definition;
use crate::service::keeper::Keeper;
use crate::service::message::{Command, Order, PROTOCOL, Phase, Status};
use crate::service::roster::Member;
use crate::store::make_directory;
use crate::sys::process::Identity;

/// Making a container may mean to unpack an image.
const MAKING: Duration = Duration::from_secs(900);
/// How long an instance may take to end that was told to: it is killed after ten seconds.
pub(super) const ENDING: Duration = Duration::from_secs(30);
/// How often a keeper whose instance is not ready is asked whether it is still there.
const CHECK: Duration = Duration::from_secs(30);
/// How many of an instance's last words are told, and of its notes.
const WORDS: usize = 3;

/// How far a change is, for whoever waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The new instance is being made.
    Starting(ContainerId),
    /// It runs, and is not ready.
    Waiting(ContainerId),
    /// New connections go to it.
    Serving(ContainerId),
    /// The old one finishes its connections.
    Draining(ContainerId),
}

/// What a change is to lead to.
#[derive(Debug)]
pub(super) struct Goal {
    /// What the service is to be.
    pub to: Definition,
    /// The running program to keep, in place of one of ours.
    pub adopt: Option<Identity>,
}

/// What a change led to.
#[derive(Debug)]
pub(super) struct Done {
    /// The new instance.
    pub instance: ContainerId,
    /// Where it listens.
    pub listen: Vec<Listen>,
    /// The old one, which may still be there.
    pub old: Option<ContainerId>,
}

/// How the instance before is found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Old {
    /// There was none.
    None,
    /// It serves.
    Alive(ContainerId),
    /// It has ended, and its keeper holds its sockets.
    Ended(ContainerId),
    /// Its keeper is gone, and it serves without.
    Orphan(ContainerId),
    /// Its keeper is gone, and it has ended or has to end before it can have a successor.
    Lost(ContainerId),
}

/// What all phases have.
struct Run<'a, 'tell> {
    claim: Claim<'a>,
    goal: Goal,
    old: Old,
    instance: ContainerId,
    listen: Vec<Listen>,
    tell: &'tell mut dyn FnMut(Step),
}

/// It is written down what is to be done.
struct Planned<'a, 'tell>(Run<'a, 'tell>);
/// The new instance runs.
struct Started<'a, 'tell>(Run<'a, 'tell>);
/// It could serve.
struct Ready<'a, 'tell>(Run<'a, 'tell>, Status);
/// It serves.
struct Served<'a, 'tell>(Run<'a, 'tell>, Status);
/// It is written down that it does.
struct Committed<'a, 'tell>(Run<'a, 'tell>, Status);

/// Carries a change out. When this returns the new instance serves, or nothing has changed.
///
/// # Errors
/// Why nothing has changed.
pub(super) fn carry_out(claim: Claim<'_>, goal: Goal, tell: &mut dyn FnMut(Step)) -> Result<Done> {
    let (verb, name) = (claim.change.kind.verb(), claim.key.name.clone());
    let operation = format!("{verb} service '{}'", claim.key);
    let span = tracing::info_span!(
        "change",
        operation = %claim.change.id,
        service = %claim.key,
        container = tracing::field::Empty
    );
    let _within = span.enter();
    let done = Planned::new(claim, goal, tell)
        .and_then(Planned::start)
        .and_then(Started::wait)
        .and_then(Ready::serve)
        .and_then(Served::commit)
        .map(Committed::drain);
    metrics::service_changed(name.as_str(), verb, metrics::Outcome::of(&done));
    done.map_err(|error| if error.to_string().starts_with(&operation) { error } else { error.during(operation) })
}

impl<'a, 'tell> Planned<'a, 'tell> {
    /// Decides, and writes it down.
    fn new(claim: Claim<'a>, goal: Goal, tell: &'tell mut dyn FnMut(Step)) -> Result<Self> {
        let core = claim.core;
        let mut book = core.lock();
        let service = book.get(&claim.key)?;
        let (current, mut generation) = (service.record.instance.clone(), service.record.generation);
        // With the ports that were chosen before, which are asked for again.
        let listen = service.record.listen.clone();
        let old = match current {
            None => Old::None,
            Some(instance) => match book.instances.get(&instance) {
                Some(seen) if seen.lives() => Old::Alive(instance),
                Some(seen) if !seen.gone => Old::Ended(instance),
                Some(seen) if seen.orphan.is_some() && !core.may_be_in_ring(&instance) => Old::Orphan(instance),
                Some(_) | None => Old::Lost(instance),
            },
        };
        let target = Key::of(&goal.to);
        let instance = loop {
            generation += 1;
            let instance = instance_id(&target, generation)?;
            let taken = core.place.root.path().join(instance.as_str()).exists();
            if !taken && !book.instances.contains_key(&instance) && !book.strangers.contains(&instance) {
                break instance;
            }
        };
        tracing::Span::current().record("container", instance.as_str());
        let (change, to) = (claim.change.clone(), goal.to.clone());
        let pending = Pending { change, to, instance: instance.clone(), handover: None };
        core.save(&mut book, &claim.key, |record| {
            record.generation = generation;
            record.pending = Some(pending);
        })?;
        drop(book);
        Ok(Self(Run { claim, goal, old, instance, listen, tell }))
    }

    fn start(mut self) -> Result<Started<'a, 'tell>> {
        match self.0.start() {
            Ok(()) => Ok(Started(self.0)),
            Err(error) => Err(self.0.undo(error)),
        }
    }
}

impl<'a, 'tell> Started<'a, 'tell> {
    fn wait(mut self) -> Result<Ready<'a, 'tell>> {
        match self.0.wait_until_ready() {
            Ok(status) => Ok(Ready(self.0, status)),
            Err(error) => Err(self.0.undo(error)),
        }
    }
}

impl<'a, 'tell> Ready<'a, 'tell> {
    fn serve(self) -> Result<Served<'a, 'tell>> {
        match self.0.claim.core.ask(&self.0.instance, &Command::Serve) {
            Ok(()) => Ok(Served(self.0, self.1)),
            Err(error) => Err(self.0.undo(error)),
        }
    }
}

impl<'a, 'tell> Served<'a, 'tell> {
    fn commit(mut self) -> Result<Committed<'a, 'tell>> {
        match self.0.commit(&self.1) {
            Ok(()) => Ok(Committed(self.0, self.1)),
            Err(error) => {
                self.0.steer_back();
                Err(self.0.undo(error))
            }
        }
    }
}

impl Committed<'_, '_> {
    fn drain(self) -> Done {
        let Run { claim, old, instance, goal, tell, .. } = self.0;
        let listen = self.1.listen;
        tell(Step::Serving(instance.clone()));
        let old = match old {
            Old::Alive(old) => {
                tell(Step::Draining(old.clone()));
                claim.core.part(&old, Farewell::Succeeded, goal.to.drain_timeout);
                Some(old)
            }
            Old::Ended(old) => {
                claim.core.part(&old, Farewell::Release, Duration::ZERO);
                None
            }
            Old::Orphan(old) => {
                claim.core.part(&old, Farewell::Clear, Duration::ZERO);
                Some(old)
            }
            Old::None | Old::Lost(_) => None,
        };
        Done { instance, listen, old }
    }
}

impl Run<'_, '_> {
    fn start(&mut self) -> Result<()> {
        (self.tell)(Step::Starting(self.instance.clone()));
        let core = self.claim.core;
        core.give_back_what_is_left(&self.claim.key)?;
        if let Old::Lost(instance) = &self.old {
            // Nobody could drain it, and it has the addresses, or the ring.
            core.clear(instance)?;
        }
        let sockets = self.sockets()?;
        let order = self.order(&sockets)?;
        make_directory(&order.log)?;
        let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        let channel = keep::start(&order, &descriptors)?;
        let answer = Keeper::at(channel, self.instance.clone()).answer(MAKING)?;
        core.note_handover(&self.claim.key, Keeper::status(answer).as_ref())?;
        if core.follow(&self.claim.key, &self.instance)? {
            return Ok(());
        }
        Err(Error::new(Kind::State, format!("start instance '{}'", self.instance), "its keeper has ended"))
    }

    /// The sockets of the instance before that the new one takes over, by the index of their address: all if it has ended,
    /// else those of which there can be only one.
    fn sockets(&self) -> Result<Vec<(usize, OwnedFd)>> {
        let (instance, wanted): (_, fn(&Address) -> bool) = match &self.old {
            Old::Ended(instance) => (instance, |_| true),
            Old::Alive(instance) => (instance, |address| matches!(address, Address::Unix(UnixKind::Datagram, _))),
            Old::None | Old::Orphan(_) | Old::Lost(_) => return Ok(Vec::new()),
        };
        if !self.listen.iter().any(|listen| wanted(&listen.address)) {
            return Ok(Vec::new());
        }
        let all = self.claim.core.keeper(instance)?.sockets()?;
        let mut taken = Vec::new();
        for (listen, socket) in all {
            let index = self.listen.iter().position(|other| other.address == listen.address);
            // One socket for each address: a program may have bound several to one.
            if let Some(index) = index.filter(|index| taken.iter().all(|(other, _)| other != index))
                && wanted(&listen.address)
            {
                taken.push((index, socket));
            }
        }
        Ok(taken)
    }

    fn order(&self, sockets: &[(usize, OwnedFd)]) -> Result<Order> {
        let core = self.claim.core;
        let (log, neighbour) = {
            let mut book = core.lock();
            let record = book.get(&self.claim.key)?.record.clone();
            (record.log, self.neighbour(&book, &record.leaving))
        };
        let beside = match &self.old {
            Old::Alive(instance) => Some(instance.clone()),
            Old::None | Old::Orphan(_) | Old::Ended(_) | Old::Lost(_) => None,
        };
        Ok(Order {
            protocol: PROTOCOL,
            instance: self.instance.clone(),
            definition: self.goal.to.clone(),
            listen: self.listen.clone(),
            inherited: sockets.iter().map(|(index, _)| *index).collect(),
            beside,
            neighbour,
            adopt: self.goal.adopt.clone(),
            ring_entry: None,
            root: core.place.root.path().to_owned(),
            store: core.place.store.clone(),
            config: core.place.config_file.clone(),
            cgroup_manager: core.cgroups.word().to_owned(),
            log: core.log_directory(&log),
        })
    }

    /// An instance of the service that may have sockets at its addresses, beside the one that the new one succeeds.
    fn neighbour(&self, book: &Book, leaving: &[ContainerId]) -> Option<ContainerId> {
        match &self.old {
            Old::Orphan(instance) => Some(instance.clone()),
            Old::None | Old::Alive(_) | Old::Ended(_) | Old::Lost(_) => {
                leaving.iter().find(|id| book.instances.get(*id).is_some_and(Seen::has_sockets)).cloned()
            }
        }
    }

    fn wait_until_ready(&mut self) -> Result<Status> {
        (self.tell)(Step::Waiting(self.instance.clone()));
        let (core, instance) = (self.claim.core, &self.instance);
        let come_up = loop {
            let come_up = core.wait_for(CHECK, |book| {
                let seen = book.instances.get(instance)?;
                if seen.gone { Some(false) } else { has_come_up(seen.phase()?) }
            });
            match come_up {
                Some(come_up) => break come_up,
                // Its keeper ends it when its time is over; one that does not answer never will.
                None => core.ask(instance, &Command::Status)?,
            }
        };
        let ended = |seen: &Seen| seen.gone || seen.phase() == Some(Phase::Ended);
        if !come_up {
            core.wait_for(ENDING, |book| book.instances.get(instance).is_none_or(ended).then_some(()));
        }
        let book = core.lock();
        let status = book.instances.get(instance).and_then(|seen| seen.status.clone());
        match status {
            Some(status) if come_up => Ok(status),
            status => Err(failed(instance, status.as_ref())),
        }
    }

    fn commit(&mut self, status: &Status) -> Result<()> {
        let core = self.claim.core;
        let (instance, goal) = (&self.instance, &self.goal);
        let (old, leaves) = match &self.old {
            Old::Alive(old) | Old::Orphan(old) | Old::Ended(old) => (Some(old.clone()), true),
            Old::Lost(old) => (Some(old.clone()), false),
            Old::None => (None, false),
        };
        let Change { id: change, kind, .. } = self.claim.change.clone();
        let recovered = kind == ChangeKind::Recover && old.is_some();
        let mut book = core.lock();
        core.save(&mut book, &self.claim.key, |record| {
            record.pending = None;
            if kind != ChangeKind::Recover {
                record.done = Some(change.clone());
            }
            record.instance = Some(instance.clone());
            record.leaving.extend(old.clone().filter(|_| leaves));
            record.definition = goal.to.clone();
            record.listen.clone_from(&status.listen);
            record.wanted = Wanted::Running;
            record.restarts += u64::from(recovered);
        })?;
        self.claim.key = Key::of(&goal.to);
        if let Some(lost) = old.as_ref().filter(|_| !leaves) {
            book.instances.remove(lost);
        }
        let service = book.get(&self.claim.key)?;
        service.failure = None;
        match &old {
            Some(old) => core.roster.replace(old, Member::from(status)),
            None => core.roster.add(Member::from(status)),
        }
        drop(book);
        core.news.notify_all();
        self.tell_of_ports(status);
        tracing::info!("service '{}': instance '{instance}' serves", self.claim.key);
        Ok(())
    }

    /// A port that was chosen before may be somebody else's by now.
    fn tell_of_ports(&self, status: &Status) {
        for (before, now) in self.listen.iter().zip(&status.listen) {
            if before.address != Address::Auto && before.address != now.address {
                let (key, before, now) = (&self.claim.key, &before.address, &now.address);
                tracing::warn!("service '{key}': somebody else has {before} now, so it listens on {now}");
            }
        }
    }

    /// After the switch could not be written down: the old instance gets the connections again.
    fn steer_back(&mut self) {
        if let Old::Alive(old) = &self.old
            && let Err(error) = self.claim.core.ask(old, &Command::Serve)
        {
            tracing::error!("send connections back to instance '{old}': {error}");
        }
    }

    /// Takes the new instance away, and says why.
    fn undo(self, error: Error) -> Error {
        let Self { claim, instance, .. } = self;
        let core = claim.core;
        let there = core.find_ordered(&claim.key, &instance);
        let mut book = core.lock();
        let record = book.services.get(&claim.key).map(|service| &service.record);
        let back = record.and_then(|record| GiveBack::of(record.pending.as_ref()?, record.instance.as_ref()));
        core.note(&mut book, &claim.key, |record| {
            record.pending = None;
            record.giving_back.clone_from(&back);
            record.leaving.extend(there.then(|| instance.clone()));
        });
        if claim.change.kind == ChangeKind::Recover {
            core.postpone(&mut book, &claim.key, &error);
        }
        drop(book);
        // Before it ends: what it leaves stands beside the main line then.
        if let Err(error) = core.give_back(&claim.key, back) {
            tracing::error!("{error}");
        }
        if there {
            match claim.change.kind {
                ChangeKind::Adopt => core.abandon(&instance),
                ChangeKind::Add
                | ChangeKind::Restart
                | ChangeKind::Upgrade
                | ChangeKind::Recover
                | ChangeKind::Remove => core.part(&instance, Farewell::Stop, Duration::ZERO),
            }
            core.wait_for(ENDING, |book| (!book.instances.contains_key(&instance)).then_some(()));
        }
        tracing::warn!("service '{}': {} was undone: {error}", claim.key, claim.change.kind.verb());
        error
    }
}

/// Why an instance did not become ready.
fn failed(instance: &ContainerId, status: Option<&Status>) -> Error {
    let outcome = status.and_then(|status| status.outcome.as_ref());
    let mut cause = match outcome {
        Some(outcome) if outcome.reason.is_some() => describe_end(Some(outcome)),
        outcome => format!("{} before it was ready", describe_end(outcome)),
    };
    let words = outcome.map(|outcome| outcome.last_words.as_slice()).unwrap_or_default();
    let words: Vec<&str> = words[words.len().saturating_sub(WORDS)..].iter().map(String::as_str).collect();
    for note in status.iter().flat_map(|status| &status.notes).take(WORDS) {
        cause.push_str("; ");
        cause.push_str(note);
    }
    if !words.is_empty() {
        cause.push_str("; its last words: ");
        cause.push_str(&words.join(" | "));
    }
    Error::new(Kind::State, format!("start instance '{instance}'"), cause)
}

/// What a service is written down as before its first instance.
pub(super) fn first_record(definition: Definition, log: String, boot: &str) -> Record {
    Record {
        listen: definition.listen.clone(),
        definition,
        instance: None,
        generation: 0,
        pending: None,
        done: None,
        giving_back: None,
        leaving: Vec::new(),
        // Until it has come about.
        wanted: Wanted::Removed,
        added: chrono::Utc::now(),
        restarts: 0,
        log,
        boot: boot.to_owned(),
    }
}
