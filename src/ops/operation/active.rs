//! An operation that is not at its end, as this daemon knows it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tracing::Span;

use super::executor::{Cancel, Task};
use super::follow::{Progress, Watchers};
use crate::error::{Error, Kind as Fault};
use crate::operation::fence::{Fence, Token};
use crate::operation::marker::Claim;
use crate::operation::{Counts, Outcome, Record, State};

/// Where a target is in its life.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// Not begun.
    Waiting,
    /// Being done.
    Running,
    /// At its end.
    Done(Outcome),
}

/// What changes while it runs.
#[derive(Debug)]
pub(super) struct Life {
    pub state: State,
    pub started: Option<DateTime<Utc>>,
    pub counts: Counts,
    pub slots: Vec<Slot>,
    pub running: usize,
    /// Why it ends otherwise than its targets.
    pub verdict: Option<(State, String)>,
    /// Whoever gets to the end first writes it down.
    pub ending: bool,
    /// How far it is, as it was written down, and when.
    pub written: (State, usize),
    pub noted: Instant,
    /// As it is written down, once it is at its end.
    pub ended: Option<Arc<Record>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Active {
    /// As it was asked for.
    pub record: Record,
    pub parameters: Arc<Value>,
    /// The right to carry it out.
    pub token: Token,
    /// The lease that its markers hang on, by its number.
    pub lease: u64,
    /// Under which it was carried out before this daemon came.
    pub before: Option<Token>,
    /// Why what was not begun before must not be begun now.
    pub barred: Option<String>,
    pub deadline: Option<Instant>,
    /// The request that asked for it, for the log.
    pub asked: Span,
    pub cancel: Arc<Cancel>,
    /// The markers; held while the head is written.
    pub claim: Mutex<Claim>,
    life: Mutex<Life>,
    news: Condvar,
    pub watchers: Watchers,
}

/// Whether somebody has to write the end down, and that is the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Now {
    /// It goes on, or somebody else does it.
    Nothing,
    /// The caller.
    End,
}

