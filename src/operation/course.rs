//! The course of an operation: where each of its targets is, and how it ends.
//!
//! ```text
//! waiting ──begin──> running ──finish──> succeeded | failed | cancelled | unknown
//!    ^  └──────────────┼──────give up────────^
//!    └────postpone─────┘
//! ```
//!
//! A target that waits may have been done nevertheless: by an attempt that nobody answered, or by a daemon that is gone. What
//! is not known is never called undone, whoever gives it up and why.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Counts, Kind, Outcome, State, retry};
use crate::error::Error;

/// What is known of a target that is not at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It was not done.
    NotDone,
    /// It may have been.
    Unknown,
}

impl Afterwards {
    /// What is known after two of which these are known.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self == Self::NotDone { other } else { self }
    }
}

/// Where a target is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// To be begun, for the first time or again.
    Waiting(Afterwards),
    /// Being done.
    Running,
    /// At its end.
    Done(Outcome),
}

/// Whether somebody has to write the end down, and that is the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Now {
    /// It goes on, or somebody else does it.
    Nothing,
    /// The caller.
    End,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Course {
    /// Where the operation is in its life.
    pub state: State,
    /// When the first target was begun.
    pub started: Option<DateTime<Utc>>,
    /// How many targets are at which end.
    pub counts: Counts,
    /// How many are being done.
    pub running: usize,
    slots: Vec<Slot>,
    /// Why it ends otherwise than its targets.
    verdict: Option<(State, String)>,
    /// Whoever gets to the end first writes it down.
    ending: bool,
}

/// What a failed attempt leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The target's end.
    End(State),
    /// Another attempt, after so long.
    Again(Duration),
}

/// What is known of a failed attempt.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    /// Why.
    pub error: &'a Error,
    /// The how-manyth it was.
    pub attempts: u32,
    /// Whether this attempt or one before may have done it nevertheless.
    pub after: Afterwards,
    /// Whether it is not wanted any more.
    pub is_cancelled: bool,
}

impl Failed<'_> {
    /// Decides. `chance` divides those who failed together.
    #[must_use]
    pub fn next(&self, kind: Kind, chance: u32) -> Next {
        let wait = retry::wait(kind, self.error, self.attempts, chance).filter(|_| !self.is_cancelled);
        match (wait, self.after) {
            (Some(wait), _) => Next::Again(wait),
            (None, Afterwards::Unknown) => Next::End(State::Unknown),
            (None, Afterwards::NotDone) if self.is_cancelled => Next::End(State::Cancelled),
            (None, Afterwards::NotDone) => Next::End(State::Failed),
        }
    }
}

impl Course {
    /// Of so many targets, of each of which this is known.
    #[must_use]
    pub fn new(total: usize, before: Afterwards) -> Self {
        Self {
            state: State::Queued,
            started: None,
            counts: Counts { total, ..Counts::default() },
            running: 0,
            slots: vec![Slot::Waiting(before); total],
            verdict: None,
            ending: false,
        }
    }

    /// Where each target is.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Whether it is at its end, and somebody writes that down.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending
    }

    /// Begins a target, unless that is not wanted any more. What is known of it from before.
    pub fn begin(&mut self, index: usize, now: DateTime<Utc>) -> Option<Afterwards> {
        let Some(Slot::Waiting(before)) = self.slots.get(index) else { return None };
        let before = *before;
        self.slots[index] = Slot::Running;
        self.running += 1;
        self.state = self.state.advance(State::Running).unwrap_or(self.state);
        self.started.get_or_insert(now);
        Some(before)
    }

    /// A target is tried again later, unless the operation was given up meanwhile: then it is at its end, too.
    pub fn postpone(&mut self, index: usize, after: Afterwards) -> Option<Now> {
        if self.verdict.is_none() {
            self.running -= 1;
            self.slots[index] = Slot::Waiting(after);
            return None;
        }
        Some(self.finish(index, given_up(after, State::Cancelled, "it was given up before it was tried again")))
    }

    /// A target that was begun is at its end.
    pub fn finish(&mut self, index: usize, outcome: Outcome) -> Now {
        self.running -= 1;
        self.counts.add(outcome.state);
        self.slots[index] = Slot::Done(outcome);
        self.claim_end()
    }

    /// What waits is never begun; what was begun goes on to its end. `operation` is how the operation then ends, if that is
    /// not the worst of its targets.
    ///
    /// `None` if it is at its end already, or was given up before.
    pub fn give_up(&mut self, (state, reason): (State, &str), operation: Option<State>) -> Option<Now> {
        if self.ending || self.verdict.is_some() {
            return None;
        }
        self.verdict = Some((operation.unwrap_or(state), reason.to_owned()));
        for slot in &mut self.slots {
            if let Slot::Waiting(before) = slot {
                let outcome = given_up(*before, state, reason);
                self.counts.add(outcome.state);
                *slot = Slot::Done(outcome);
            }
        }
        Some(self.claim_end())
    }

    /// How it ended: as what, why if that is one reason for all, and what came of each target.
    #[must_use]
    pub fn last_words(&self) -> (State, Option<String>, Vec<Outcome>) {
        let outcome = |slot: &Slot| match slot {
            Slot::Done(outcome) => outcome.clone(),
            // All are at their end.
            Slot::Waiting(_) | Slot::Running => Outcome::because(State::Unknown, "it did not come to its end"),
        };
        let results: Vec<Outcome> = self.slots.iter().map(outcome).collect();
        let (state, error) = match &self.verdict {
            Some((state, reason)) if self.counts.succeeded < self.counts.total => (*state, Some(reason.clone())),
            Some(_) | None => (self.counts.verdict(), None),
        };
        // What failed by itself is not hidden by a cancellation.
        let state = if state == State::Cancelled { self.counts.verdict() } else { state };
        let alone = (results.len() == 1).then(|| results[0].error.clone()).flatten();
        (state, error.or(alone), results)
    }

    fn claim_end(&mut self) -> Now {
        if self.ending || self.running > 0 || self.counts.done() < self.counts.total {
            return Now::Nothing;
        }
        self.ending = true;
        Now::End
    }
}

