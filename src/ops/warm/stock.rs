//! The sandboxes that wait for clones: made and taken away by workers, made ready here.

use super::crew::{Urgency, Word};
use super::keeper::Keeper;
use super::pool::{self, Stock};
use super::task::{Made, Outcome, Part, Task, Ways};
use super::watch::Source;
use crate::cgroup::Cgroup;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::Berth;
use crate::sys::process::Process;
use crate::template::message::{Answer, Phase, Stage};
use crate::template::proxy::{Guest, Sandbox as Place};

/// Sandboxes in a row that may fail before no more are made unless somebody waits.
const FAILURES: u32 = 3;

/// A container that waits for a clone, with the clone's place in it.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub number: u64,
    pub container: ContainerId,
    pub init: Process,
    pub cgroup: Cgroup,
    pub berth: Berth,
    pub guest: Guest,
}

/// A container that has a clone, whose first process has not said yet that it looks after it. Without us it would end.
#[derive(Debug)]
pub(super) struct Leaving {
    pub container: ContainerId,
    pub berth: Berth,
}

impl Keeper {
    /// Has as many sandboxes made as are lacking.
    pub(super) fn refill(&mut self) {
        let wanted = match self.phase {
            Phase::Ready if self.failures < FAILURES => self.wanted(),
            Phase::Ready | Phase::Loading | Phase::Retiring | Phase::Ended => 0,
        };
        if self.held.is_none() || self.loaded.is_none() {
            return;
        }
        let making = self.crew.count(|task| matches!(task, Task::Make { .. }));
        let stock = Stock { ready: self.sandboxes.len(), making, waiting: self.waiting.len() };
        for _ in 0..pool::lacking(wanted, stock) {
            self.number += 1;
            match self.order.sandbox(self.number) {
                Ok(container) => {
                    let urgency = if self.waiting.is_empty() { Urgency::Later } else { Urgency::Now };
                    self.crew.push(Task::Make { container, part: Part::Sandbox }, urgency);
                }
                Err(error) => return self.fail(error),
            }
        }
    }

    /// How many are to wait.
    pub(super) fn wanted(&self) -> usize {
        pool::wanted(self.order.definition.pool, self.order.definition.pool_memory, self.weight)
    }

    /// A worker has done something, or could not.
    pub(super) fn take_outcome(&mut self, word: Word) {
        let Word { task, outcome, descriptors } = word;
        match (task, outcome) {
            (Task::Make { container, part }, Outcome::Made(made)) => {
                self.take_container(container, part, *made, descriptors)
            }
            (Task::Make { container, part }, Outcome::Failed { error }) => self.miss(&container, part, error),
            (Task::Measure { .. }, Outcome::Measured { bytes }) => self.take_measures(&bytes),
            (Task::Remove { .. } | Task::Settle { .. }, Outcome::Done) => {}
            (Task::Remove { .. } | Task::Settle { .. } | Task::Measure { .. }, Outcome::Failed { error }) => {
                self.note(&error);
            }
            (task, Outcome::Made(_) | Outcome::Done | Outcome::Measured { .. }) => {
                let operation = format!("keep template '{}'", self.order.definition);
                self.note(&Error::new(Kind::System, operation, "a worker answers what it was not asked"));
                self.replace_task(task);
            }
        }
    }

    /// Whoever was at it is dead: what may be half done goes.
    pub(super) fn replace_task(&mut self, task: Task) {
        match task {
            Task::Make { container, part } => {
                self.crew.push(Task::Remove { container: container.clone() }, Urgency::Later);
                let cause = "the worker that made it has died";
                self.miss(&container, part, Error::new(Kind::System, format!("create container '{container}'"), cause));
            }
            // Doing it twice does no harm.
            Task::Remove { .. } | Task::Settle { .. } => self.crew.push(task, Urgency::Now),
            Task::Measure { .. } => {}
        }
    }

