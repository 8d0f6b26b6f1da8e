//! The keeper at work: one loop, which waits for anything to happen and never for one thing alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::birth::Newborn;
use super::connection::Connection;
use super::family::{self, Family, First};
use super::holding::Holding;
use super::home::Home;
use super::proof::Proof;
use super::stage::{Draining, Stage, Verdict};
use super::stall::Stall;
use crate::error::{Context, Kind, Result};
use crate::ops::Place;
use crate::ops::handover::HandOver;
use crate::runtime;
use crate::service::drain::Look;
use crate::service::log::Writer;
use crate::service::message::{Order, Outcome, PROTOCOL, Phase, Status};
use crate::service::ready::notify;
use crate::sys::channel::Listener;
use crate::sys::process::{Identity, Process};
use crate::sys::signal::{Blocked, Signal};
use crate::sys::socket::Socket;

/// As much of the output as is taken at once.
const CHUNK: usize = 64 << 10;
/// How often it is taken before somebody else gets a turn.
const TURNS: usize = 16;
/// The most notes that are kept for an operator.
const NOTES: usize = 64;
/// How long nobody is let in after that failed.
const REST: Duration = Duration::from_millis(100);

/// An instance and all that is held for it.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) order: Order,
    pub(super) place: Place,
    pub(super) home: Option<Home>,
    pub(super) log: Writer,
    pub(super) process: Process,
    pub(super) init: Identity,
    /// The other processes of an adopted program.
    pub(super) family: Option<Family>,
    pub(super) holding: Holding,
    pub(super) stage: Stage,
    pub(super) proof: Proof,
    pub(super) callers: Vec<Connection>,
    /// Something happened that watchers want to hear of.
    pub(super) changed: bool,
    /// Whether a successor has the addresses.
    pub(super) succeeded: bool,
    /// Connections that were there when it was told to end.
    pub(super) cut: u64,
    /// Whether it was told to end.
    pub(super) requested: bool,
    /// Why it was ended.
    pub(super) reason: Option<String>,
    pub(super) outcome: Option<Outcome>,
    /// Whether somebody else has ended the instance on purpose, by killing or deleting its container.
    pub(super) ended_by_others: bool,
    /// Nobody needs us any more.
    pub(super) released: bool,
    pub(super) serving_since: Option<DateTime<Utc>>,
    control: Listener,
    rest_until: Option<Instant>,
    stall: Stall,
    output: Option<OwnedFd>,
    notify: Option<notify::Socket>,
    signals: Blocked,
    started: DateTime<Utc>,
    identity: Identity,
    text: Option<String>,
    notes: Vec<String>,
    handover: Option<HandOver>,
}

/// What woke us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Output,
    Notify,
    Calls,
    EndOfCalls,
    Holder,
    Crowd,
    Probe,
    Signals,
    Control,
    Caller(usize),
    End,
}

impl Source {
    /// What it is for these events: where nobody is left to call, there is nothing to wait for.
    fn with(self, events: PollFlags) -> Self {
        match self {
            Self::Calls if !events.contains(PollFlags::IN) => Self::EndOfCalls,
            other => other,
        }
    }
}

impl Keeper {
    pub(super) fn new(
        order: Order,
        place: Place,
        (home, control): (Home, Listener),
        log: Writer,
        newborn: Newborn,
    ) -> Self {
        let Newborn { process, init, holding, output, notify, signals, started, handover } = newborn;
        let definition = &order.definition;
        let proof = Proof::begin(definition.ready.clone(), definition.ready_timeout, Instant::now());
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        // Our own process is there: what fails is reading /proc, and then nobody can be told apart anyway.
        let identity = Identity::of(own).unwrap_or(Identity { pid: own, start_time: 0, boot_id: String::new() });
        Self {
            place,
            home: Some(home),
            log,
            process,
            init,
            family: order.adopt.as_ref().map(|_| Family::new(Instant::now())),
            holding,
            stage: Stage::Starting,
            proof,
            callers: Vec::new(),
            changed: false,
            succeeded: false,
            cut: 0,
            requested: false,
            reason: None,
            outcome: None,
            ended_by_others: false,
            released: false,
            serving_since: None,
            control,
            rest_until: None,
            stall: Stall::default(),
            output,
            notify,
            signals,
            started,
            identity,
            text: None,
            notes: Vec::new(),
            handover,
            order,
        }
    }

    /// Until the instance has ended and nobody needs what is left of it.
    pub(super) fn watch(mut self) {
        if let Some(output) = &self.output
            && let Err(error) = never_wait(output)
        {
            self.note(&error.to_string());
            self.output = None;
        }
        while !self.is_over() {
            self.advance(Instant::now());
            self.tell_watchers();
            let woken = match self.wait() {
                Ok(woken) => woken,
                Err(error) => {
                    self.note(&error.to_string());
                    std::thread::sleep(REST);
                    Vec::new()
                }
            };
            for source in woken {
                self.attend(source);
            }
            self.callers.retain(|caller| !caller.ended);
        }
        self.tell_watchers();
        if let Err(error) = self.holding.withdraw() {
            self.log.note(&error.to_string());
        }
        if let Some(home) = self.home.take() {
            home.remove();
        }
    }

