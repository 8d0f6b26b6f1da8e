//! The end of an instance: told, waited for, written down, saved.

use std::time::Instant;

use chrono::Utc;

use super::family::{self, Family, First, Pace};
use super::signal::effective;
use super::stage::Stage;
use super::watch::Keeper;
use crate::error::{Error, Kind, Result};
use crate::ops::save::{self, Saved};
use crate::runtime;
use crate::service::message::{Outcome, Phase};
use crate::sys::process::{ExitStatus, Identity};
use crate::sys::signal::Signal;

impl Keeper {
    /// Tells the instance to end, in its own way, unless it was told before.
    pub(super) fn stop(&mut self) {
        if matches!(self.stage.phase(), Phase::Stopping | Phase::Ended) {
            return;
        }
        self.requested = true;
        if let Err(error) = self.holding.end_probing() {
            self.note(&error.to_string());
        }
        if self.succeeded {
            // What still waits in listeners that the program closes goes to the successor's, if nobody else holds them.
            self.holding.release();
        }
        self.enter(Stage::stopping(Instant::now()));
        // Once their parent has ended, nobody can say whose they were.
        self.look_for_family();
        let signal = effective(self.init.pid, self.order.definition.stop_signal);
        if let Err(error) = self.send(signal) {
            self.note(&error.to_string());
        }
    }

    /// Ends an instance that will never serve.
    pub(super) fn end_because(&mut self, reason: String) {
        self.note(&reason);
        self.reason = Some(reason);
        self.stop();
    }

    /// It had its time.
    pub(super) fn kill(&mut self) {
        let killed = self.send(Signal::KILL).and_then(|()| match self.order.adopt {
            Some(_) => Ok(()),
            None => gone_is_fine(runtime::kill(&self.place.root, &self.order.instance, Signal::KILL, true)),
        });
        if let Err(error) = killed {
            self.note(&error.to_string());
        }
        self.look_for_family();
        self.tell_family(&self.others());
    }

    fn send(&self, signal: Signal) -> Result<()> {
        match self.order.adopt {
            Some(_) => self.process.signal(signal).map(drop),
            // Notes that the end was asked for.
            None => gone_is_fine(runtime::kill(&self.place.root, &self.order.instance, signal, false)),
        }
    }

    /// The instance's first process has ended: everything else of it does too.
    pub(super) fn end(&mut self) {
        if !self.is_survived() {
            self.complete();
        }
    }

    /// Whether other processes of an adopted program are left. One that was not told to end goes on while one of them has a
    /// socket of it, as a server does whose master has crashed; else they are told to end.
    fn is_survived(&mut self) -> bool {
        self.look_for_family();
        let others = self.others();
        let is_stopping = self.stage.phase() == Phase::Stopping;
        if !is_stopping && self.is_inherited(&others) {
            return true;
        }
        let Some(family) = self.family.as_mut().filter(|_| !others.is_empty()) else { return false };
        family.first = First::Ended;
        if !is_stopping {
            self.enter(Stage::stopping(Instant::now()));
        }
        self.tell_family(&others);
        // The next look is soon from now on.
        self.look_for_family();
        true
    }

    /// Puts one that has a socket in the place of the first process.
    fn is_inherited(&mut self, others: &[Identity]) -> bool {
        for heir in others {
            let held =
                self.holding.is_held_by(heir.pid).and_then(|held| if held { family::open(heir) } else { Ok(None) });
            match held {
                Ok(Some(process)) => {
                    self.note(&format!("process {} has ended by itself, process {} goes on", self.init.pid, heir.pid));
                    (self.init, self.process) = (heir.clone(), process);
                    return true;
                }
                Ok(None) => {}
                Err(error) => self.note(&error.to_string()),
            }
        }
        false
    }

    /// What time brings to an adopted program: new processes, and the end of the last one.
    pub(super) fn follow_family(&mut self) {
        self.look_for_family();
        let all_ended = |family: &Family| family.first == First::Ended && family.known().is_empty();
        if self.family.as_ref().is_some_and(all_ended) {
            self.complete();
        }
    }

