//! An operation that is not at its end, as this daemon knows it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tracing::Span;

use super::executor::{Cancel, Task};
use super::follow::{Progress, Watchers};
use crate::error::{Error, Kind as Fault};
use crate::operation::course::{Afterwards, Course, Now, Slot};
use crate::operation::fence::{Fence, Token};
use crate::operation::lane::Work;
use crate::operation::marker::Claim;
use crate::operation::{Outcome, Record, State, Target};

/// What changes while it runs.
#[derive(Debug)]
pub(super) struct Life {
    pub course: Course,
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

impl Work for Active {
    fn targets(&self) -> &[Target] {
        &self.record.targets
    }
}

impl Active {
    /// One of which this is known.
    pub(super) fn new(record: Record, token: Token, (lease, claim): (u64, Claim), before: Afterwards) -> Self {
        let mut course = Course::new(record.targets.len(), before);
        course.started = record.started;
        let life = Life { course, written: (State::Queued, 0), noted: Instant::now(), ended: None };
        Self {
            parameters: Arc::new(record.parameters.clone()),
            record,
            token,
            lease,
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
            since: self.record.since.unwrap_or(self.token.number),
            deadline: self.deadline,
            cancel: Arc::clone(&self.cancel),
            fence: Arc::clone(fence),
        })
    }

    /// Begins a target, unless that is not wanted any more. What is known of it from before.
    pub(super) fn begin(&self, index: usize, now: DateTime<Utc>) -> Option<Afterwards> {
        let mut life = self.lock();
        let first = life.course.state == State::Queued;
        let before = life.course.begin(index, now);
        drop(life);
        if first && before.is_some() {
            self.tell(None, &Value::Null);
        }
        before
    }

    /// A target is tried again later; `None`, unless the operation was given up meanwhile.
    pub(super) fn postpone(&self, index: usize, after: Afterwards) -> Option<Now> {
        self.lock().course.postpone(index, after)
    }

    /// A target that was begun is at its end.
    pub(super) fn finish(&self, index: usize, outcome: Outcome) -> Now {
        let now = self.lock().course.finish(index, outcome);
        if now == Now::Nothing {
            self.tell(Some(index), &Value::Null);
        }
        now
    }

    /// What was not begun never is; what was goes on to its end, and is told.
    pub(super) fn give_up(&self, why: (State, &str), operation: Option<State>) -> Now {
        let now = self.lock().course.give_up(why, operation);
        if now.is_some() {
            self.cancel.ask();
        }
        now.unwrap_or(Now::Nothing)
    }

    /// Says to all who watch how far it is.
    pub(super) fn tell(&self, target: Option<usize>, step: &Value) {
        self.watchers.tell(|| self.progress(target, step));
    }

    pub(super) fn progress(&self, target: Option<usize>, step: &Value) -> Progress {
        let life = self.lock();
        let (state, counts) = (life.course.state, life.course.counts);
        Progress {
            operation: self.record.id,
            state,
            target,
            step: step.clone(),
            done: counts.done(),
            total: counts.total,
        }
    }

    /// As it is now, with what came of targets so far.
    pub(super) fn snapshot(&self) -> Record {
        let life = self.lock();
        if let Some(record) = &life.ended {
            return Record::clone(record);
        }
        let results = life.course.slots().iter().map(|slot| match slot {
            Slot::Waiting(_) => Outcome::in_state(State::Queued),
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
        let Course { state, started, counts, .. } = life.course;
        Record { state, started, counts, token: Some(self.token.number), ..self.record.head() }
    }

    /// It is written down how it ended.
    pub(super) fn close(&self, record: Record) {
        let mut life = self.lock();
        life.course.state = record.state;
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
