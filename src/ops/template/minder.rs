//! One thread for each template: it sees to it that there is a keeper, and the right one.
//!
//! ```text
//!   find ──> arrange ──> look at the source ──> start, if it is time ──> wait ──┐
//!               ^                                                               │ a keeper says something, or ends;
//!               └───────────────────────────────────────────────────────────────┘ the bell; a time
//! ```
//!
//! Of the keepers the newest that is ready is the one; those before it retire, one after it may be loading.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::book::{Outcome, Template};
use super::keeper::{Heard, Keeper, Link, spawn};
use super::record::Wanted;
use super::{Clones, Core, leftover, mark};
use crate::error::{Context, Error, Kind, Result};
use crate::service::definition::Restart;
use crate::service::policy::{Backoff, Decision, Ending};
use crate::template::client::{Controller, generations};
use crate::template::definition::{Definition, ORDER, Order, directory};
use crate::template::message::{Command, Phase, Status};

/// How often it is looked whether the source is another one.
const LOOK: Duration = Duration::from_secs(3);
/// How long keepers may take to end once they were told to.
const ENDING: Duration = Duration::from_secs(30);
/// Enough for what a minder does, and only what is used of it takes memory.
const STACK: usize = 512 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Minder {
    core: Arc<Core>,
    template: Arc<Template>,
    directory: PathBuf,
    /// Oldest first.
    keepers: Vec<Keeper>,
    backoff: Backoff,
    /// When a keeper is started.
    retry: Option<Instant>,
    /// When the source is looked at; never if it is nothing that becomes another one.
    look: Option<Instant>,
    /// Whether the template has not come yet: if its first keeper comes to nothing, it goes.
    creating: bool,
}

/// Lets nobody wait for a thread that is no more.
struct Watchdog(Arc<Template>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error =
                Error::new(Kind::System, format!("look after template '{}'", self.0.key), "a thread has failed")
                    .next("restart 'regen serve'");
            self.0.note(|seen| {
                seen.failure = Some(error.to_string());
                seen.creation = Some(Outcome::Failed(error.clone()));
                seen.gone = Some(Err(error));
            });
        }
    }
}