    /// Looks which processes an adopted program has. Those that come too late to end with the others are told at once.
    pub(super) fn look_for_family(&mut self) {
        let Some(family) = &mut self.family else { return };
        let pace = if self.stage.phase() == Phase::Stopping { Pace::Often } else { Pace::Seldom };
        let (looked, first) = (family.look(&self.init, pace), family.first);
        match looked {
            Ok(new) if first == First::Ended || self.is_killed() => self.tell_family(&new),
            Ok(_) => {}
            Err(error) => self.note(&error.to_string()),
        }
    }

    fn others(&self) -> Vec<Identity> {
        self.family.as_ref().map_or_else(Vec::new, |family| family.known().to_vec())
    }

    fn is_killed(&self) -> bool {
        matches!(self.stage, Stage::Stopping { kill_at: None })
    }

    /// Tells these to end, in the way that the first process was told.
    fn tell_family(&mut self, members: &[Identity]) {
        for member in members {
            let stop = self.order.definition.stop_signal;
            let signal = if self.is_killed() { Signal::KILL } else { effective(member.pid, stop) };
            let told =
                family::open(member).and_then(|process| process.map(|process| process.signal(signal)).transpose());
            if let Err(error) = told {
                self.note(&error.to_string());
            }
        }
    }

    /// Nothing of the instance runs any more: its state is saved.
    fn complete(&mut self) {
        self.family = None;
        let status = self.process.reap().unwrap_or_else(|error| {
            self.note(&error.to_string());
            None
        });
        self.take_output();
        self.log.finish();
        if let Err(error) = self.holding.end_probing() {
            self.note(&error.to_string());
        }
        self.holding.outlive();
        if !self.requested {
            let how = status.map_or_else(|| "in a way that nobody knows".to_owned(), |status| status.to_string());
            self.log.note(&format!("it ended {how}"));
        }
        let exit_code = status.map(ExitStatus::code).map(i32::from);
        if self.order.adopt.is_none() {
            self.save(exit_code);
        }
        // The last processes of the container have ended only now.
        self.take_output();
        self.log.finish();
        let outcome = Outcome {
            exit_code,
            requested: self.requested,
            cut: self.cut,
            ended: Utc::now(),
            reason: self.reason.clone(),
            last_words: self.log.last_words(),
        };
        if let Some(Err(error)) = self.home.as_ref().map(|home| home.note(&outcome)) {
            self.note(&error.to_string());
        }
        self.outcome = Some(outcome);
        self.enter(Stage::Ended);
    }

    /// Deletes the container, and saves what it changed where that is wanted.
    fn save(&mut self, exit_code: Option<i32>) {
        let id = self.order.instance.clone();
        if !self.requested && runtime::stop_requested(&self.place.root, &id).is_ok_and(|signal| signal.is_some()) {
            (self.requested, self.ended_by_others) = (true, true);
        }
        match save::delete(&self.place, &id, true, exit_code) {
            Ok(Saved::Pending(ring, holders)) => {
                let who: Vec<String> = holders.iter().map(ToString::to_string).collect();
                let text = format!("its state is not final in ring '{ring}' while others hold it: {}", who.join(", "));
                self.note(&text);
            }
            Ok(Saved::Sealed(ring, entry)) if entry.side => {
                let seq = entry.seq;
                self.log.note(&format!("its successor does not have what it wrote last: that is '{ring}@{seq}'"));
            }
            Ok(Saved::Nothing | Saved::Unchanged(_) | Saved::Sealed(..)) => {}
            Err(error) if error.kind() == Kind::NotFound => (self.requested, self.ended_by_others) = (true, true),
            Err(error) => {
                self.note(&error.to_string());
                self.reason.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// It may end by itself at any time.
pub(super) fn gone_is_fine(result: Result<()>) -> Result<()> {
    let gone = |error: &Error| matches!(error.kind(), Kind::State | Kind::NotFound);
    result.or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })
}