fn given_up(before: Afterwards, state: State, reason: &str) -> Outcome {
    match before {
        Afterwards::NotDone => Outcome::because(state, reason),
        Afterwards::Unknown => {
            Outcome::because(State::Unknown, format!("{reason}, but it may have been done by an earlier attempt"))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::error::Kind as Fault;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    #[test]
    fn what_may_have_been_done_is_never_called_undone() {
        let lost = (State::Cancelled, "the lease is lost");
        for (before, state) in [(Afterwards::NotDone, State::Cancelled), (Afterwards::Unknown, State::Unknown)] {
            let mut waits = Course::new(1, before);
            assert_eq!(waits.give_up(lost, Some(State::Unknown)), Some(Now::End));
            assert_eq!(waits.last_words().2[0].state, state);
            let mut tried = Course::new(2, Afterwards::NotDone);
            assert_eq!(tried.begin(0, now()), Some(Afterwards::NotDone));
            assert_eq!(tried.postpone(0, before), None);
            assert_eq!(tried.begin(0, now()), Some(before), "it is remembered");
            assert_eq!(tried.give_up(lost, None), Some(Now::Nothing), "one is being done");
            assert_eq!(tried.postpone(0, before), Some(Now::End), "it is not tried again");
            assert_eq!(tried.last_words().2[0].state, state);
        }
    }

    #[test]
    fn an_operation_ends_once_and_nothing_is_begun_after() {
        let mut course = Course::new(2, Afterwards::NotDone);
        assert_eq!((course.begin(0, now()), course.begin(0, now())), (Some(Afterwards::NotDone), None));
        assert_eq!(course.finish(0, Outcome::succeeded(serde_json::Value::Null)), Now::Nothing);
        assert_eq!(course.give_up((State::Cancelled, "enough"), None), Some(Now::End));
        assert_eq!(course.give_up((State::Cancelled, "enough"), None), None);
        assert_eq!(course.begin(1, now()), None);
        let (state, error, results) = course.last_words();
        assert_eq!((state, error.as_deref(), results.len()), (State::Cancelled, Some("enough"), 2));
    }

    #[test]
    fn a_failure_is_unknown_where_somebody_may_have_done_it() {
        let error = Error::new(Fault::State, "x", "y");
        let next =
            |after, is_cancelled| Failed { error: &error, attempts: 1, after, is_cancelled }.next(Kind::Probe, 0);
        assert_eq!(next(Afterwards::NotDone, false), Next::End(State::Failed));
        assert_eq!(next(Afterwards::NotDone, true), Next::End(State::Cancelled));
        assert_eq!(next(Afterwards::Unknown, false), Next::End(State::Unknown));
        assert_eq!(next(Afterwards::Unknown, true), Next::End(State::Unknown));
        let busy = Error::new(Fault::Busy, "x", "y");
        let failed = Failed { error: &busy, attempts: 1, after: Afterwards::Unknown, is_cancelled: false };
        assert!(matches!(failed.next(Kind::Probe, 0), Next::Again(_)));
        assert_eq!(failed.next(Kind::RingRollback, 0), Next::End(State::Unknown));
    }
}
