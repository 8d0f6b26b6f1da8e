//! The end of a keeper: told to, or because its template is of no use any more.
//!
//! ```text
//! retire   new requests go elsewhere; those that came here are done; sandboxes go when nobody waits any more
//! fail     the template is let go; whoever waits or comes hears why; clones that are attended go on
//! stop     everything goes, but clones that are to be kept
//! ```

use std::time::Duration;

use super::crew::Urgency;
use super::keeper::Keeper;
use super::loading::Own;
use super::task::Task;
use crate::error::Error;
use crate::template::message::{Answer, Phase, Reply, Report, Stage, encode};

/// Between the last words of a process and its end.
pub(super) const MOMENT: Duration = Duration::from_millis(200);

impl Keeper {
    /// A newer keeper has the socket.
    pub(super) fn retire(&mut self) {
        match self.phase {
            Phase::Ready => self.enter_phase(Phase::Retiring),
            // What is not loaded by now is loaded for nobody.
            Phase::Loading => self.stop(),
            Phase::Retiring | Phase::Ended => {}
        }
    }

    /// No more clones, for this reason.
    pub(super) fn fail(&mut self, error: Error) {
        if self.reason.is_some() {
            return;
        }
        tracing::warn!("{error}");
        self.reason = Some(error);
        self.let_go();
        self.enter_phase(Phase::Retiring);
    }

    /// Everything ends now.
    pub(super) fn stop(&mut self) {
        self.let_go();
        for caller in self.requests.as_ref().map(|callers| callers.everybody()).unwrap_or_default() {
            self.dismiss_caller(caller);
        }
        if self.phase != Phase::Retiring {
            self.enter_phase(Phase::Retiring);
        }
    }

    /// Whoever ordered us is gone before there was anything to tell: nobody would know of this keeper.
    pub(super) fn orphaned(&mut self) {
        if let Some(channel) = self.birth.take() {
            self.watch.remove(&channel);
        }
        if self.phase == Phase::Loading {
            self.stop();
        }
    }

    /// Lets go of the template and of what was only for it. Who waits is told.
    fn let_go(&mut self) {
        self.deadline = None;
        if let Err(error) = self.home.withdraw() {
            self.note(&error);
        }
        self.make_no_more();
        if let Some(held) = self.held.take() {
            self.watch.remove(held.channel());
            if let Err(error) = held.close() {
                self.note(&error);
            }
        }
        // One that is still being made goes when it is there.
        if let Some(Own::Made { .. }) = self.own.take() {
            self.crew.push(Task::Remove { container: self.container.clone() }, Urgency::Later);
        }
        while let Some(waiting) = self.waiting.pop_front() {
            self.release(waiting.caller);
            let error = self.unavailable();
            self.answer(waiting.caller, &Answer::Failed { error, stage: Stage::Before });
        }
    }

    /// Whether nobody needs us any more.
    pub(super) fn is_over(&mut self) -> bool {
        if self.phase != Phase::Retiring {
            return false;
        }
        // Those in line at the door are still served; who comes later finds another door.
        let waited_for = self.requests.as_ref().is_some_and(|callers| !callers.everybody().is_empty());
        if waited_for || !self.waiting.is_empty() {
            return false;
        }
        if self.held.is_some() {
            // Retired, and the last one was served.
            self.let_go();
            return false;
        }
        self.crew.is_idle() && self.leaving.is_empty()
    }

    /// The last that is done.
    pub(super) fn leave(mut self) {
        self.phase = Phase::Ended;
        if let Some(callers) = &mut self.requests {
            if let Some(door) = callers.door() {
                self.watch.remove(door);
            }
            callers.close_door();
        }
        let ended = Reply::Ended { error: self.reason.clone() };
        for watcher in self.commands.watchers() {
            self.commands.say(watcher, &ended);
        }
        if let Some(channel) = self.birth.take() {
            let error = self.reason.clone().unwrap_or_else(|| self.unavailable());
            let told = encode(&Report::Failed { error }).and_then(|text| channel.send(&text, &[]));
            if let Err(error) = told {
                tracing::debug!("{error}");
            }
        }
        if let Err(error) = self.home.leave() {
            tracing::warn!("{error}");
        }
        self.crew.dismiss();
    }
}