impl Active {
    pub(super) fn new(record: Record, token: Token, (lease, claim): (u64, Claim)) -> Self {
        let life = Life {
            state: State::Queued,
            started: record.started,
            counts: Counts { total: record.targets.len(), ..Counts::default() },
            slots: vec![Slot::Waiting; record.targets.len()],
            running: 0,
            verdict: None,
            ending: false,
            written: (State::Queued, 0),
            noted: Instant::now(),
            ended: None,
        };
        Self {
            parameters: Arc::new(record.parameters.clone()),
            record,
            token,
            lease,
            before: None,
            barred: None,
            deadline: None,
            asked: Span::none(),
            cancel: Arc::default(),
            claim: Mutex::new(claim),
            life: Mutex::new(life),
            news: Condvar::new(),
            watchers: Watchers::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task of a target.
    pub(super) fn task(&self, index: usize, fence: &Arc<Fence>) -> Option<Task> {
        Some(Task {
            operation: self.record.id,
            kind: self.record.kind,
            target: self.record.targets.get(index)?.clone(),
            parameters: Arc::clone(&self.parameters),
            token: self.token.clone(),
            deadline: self.deadline,
            cancel: Arc::clone(&self.cancel),
            fence: Arc::clone(fence),
        })
    }

    /// Begins a target, unless that is not wanted any more.
    pub(super) fn begin(&self, index: usize, now: DateTime<Utc>) -> bool {
        let mut life = self.lock();
        if !matches!(life.slots.get(index), Some(Slot::Waiting)) {
            return false;
        }
        life.slots[index] = Slot::Running;
        life.running += 1;
        let first = life.state == State::Queued;
        life.state = life.state.advance(State::Running).unwrap_or(life.state);
        life.started.get_or_insert(now);
        drop(life);
        if first {
            self.tell(None, &Value::Null);
        }
        true
    }

    /// A target is tried again later.
    pub(super) fn postpone(&self, index: usize) -> bool {
        let mut life = self.lock();
        if life.verdict.is_some() {
            return false;
        }
        life.running -= 1;
        life.slots[index] = Slot::Waiting;
        true
    }

    /// A target that was begun is at its end.
    pub(super) fn finish(&self, index: usize, outcome: Outcome) -> Now {
        let mut life = self.lock();
        life.running -= 1;
        life.counts.add(outcome.state);
        life.slots[index] = Slot::Done(outcome);
        let now = life.claim_end();
        drop(life);
        if now == Now::Nothing {
            self.tell(Some(index), &Value::Null);
        }
        now
    }

    /// What was not begun never is; what was goes on to its end, and is told.
    pub(super) fn give_up(&self, (state, reason): (State, &str), operation: Option<State>) -> Now {
        let mut life = self.lock();
        if life.ending || life.verdict.is_some() {
            return Now::Nothing;
        }
        life.verdict = Some((operation.unwrap_or(state), reason.to_owned()));
        let Life { slots, counts, .. } = &mut *life;
        for slot in slots.iter_mut().filter(|slot| matches!(slot, Slot::Waiting)) {
            *slot = Slot::Done(Outcome::because(state, reason));
            counts.add(state);
        }
        let now = life.claim_end();
        drop(life);
        self.cancel.ask();
        now
    }

    /// Says to all who watch how far it is.
    pub(super) fn tell(&self, target: Option<usize>, step: &Value) {
        self.watchers.tell(|| self.progress(target, step));
    }

    pub(super) fn progress(&self, target: Option<usize>, step: &Value) -> Progress {
        let life = self.lock();
        let (state, done, total) = (life.state, life.counts.done(), life.counts.total);
        Progress { operation: self.record.id, state, target, step: step.clone(), done, total }
    }

    /// As it is now, with what came of targets so far.
    pub(super) fn snapshot(&self) -> Record {
        let life = self.lock();
        if let Some(record) = &life.ended {
            return Record::clone(record);
        }
        let results = life.slots.iter().map(|slot| match slot {
            Slot::Waiting => Outcome::in_state(State::Queued),
            Slot::Running => Outcome::in_state(State::Running),
            Slot::Done(outcome) => outcome.clone(),
        });
        let results = results.collect();
        Record {
            parameters: self.record.parameters.clone(),
            targets: self.record.targets.clone(),
            results,
            ..self.head(&life)
        }
    }

    /// The same without targets and results.
    pub(super) fn summary(&self) -> Record {
        let life = self.lock();
        life.ended.as_ref().map_or_else(|| self.head(&life), |record| record.head())
    }

    pub(super) fn head(&self, life: &Life) -> Record {
        let (state, started, counts) = (life.state, life.started, life.counts);
        Record { state, started, counts, token: Some(self.token.number), ..self.record.head() }
    }

    /// It is written down how it ended.
    pub(super) fn close(&self, record: Record) {
        let mut life = self.lock();
        life.state = record.state;
        life.ended = Some(Arc::new(record));
        drop(life);
        self.news.notify_all();
        self.tell(None, &Value::Null);
    }

    /// Sleeps until it is at its end; `None` if the time is over before.
    pub(super) fn wait(&self, limit: Option<Duration>) -> Option<Record> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut life = self.lock();
        loop {
            if let Some(record) = &life.ended {
                return Some(Record::clone(record));
            }
            life = match deadline {
                None => self.news.wait(life).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
                    self.news.wait_timeout(life, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Why it cannot be cancelled.
    pub(super) fn refuse_cancel(record: &Record) -> Error {
        let operation = format!("cancel operation {}", record.id);
        Error::new(Fault::State, operation, format!("it has ended already: it is {}", record.state))
    }
}

impl Life {
    /// Whether all targets are at their end, and nobody writes that down yet.
    fn claim_end(&mut self) -> Now {
        if self.ending || self.running > 0 || self.counts.done() < self.counts.total {
            return Now::Nothing;
        }
        self.ending = true;
        Now::End
    }
}
