//! How a keeper is, for whoever asks.

use std::time::{Duration, Instant};

use super::crew::Urgency;
use super::keeper::Keeper;
use super::task::Task;
use crate::sys::process::Identity;
use crate::template::message::{Memory, PROTOCOL, Status};

/// How long a measurement is told: reading the memory of a large program takes time.
const FRESH: Duration = Duration::from_secs(5);

impl Keeper {
    pub(super) fn describe(&self) -> Status {
        let process = self.held.as_ref().and_then(|held| Identity::of(held.process().pid()).ok());
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Status {
            protocol: PROTOCOL,
            owner: self.order.definition.owner.clone(),
            name: self.order.definition.name.clone(),
            generation: self.order.generation,
            phase: self.phase,
            keeper: self.status.identity.clone(),
            container: self.container.clone(),
            process,
            language: self.loaded.as_ref().map(|loaded| loaded.language.clone()),
            started: self.status.started,
            ready: self.status.ready,
            sandboxes: count(self.sandboxes.len()),
            wanted: count(self.wanted()),
            reason: self.reason.as_ref().map(ToString::to_string),
            clones: self.status.clones,
            failed: self.status.failed,
            durations: self.status.durations.clone(),
            attended: count(self.requests.as_ref().map_or(0, super::caller::Callers::attended)),
            waiting: count(self.waiting.len()),
            memory: Memory { sandbox: self.weight.mean(), ..self.status.memory },
            notes: self.status.notes.clone(),
        }
    }

    /// Has the memory measured, unless that was done a moment ago. It is told the next time.
    pub(super) fn measure(&mut self) {
        let Some(held) = &self.held else { return };
        let now = Instant::now();
        if self.status.measured.is_some_and(|then| now.saturating_duration_since(then) < FRESH) {
            return;
        }
        let Ok(template) = Identity::of(held.process().pid()) else { return };
        self.status.measured = Some(now);
        let own = self.crew.pids().into_iter().filter_map(|pid| Identity::of(i32::try_from(pid).ok()?).ok());
        let processes = [template, self.status.identity.clone()].into_iter().chain(own).collect();
        self.crew.push(Task::Measure { processes }, Urgency::Later);
    }

    pub(super) fn take_measures(&mut self, bytes: &[u64]) {
        if let [process, keepers @ ..] = bytes {
            self.status.memory.process = Some(*process);
            self.status.memory.keeper = Some(keepers.iter().sum());
        }
    }
}