    /// An instance that ended needs a keeper until it is released; or until nobody is there to do that, if somebody has killed
    /// it or taken its container away, and so does not wait for another.
    fn is_over(&self) -> bool {
        let ended = self.stage.phase() == Phase::Ended;
        ended && (self.released || (self.ended_by_others && self.callers.is_empty()))
    }

    /// What comes with time.
    fn advance(&mut self, now: Instant) {
        if self.stall.is_due(now) {
            self.look_into_stall(now);
        }
        if self.family.as_ref().is_some_and(|family| now >= family.look_at) {
            self.follow_family();
        }
        match &mut self.stage {
            Stage::Starting => {
                if self.proof.turn(&mut self.holding, now) {
                    self.enter(Stage::Ready);
                } else if let Some(reason) = self.proof.overdue(now) {
                    self.end_because(reason);
                }
            }
            Stage::Draining(draining) if now >= draining.look_at => self.look(now),
            Stage::Stopping { kill_at } if kill_at.is_some_and(|at| now >= at) => {
                *kill_at = None;
                self.kill();
            }
            Stage::Ready | Stage::Serving | Stage::Draining(_) | Stage::Stopping { .. } | Stage::Ended => {}
        }
    }

    /// Something has waited for a while where the program has several sockets.
    fn look_into_stall(&mut self, before: Instant) {
        let waits = |socket: &Socket| socket.has_input().unwrap_or(false);
        if self.stage.phase() == Phase::Ended || !self.holding.crowd().into_iter().any(waits) {
            return self.stall.end();
        }
        self.refresh();
        let now = Instant::now();
        self.stall.go_on(now - before, now);
    }

    /// Looks which sockets the program has.
    fn refresh(&mut self) {
        if let Err(error) = self.holding.refresh() {
            self.note(&error.to_string());
        }
    }

    /// Looks for connections of an instance that is to end.
    fn look(&mut self, before: Instant) {
        let looked = self.processes().and_then(|processes| self.holding.look(&processes));
        let found = looked.map(Look::total).unwrap_or_else(|error| {
            // Who cannot be looked at is waited for until the deadline.
            self.note(&error.to_string());
            1
        });
        let now = Instant::now();
        let Stage::Draining(draining) = &mut self.stage else { return };
        match draining.judge(found, now - before, now) {
            Verdict::Wait => {}
            Verdict::Drained => self.stop(),
            Verdict::Cut(connections) => {
                self.cut = connections;
                self.stop();
            }
        }
    }

