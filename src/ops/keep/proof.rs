//! Whether an instance is ready: asked as its service says, until it is or its time is over.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::holding::{Holding, Probe as Way};
use crate::service::definition::Readiness;
use crate::service::ready::http::{Exchange, Progress};
use crate::service::ready::notify::Said;

/// The pause after a question that was not answered well, at first and at last.
const SOON: Duration = Duration::from_millis(5);
const LATER: Duration = Duration::from_millis(500);
/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of an instance's readiness.
#[derive(Debug)]
pub(super) struct Proof {
    condition: Readiness,
    /// How long it may take, for whoever is told that it took longer.
    limit: Duration,
    deadline: Instant,
    /// It said so itself.
    said: bool,
    probe: Option<Probe>,
    /// When to ask or look again; at once if none.
    ask_at: Option<Instant>,
    pause: Duration,
    /// What is missing.
    lack: String,
}

/// A connection to the instance.
#[derive(Debug)]
struct Probe {
    connection: TcpStream,
    /// None if it only has to be accepted.
    exchange: Option<Exchange>,
    since: Instant,
}

impl Proof {
    pub(super) fn begin(condition: Readiness, limit: Duration, now: Instant) -> Self {
        let (lack, deadline) = (String::new(), now + limit);
        Self { condition, limit, deadline, said: false, probe: None, ask_at: None, pause: SOON, lack }
    }

    /// Takes what the program said.
    pub(super) fn hear(&mut self, said: &Said, now: Instant) {
        self.said |= said.ready;
        if let Some(more) = said.extend {
            self.deadline = self.deadline.max(now + more);
        }
    }

    /// Why there is no more time, once there is none.
    pub(super) fn overdue(&self, now: Instant) -> Option<String> {
        let limit = self.limit.as_secs_f64();
        (now >= self.deadline).then(|| format!("it was not ready within {limit} s: {}", self.lack))
    }

    /// Looks, and asks what can be asked now. Whether the instance is ready.
    pub(super) fn turn(&mut self, holding: &mut Holding, now: Instant) -> bool {
        if let Some(address) = holding.missing().first() {
            self.lack = format!("it does not listen on {address}");
            (self.probe, self.ask_at) = (None, None);
            return false;
        }
        match &self.condition {
            Readiness::None => true,
            Readiness::Notify => {
                "it has not said so (READY=1 on NOTIFY_SOCKET)".clone_into(&mut self.lack);
                self.said
            }
            Readiness::Tcp | Readiness::Http(_) => self.ask(holding, now),
        }
    }

    fn ask(&mut self, holding: &mut Holding, now: Instant) -> bool {
        if self.probe.is_none() && self.ask_at.is_some_and(|at| now < at) {
            return false;
        }
        let answer = match self.probe.take().map_or_else(|| self.connect(holding, now), |probe| Ok(Some(probe))) {
            Ok(Some(probe)) => self.follow(probe, holding, now),
            // It listens, and more cannot be found out.
            Ok(None) => Ok(true),
            Err(cause) => Err(cause),
        };
        match answer {
            Ok(ready) => ready,
            Err(cause) => {
                self.lack = cause;
                self.pause = (self.pause * 2).min(LATER);
                self.ask_at = Some(now + self.pause);
                false
            }
        }
    }

    fn connect(&self, holding: &mut Holding, now: Instant) -> Result<Option<Probe>, String> {
        let Way::Connection(connection, host) = holding.probe().map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let exchange = match &self.condition {
            Readiness::Http(path) => Some(Exchange::new(path, &host)),
            Readiness::Tcp | Readiness::Notify | Readiness::None => None,
        };
        Ok(Some(Probe { connection, exchange, since: now }))
    }

    /// How far a probe is; one that goes on is kept.
    fn follow(&mut self, mut probe: Probe, holding: &mut Holding, now: Instant) -> Result<bool, String> {
        let waiting = match (&mut probe.exchange, &self.condition) {
            (Some(exchange), Readiness::Http(path)) => match exchange.turn(&probe.connection) {
                Progress::Good => return Ok(true),
                Progress::Bad(cause) => return Err(format!("GET {path}: {cause}")),
                Progress::Waiting => format!("GET {path}: it has not answered"),
            },
            _ => {
                // A connection waits in the queue of its listener until the program accepts it.
                if holding.is_idle().map_err(|error| error.to_string())? {
                    return Ok(true);
                }
                "it has not accepted a connection".to_owned()
            }
        };
        if now - probe.since >= PATIENCE {
            return Err(waiting);
        }
        self.lack = waiting;
        // Looked for again after a small part of the time that it took so far; what is answered is told by the connection.
        let soon = ((now - probe.since) / 16).clamp(SOON / 25, SOON * 4);
        self.ask_at = Some(now + if probe.exchange.is_some() { PATIENCE } else { soon });
        self.probe = Some(probe);
        Ok(false)
    }

    /// When to look again, whatever happens.
    pub(super) fn next(&self) -> Instant {
        self.ask_at.map_or(self.deadline, |at| at.min(self.deadline))
    }

    /// What to wait for on the connection of a question.
    pub(super) fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let probe = self.probe.as_ref()?;
        let exchange = probe.exchange.as_ref()?;
        let flags = if exchange.is_sending() { PollFlags::OUT | PollFlags::IN } else { PollFlags::IN };
        Some((probe.connection.as_fd(), flags))
    }
}