    fn take_container(&mut self, container: ContainerId, part: Part, made: Made, files: Vec<std::os::fd::OwnedFd>) {
        let Ok([channel, directory]) = <[_; 2]>::try_from(files) else {
            self.crew.push(Task::Remove { container: container.clone() }, Urgency::Later);
            let cause = "its files did not arrive";
            return self.miss(
                &container,
                part,
                Error::new(Kind::System, format!("create container '{container}'"), cause),
            );
        };
        let ways = Ways { channel, directory };
        match part {
            Part::Template if self.phase == Phase::Loading => self.load(made, ways),
            Part::Sandbox if self.held.is_some() && self.is_wanted() => {
                match self.shelve(container.clone(), made, ways) {
                    Ok(()) => self.failures = 0,
                    Err(error) => {
                        self.crew.push(Task::Remove { container: container.clone() }, Urgency::Later);
                        self.miss(&container, part, error);
                    }
                }
            }
            Part::Template | Part::Sandbox => self.crew.push(Task::Remove { container }, Urgency::Later),
        }
    }

    /// Whether one more sandbox has a use.
    fn is_wanted(&self) -> bool {
        match self.phase {
            Phase::Ready => true,
            Phase::Retiring => !self.waiting.is_empty(),
            Phase::Loading | Phase::Ended => false,
        }
    }

    /// Makes a clone's place in a sandbox ready.
    fn shelve(&mut self, container: ContainerId, made: Made, ways: Ways) -> Result<()> {
        let operation = || format!("make sandbox '{container}' ready");
        let gone = || Error::new(Kind::State, operation(), "its first process has ended");
        let Made { init, cgroup, memory, .. } = made;
        let (Some(held), Some(loaded)) = (&mut self.held, &self.loaded) else { return Err(gone()) };
        let place = Place::new(init.open()?.ok_or_else(gone)?, &cgroup)?;
        let berth = Berth::from_files(ways.channel, ways.directory);
        let prepared = held.prepare(&place, &loaded.persona, berth.directory());
        let guest = self.check_sound(prepared)?;
        let number = self.number_of(&container);
        self.watch.add(berth.channel(), Source::Sandbox(number))?;
        self.weight.add(memory);
        self.sandboxes.push_back(Sandbox { number, container, init: place.init, cgroup, berth, guest });
        Ok(())
    }

    fn number_of(&self, container: &ContainerId) -> u64 {
        container.as_str().rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or_default()
    }

    /// After every use of the template: one that was tampered with is of no use any more.
    pub(super) fn check_sound<T>(&mut self, result: Result<T>) -> Result<T> {
        let unsound = self.held.as_ref().is_some_and(|held| !held.is_sound());
        if let (Err(error), true) = (&result, unsound) {
            let error = error.clone();
            self.fail(error);
        }
        result
    }

    /// A container could not be made.
    fn miss(&mut self, container: &ContainerId, part: Part, error: Error) {
        match part {
            Part::Template => self.fail(error.during(format!("load template '{}'", self.order.definition))),
            Part::Sandbox => {
                self.failures = self.failures.saturating_add(1);
                tracing::warn!("sandbox '{container}': {error}");
                self.note(&error);
                // Whoever waits longest waits for this one.
                if let Some(waiting) = self.waiting.pop_front() {
                    self.release(waiting.caller);
                    let operation = format!("clone template '{}'", self.order.definition);
                    self.answer(
                        waiting.caller,
                        &Answer::Failed { error: error.during(operation), stage: Stage::Before },
                    );
                }
            }
        }
    }

    /// The first process of a sandbox says that it looks after its clone, or is gone.
    pub(super) fn hear_sandbox(&mut self, number: u64) {
        if let Some(Leaving { container, berth }) = self.leaving.remove(&number) {
            self.watch.remove(berth.channel());
            if let Err(error) = berth.hear_adopted() {
                self.note(&error.during(format!("start container '{container}'")));
            }
            return;
        }
        let Some(index) = self.sandboxes.iter().position(|sandbox| sandbox.number == number) else { return };
        if let Some(sandbox) = self.sandboxes.remove(index) {
            // Somebody has deleted it, or killed its first process.
            self.throw_away(sandbox);
        }
    }

    /// Takes a sandbox away that nobody will use.
    pub(super) fn throw_away(&mut self, sandbox: Sandbox) {
        self.watch.remove(sandbox.berth.channel());
        if let Some(held) = &mut self.held
            && let Err(error) = held.dismiss(sandbox.guest)
        {
            tracing::debug!("{error}");
        }
        self.crew.push(Task::Remove { container: sandbox.container }, Urgency::Later);
    }

    /// What was in line to be made is not made any more.
    pub(super) fn make_no_more(&mut self) {
        self.crew.forget(|task| matches!(task, Task::Make { .. }));
        while let Some(sandbox) = self.sandboxes.pop_front() {
            self.throw_away(sandbox);
        }
    }
}