impl Minder {
    /// Starts to look after a template whose first keeper is to be made.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(super) fn create(core: Arc<Core>, template: Arc<Template>) -> Result<()> {
        let minder = Self { creating: true, retry: Some(Instant::now()), ..Self::new(core, template) };
        minder.spawn()
    }

    /// Starts to look after a template that was written down by an earlier daemon.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(super) fn found(core: Arc<Core>, template: Arc<Template>) -> Result<()> {
        Self::new(core, template).spawn()
    }

    fn new(core: Arc<Core>, template: Arc<Template>) -> Self {
        let directory = directory(&core.place.store, &template.key.owner, &template.key.name);
        let look = mark::moves(&template.lock().record.definition).then(|| Instant::now() + LOOK);
        Self {
            core,
            template,
            directory,
            keepers: Vec::new(),
            backoff: Backoff::default(),
            retry: None,
            look,
            creating: false,
        }
    }

    fn spawn(self) -> Result<()> {
        let operation = || "start the thread that looks after a template";
        let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK);
        thread.spawn(move || self.attend()).context(operation).map(drop)
    }

    fn attend(mut self) {
        let _watchdog = Watchdog(Arc::clone(&self.template));
        let span = tracing::info_span!("template", template = %self.template.key);
        let _within = span.enter();
        if !self.creating {
            self.find();
        }
        self.arrange();
        self.template.note(|seen| seen.looked = true);
        loop {
            if self.goes() && self.template.lock().gone.is_none() {
                self.end();
            }
            if matches!(self.template.lock().gone, Some(Ok(()))) {
                return;
            }
            self.look_at_source();
            self.start_if_due();
            self.wait();
            self.arrange();
        }
    }

    fn definition(&self) -> Definition {
        self.template.lock().record.definition.clone()
    }

    /// Whether it is to go, and not just to come.
    fn goes(&self) -> bool {
        let seen = self.template.lock();
        seen.removed || (seen.record.wanted == Wanted::Removed && !self.creating)
    }

    /// Takes over the keepers that live.
    fn find(&mut self) {
        let found = generations(&self.directory).unwrap_or_else(|error| {
            tracing::error!("{error}");
            Vec::new()
        });
        for generation in found {
            let taken = Controller::connect(&self.directory, generation).and_then(|controller| {
                let Some(controller) = controller else { return Ok(None) };
                let status = controller.status()?;
                controller.tell(Command::Watch)?;
                Ok(Some(Keeper { generation, link: Link::Control(controller), status: Some(status), retires: false }))
            });
            match taken {
                Ok(keeper) => self.keepers.extend(keeper),
                Err(error) => tracing::error!("template '{}': {error}", self.template.key),
            }
        }
        for keeper in self.keepers.iter_mut().filter(|keeper| keeper.has_given_up()) {
            keeper.retires = true;
        }
        if self.keepers.iter().all(|keeper| keeper.retires) {
            self.retry = Some(Instant::now());
        }
    }

    /// Tells keepers apart: one that is ready, those before it, one after it.
    fn arrange(&mut self) {
        let ready = self.keepers.iter().rposition(Keeper::is_ready);
        if let Some(ready) = ready {
            self.keepers[..ready].iter_mut().for_each(Keeper::retire);
        }
        let status = ready.and_then(|ready| self.keepers[ready].status.clone());
        let newer = self.keepers.iter().skip(ready.map_or(0, |ready| ready + 1));
        let loading = newer.filter(|keeper| !keeper.retires).map(|keeper| keeper.generation).next_back();
        self.template.note(|seen| {
            if seen.ready.as_ref().map(|old| old.generation) != status.as_ref().map(|new| new.generation)
                && status.is_some()
            {
                seen.failure = None;
                seen.retry = None;
            }
            seen.ready = status;
            seen.loading = loading;
        });
        if ready.is_some() && std::mem::replace(&mut self.creating, false) {
            self.note_creation();
        }
    }

    fn note_creation(&self) {
        let mut seen = self.template.lock();
        let outcome = self.core.save(&self.template.key, &mut seen, |record| record.wanted = Wanted::Kept);
        drop(seen);
        tracing::info!("template '{}' is ready", self.template.key);
        self.template.note(|seen| seen.creation = Some(outcome.map_or_else(Outcome::Failed, |()| Outcome::Ready)));
    }

    /// Whether it is to be made anew, because what it was made from is another one.
    fn look_at_source(&mut self) {
        let Some(look) = &mut self.look else { return };
        if *look > Instant::now() {
            return;
        }
        *look = Instant::now() + LOOK;
        let (loading, old) = {
            let seen = self.template.lock();
            (seen.loading.is_some(), seen.record.mark.clone())
        };
        if loading {
            return;
        }
        match mark::read(&self.definition(), &self.core.place) {
            Ok(new) if new != old => {
                tracing::info!("template '{}' is made anew: its source is another one", self.template.key);
                self.retry = Some(Instant::now());
            }
            Ok(_) => {}
            // Somebody is just writing it, or took it away: what was made goes on.
            Err(error) => tracing::debug!("{error}"),
        }
    }

    fn start_if_due(&mut self) {
        let loading = self.template.lock().loading.is_some();
        if loading || self.retry.is_none_or(|retry| retry > Instant::now()) || self.goes() {
            return;
        }
        self.retry = None;
        if let Err(error) = self.start() {
            self.fail(error);
        }
    }

    /// Starts a keeper beside those that are there.
    fn start(&mut self) -> Result<()> {
        let (definition, place) = (self.definition(), &self.core.place);
        let mark = mark::read(&definition, place)?;
        let alive: Vec<u64> = self.keepers.iter().map(|keeper| keeper.generation).collect();
        leftover::clear(place, &definition, Clones::Spared, |generation| !alive.contains(&generation))?;
        // Clones of an earlier template of this name keep its names in use.
        let used = leftover::generations(place, &definition)?.into_iter().max().unwrap_or(0);
        let mut seen = self.template.lock();
        self.core.save(&self.template.key, &mut seen, |record| {
            record.generation = record.generation.max(used) + 1;
            record.mark = mark;
        })?;
        let generation = seen.record.generation;
        drop(seen);
        let order = Order {
            order: ORDER,
            definition,
            generation,
            root: place.root.path().to_owned(),
            store: place.store.clone(),
            config: place.config_file.clone(),
            cgroup_manager: self.core.cgroups.word().to_owned(),
        };
        let birth = spawn(&order)?;
        self.keepers.push(Keeper { generation, link: Link::Birth(birth), status: None, retires: false });
        self.template.note(|seen| {
            seen.loading = Some(generation);
            seen.retry = None;
            seen.step.clear();
        });
        Ok(())
    }

    /// Sleeps until something happens, and hears what.
    fn wait(&mut self) {
        let until = self.retry.into_iter().chain(self.look).min();
        for index in self.sleep(until).into_iter().rev() {
            self.hear(index);
        }
    }

    /// Which keepers have something to say; none if the time has come, or the bell rings.
    fn sleep(&self, until: Option<Instant>) -> Vec<usize> {
        let limit = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() }
        });
        let mut sources = vec![PollFd::new(&self.template.bell, PollFlags::IN)];
        sources.extend(self.keepers.iter().map(|keeper| PollFd::from_borrowed_fd(keeper.as_fd(), PollFlags::IN)));
        match poll(&mut sources, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                tracing::error!("template '{}': wait for its keepers: {errno}", self.template.key);
                std::thread::sleep(LOOK);
            }
        }
        // Only that it rings counts.
        let _ = rustix::io::read(&self.template.bell, &mut [0; 8]);
        (0..self.keepers.len()).filter(|index| !sources[index + 1].revents().is_empty()).collect()
    }

    fn hear(&mut self, index: usize) {
        let keeper = &mut self.keepers[index];
        match keeper.hear() {
            Heard::Nothing => {}
            Heard::Step(step) => self.template.note(|seen| seen.step = step),
            Heard::Status(status) => {
                let before = keeper.status.replace(*status);
                if let Link::Birth(_) = keeper.link {
                    self.follow(index);
                } else if keeper.has_given_up() {
                    // It attends to the clones that it has, and ends then.
                    keeper.retires = true;
                    let (generation, reason) = (keeper.generation, keeper.reason());
                    self.replace(generation, before.as_ref(), reason);
                }
            }
            Heard::End(error) => self.lose(index, error),
        }
    }

    /// A keeper that is ready is heard by the socket by which it is also found later.
    fn follow(&mut self, index: usize) {
        let generation = self.keepers[index].generation;
        let followed = Controller::connect(&self.directory, generation)
            .and_then(|controller| controller.ok_or_else(|| gone(&self.directory)))
            .and_then(|controller| controller.tell(Command::Watch).map(|()| controller));
        match followed {
            Ok(controller) => self.keepers[index].link = Link::Control(controller),
            Err(error) => self.lose(index, Some(error)),
        }
    }

    /// A keeper is no more.
    fn lose(&mut self, index: usize, error: Option<Error>) {
        let Keeper { status, retires, generation, .. } = self.keepers.remove(index);
        if !retires {
            self.replace(generation, status.as_ref(), error);
        }
    }

    /// A keeper that was like this makes no clones any more, and nobody had wanted that.
    fn replace(&mut self, generation: u64, before: Option<&Status>, error: Option<Error>) {
        if self.goes() {
            return;
        }
        let ready = before.filter(|status| status.phase == Phase::Ready).and_then(|status| status.ready);
        if let Some(since) = ready {
            let served = (Utc::now() - since).to_std().unwrap_or_default();
            // What worked for a while is not counted with what failed before.
            let _ = self.backoff.decide(Restart::No, Ending { exit_code: None, served });
            let mut seen = self.template.lock();
            if let Err(error) = self.core.save(&self.template.key, &mut seen, |record| record.restarts += 1) {
                tracing::error!("{error}");
            }
        }
        // One that is just loading takes its place.
        if self.keepers.iter().any(|keeper| keeper.generation > generation) {
            return;
        }
        self.fail(error.unwrap_or_else(|| gone(&self.directory)));
    }

    /// There is no keeper where one should be: another one is started after a while.
    fn fail(&mut self, error: Error) {
        let definition = self.definition();
        let alive: Vec<u64> = self.keepers.iter().map(|keeper| keeper.generation).collect();
        let dead = |generation: u64| !alive.contains(&generation);
        if let Err(error) = leftover::clear(&self.core.place, &definition, Clones::Spared, dead) {
            tracing::warn!("{error}");
        }
        if self.creating {
            self.creating = false;
            self.end();
            self.template.note(|seen| seen.creation = Some(Outcome::Failed(error)));
            return;
        }
        let ending = Ending { exit_code: None, served: Duration::ZERO };
        let Decision::After(wait) = self.backoff.decide(Restart::Always, ending) else { return };
        tracing::warn!("template '{}': {error}; it is started again in {} ms", self.template.key, wait.as_millis());
        self.retry = Some(Instant::now() + wait);
        self.template.note(|seen| {
            seen.failure = Some(error.to_string());
            seen.retry = Some(Utc::now() + wait);
            seen.loading = None;
        });
    }

    /// Takes away all that there is of the template. What could not be is told to whoever wants it gone, and tried again for
    /// the next one.
    fn end(&mut self) {
        let ended = self.stop_all().and_then(|()| {
            let (definition, clones) = (self.definition(), self.template.lock().clones);
            leftover::clear(&self.core.place, &definition, clones, |_| true)?;
            leftover::remove_directory(&self.directory)?;
            self.core.forget(&self.template.key)
        });
        match &ended {
            Ok(()) => tracing::info!("template '{}' is removed", self.template.key),
            Err(error) => tracing::error!("remove template '{}': {error}", self.template.key),
        }
        let creating = std::mem::replace(&mut self.creating, false);
        self.template.note(|seen| {
            seen.gone = Some(ended);
            if creating {
                let error = Error::new(Kind::State, "make it ready", "it was removed meanwhile");
                seen.creation = Some(Outcome::Failed(error));
            }
        });
    }

    /// Ends all keepers, and waits for that.
    fn stop_all(&mut self) -> Result<()> {
        for keeper in &self.keepers {
            keeper.stop(&self.directory);
        }
        let deadline = Instant::now() + ENDING;
        while !self.keepers.is_empty() && Instant::now() < deadline {
            for index in self.sleep(Some(deadline)).into_iter().rev() {
                if let Heard::End(_) = self.keepers[index].hear() {
                    self.keepers.remove(index);
                }
            }
        }
        self.keepers.drain(..).try_for_each(|keeper| keeper.kill())
    }
}

fn gone(directory: &Path) -> Error {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Error::new(Kind::State, format!("keep template '{name}'"), "its keeper was killed")
}