    /// All that belong to the instance.
    fn processes(&mut self) -> Result<Vec<i32>> {
        self.look_for_family();
        if let Some(family) = &self.family {
            return Ok(std::iter::once(&self.init).chain(family.known()).map(|member| member.pid).collect());
        }
        match runtime::processes(&self.place.root, &self.order.instance) {
            Err(error) if error.kind() == Kind::Unsupported => Ok(family::of(self.init.pid)),
            other => other,
        }
    }

    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.changed = true;
    }

    /// Says something to whoever operates the service, and keeps it for those who ask later.
    pub(super) fn note(&mut self, text: &str) {
        self.log.note(text);
        if self.notes.len() < NOTES && !self.notes.iter().any(|note| note == text) {
            self.notes.push(text.to_owned());
            self.changed = true;
        }
    }

    pub(super) fn status(&self) -> Status {
        Status {
            protocol: PROTOCOL,
            instance: self.order.instance.clone(),
            definition: self.order.definition.clone(),
            phase: self.stage.phase(),
            listen: self.holding.listen().to_vec(),
            keeper: self.identity.clone(),
            init: Some(self.init.clone()),
            started: self.started,
            serving_since: self.serving_since,
            text: self.text.clone(),
            notes: self.notes.clone(),
            outcome: self.outcome.clone(),
            handover: self.handover.as_ref().and_then(|handover| serde_json::to_value(handover).ok()),
        }
    }

    /// When to wake up though nothing happens.
    fn next(&self) -> Option<Instant> {
        let stage = match &self.stage {
            Stage::Starting => Some(self.proof.next()),
            Stage::Draining(Draining { look_at, .. }) => Some(*look_at),
            Stage::Stopping { kill_at } => *kill_at,
            Stage::Ready | Stage::Serving | Stage::Ended => None,
        };
        let family = self.family.as_ref().map(|family| family.look_at);
        [stage, family, self.rest_until, self.stall.next()].into_iter().flatten().min()
    }

    /// Waits for anything.
    fn wait(&mut self) -> Result<Vec<Source>> {
        let now = Instant::now();
        let limit = self.next().map(|at| timespec(at.saturating_duration_since(now)));
        self.rest_until = self.rest_until.filter(|until| *until > now);
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::with_capacity(8 + self.callers.len());
        let mut add = |source, descriptor| watched.push((source, descriptor, PollFlags::IN));
        if let Some(output) = &self.output {
            add(Source::Output, output.as_fd());
        }
        if let Some(notify) = &self.notify {
            add(Source::Notify, notify.as_fd());
        }
        if let Some(calls) = self.holding.calls() {
            add(Source::Calls, calls);
        }
        for holder in self.holding.holders() {
            add(Source::Holder, holder);
        }
        if self.stall.is_none() && self.stage.phase() != Phase::Ended {
            for socket in self.holding.crowd() {
                add(Source::Crowd, socket.as_fd());
            }
        }
        add(Source::Signals, self.signals.as_fd());
        if self.rest_until.is_none() {
            add(Source::Control, self.control.as_fd());
        }
        for (index, caller) in self.callers.iter().enumerate() {
            add(Source::Caller(index), caller.as_fd());
        }
        let others_alone = self.family.as_ref().is_some_and(|family| family.first == First::Ended);
        if self.stage.phase() != Phase::Ended && !others_alone {
            add(Source::End, self.process.as_fd());
        }
        if let Some((probe, flags)) = self.proof.watched().filter(|_| matches!(self.stage, Stage::Starting)) {
            watched.push((Source::Probe, probe, flags));
        }
        let mut polled: Vec<PollFd<'_>> =
            watched.iter().map(|(_, descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags)).collect();
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "wait for something to happen"),
        }
        let woken = watched.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
        Ok(woken.map(|((source, ..), polled)| source.with(polled.revents())).collect())
    }

    fn attend(&mut self, source: Source) {
        match source {
            Source::Output => self.take_output(),
            Source::Notify => self.hear(),
            Source::Calls => self.answer_call(),
            Source::EndOfCalls => self.holding.end_calls(),
            Source::Holder => self.refresh(),
            Source::Crowd => self.stall.begin(Instant::now()),
            // Looked at whenever something happens.
            Source::Probe => {}
            Source::Signals => self.take_signals(),
            Source::Control => self.let_in(),
            Source::Caller(index) => self.answer(index),
            Source::End => self.end(),
        }
    }

    /// Takes what was printed; gives up its end where nobody can print any more.
    pub(super) fn take_output(&mut self) {
        let Some(output) = &self.output else { return };
        let mut chunk = vec![0; CHUNK];
        for _ in 0..TURNS {
            match rustix::io::read(output, &mut chunk) {
                Ok(0) => {
                    self.output = None;
                    return;
                }
                Ok(count) => self.log.output(&chunk[..count]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    self.output = None;
                    return self.note(&format!("read what the instance prints: {errno}"));
                }
            }
        }
    }

    fn hear(&mut self) {
        let Some(notify) = &self.notify else { return };
        match notify.hear() {
            Ok(Some(said)) => {
                self.proof.hear(&said, Instant::now());
                if said.status.is_some() && said.status != self.text {
                    self.text = said.status;
                    self.changed = true;
                }
            }
            Ok(None) => {}
            Err(error) => {
                self.notify = None;
                self.note(&error.to_string());
            }
        }
    }

    fn answer_call(&mut self) {
        for note in self.holding.answer_call() {
            self.note(&note);
        }
    }

    fn let_in(&mut self) {
        match self.control.accept().and_then(Connection::new) {
            Ok(caller) => self.callers.push(caller),
            Err(error) => {
                self.rest_until = Some(Instant::now() + REST);
                self.note(&error.to_string());
            }
        }
    }

    /// A keeper that is told to end, as all processes are when a machine goes down, ends its instance first.
    fn take_signals(&mut self) {
        while let Ok(Some(arrived)) = self.signals.take() {
            match arrived.signal {
                Signal::CHLD => self.reap_others(),
                Signal::TERM => {
                    self.released = true;
                    self.stop();
                }
                _ => {}
            }
        }
    }

    /// Packers that were started on the way are children of ours; the instance's own end is told by its handle.
    fn reap_others(&self) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, flags) {
            let Some(pid) = status.pid().filter(|pid| pid.as_raw() != self.init.pid || self.outcome.is_some()) else {
                break;
            };
            if status == WaitStatus::StillAlive || waitid(Id::Pid(pid), WaitPidFlag::WEXITED).is_err() {
                break;
            }
        }
    }
}

fn never_wait(descriptor: impl AsFd) -> Result<()> {
    let operation = || "let no read wait";
    let flags = fcntl_getfl(&descriptor).context(operation)?;
    fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK).context(operation)
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}
