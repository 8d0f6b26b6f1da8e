//! What everything here shares: the places, the registry, the book of what is known, and the rules by which they change.
//!
//! One lock guards the book, and is held while the registry is written, so that both always say the same. It is never held
//! while something is waited for. Who resolves does not need it: the roster has a state of its own.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::book::{Book, Running, Seen};
use super::crew::Crew;
use super::record::{Change, ChangeKind, Key, Record, Wanted};
use super::watch::Watch;
use crate::cgroup;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::ops::Place;
use crate::registry::{Applied, Compare, Registry, Transaction};
use crate::service::keeper::Keeper;
use crate::service::message::{Command, Outcome, Phase, Status};
use crate::service::roster::Roster;
use crate::sys::lock::Lock;

/// The directory of the logs of services, below the store.
const LOGS: &str = "services";

/// See the module.
#[derive(Debug)]
pub(super) struct Core {
    pub place: Place,
    pub cgroups: cgroup::Manager,
    pub boot: String,
    pub registry: Arc<dyn Registry>,
    /// Nobody else looks after these services as long as it is held.
    pub _tenancy: Lock,
    pub roster: Arc<Roster>,
    pub watch: Watch,
    pub crew: Crew,
    pub book: Mutex<Book>,
    /// Something in the book has changed.
    pub news: Condvar,
}

/// The right to change a service, which one has at a time.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub core: &'a Arc<Core>,
    pub key: Key,
    pub change: Change,
}

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until the book says what is waited for; `None` if the time is over before.
    pub(super) fn wait_for<T>(&self, limit: Duration, mut found: impl FnMut(&mut Book) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut book = self.lock();
        loop {
            if let Some(found) = found(&mut book) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            book = self.news.wait_timeout(book, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Changes what is written down of a service. If it becomes another version, it moves.
    ///
    /// # Errors
    /// Those of the registry; everything is then as it was.
    pub(super) fn save(&self, book: &mut Book, key: &Key, change: impl FnOnce(&mut Record)) -> Result<()> {
        let service = book.get(key)?;
        let mut record = service.record.clone();
        change(&mut record);
        record.boot.clone_from(&self.boot);
        let new = Key::of(&record.definition);
        let mut transaction = Transaction::replace(&new.path(), service.modified, record.write()?);
        if new != *key {
            transaction.compares = vec![Compare { key: key.path(), modified: service.modified }];
            transaction.compares.push(Compare { key: new.path(), modified: 0 });
            transaction.deletes.push(key.path());
        }
        let Applied::Committed(revision) = self.registry.apply(&transaction)? else { return Err(foreign(key)) };
        service.record = record;
        service.modified = revision;
        if new != *key
            && let Some(service) = book.services.remove(key)
        {
            for instance in service.record.instances() {
                if let Some(seen) = book.instances.get_mut(instance) {
                    seen.key = new.clone();
                }
            }
            book.services.insert(new, service);
        }
        Ok(())
    }

    /// As [`Core::save`], where a failure must not keep the rest from being done: what is not written down now is known here
    /// all the same, and is decided anew by the next daemon.
    pub(super) fn note(&self, book: &mut Book, key: &Key, change: impl FnOnce(&mut Record)) {
        let Some(service) = book.services.get(key) else { return };
        let mut record = service.record.clone();
        change(&mut record);
        let Err(error) = self.save(book, key, |old| old.clone_from(&record)) else { return };
        tracing::error!("write down what becomes of service '{key}': {error}");
        // It is so nevertheless, and is written down with whatever changes next.
        if let Some(service) = book.services.get_mut(key).filter(|_| Key::of(&record.definition) == *key) {
            service.record = record;
        }
    }

    /// Takes a service out of everything, if it is to go and nothing of it is there any more.
    pub(super) fn finish_removal(&self, book: &mut Book, key: &Key) {
        let Some(service) = book.services.get(key) else { return };
        let Record { wanted, instance, pending, leaving, log, .. } = &service.record;
        // One that is being added is to go until it has come.
        let comes = service.running.as_ref().is_some_and(|running| running.change.kind != ChangeKind::Remove);
        let empty = instance.is_none() && pending.is_none() && leaving.is_empty();
        let done = *wanted == Wanted::Removed && empty && !comes;
        if !done {
            return;
        }
        let log = self.log_directory(log);
        // First what the record names: a daemon that is killed in between leaves a record of which the next one knows that
        // it is to go, and nothing that nobody knows.
        if let Err(error) = std::fs::remove_dir_all(&log)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("remove the log of service '{key}' at {}: {error}", log.display());
        }
        let transaction = Transaction { deletes: vec![key.path()], ..Transaction::default() };
        if let Err(error) = self.registry.apply(&transaction).map_err(Error::from) {
            // The next daemon finds that it is to go.
            tracing::error!("forget service '{key}': {error}");
        }
        let removed = book.services.remove(key);
        let operation = removed.and_then(|service| service.running).map(|running| running.change.id.to_string());
        tracing::info!(operation, service = %key, "service '{key}' is removed");
        self.news.notify_all();
    }

    /// Where the log of a service lies.
    pub(super) fn log_directory(&self, log: &str) -> PathBuf {
        self.place.store.join(LOGS).join(log)
    }

    /// Connects to the keeper of an instance and hears what happens to it from now on; `false` if it has none.
    pub(super) fn follow(&self, key: &Key, instance: &ContainerId) -> Result<bool> {
        let keeper = Keeper::connect(self.place.root.path(), instance)?;
        let there = keeper.is_some();
        let mut book = self.lock();
        let keeper = keeper.map(|keeper| self.watch.add(keeper)).transpose()?;
        let orphan = if there { None } else { self.find_orphan(instance) };
        let seen = Seen { key: key.clone(), keeper, status: None, gone: !there, orphan, clearing: false };
        book.instances.insert(instance.clone(), seen);
        Ok(there)
    }

    /// Asks the keeper of an instance for something, on a connection of its own.
    pub(super) fn ask(&self, instance: &ContainerId, command: &Command) -> Result<()> {
        self.keeper(instance)?.ask(command).map(drop)
    }

    /// A connection to the keeper of an instance.
    pub(super) fn keeper(&self, instance: &ContainerId) -> Result<Keeper> {
        Keeper::connect(self.place.root.path(), instance)?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("reach the keeper of instance '{instance}'"), "it is gone")
        })
    }

    /// Claims a service for a change.
    ///
    /// # Errors
    /// [`Kind::Busy`] if it is being changed, [`Kind::NotFound`] if there is none.
    pub(super) fn claim<'a>(
        self: &'a Arc<Self>,
        book: &mut Book,
        key: &Key,
        change: Change,
        operation: &str,
    ) -> Result<Claim<'a>> {
        book.check_idle(key, operation)?;
        let service = book.get(key)?;
        service.running = Some(Running { change: change.clone(), to: None });
        service.retry = None;
        Ok(Claim { core: self, key: key.clone(), change })
    }

    /// Looks after a service that nobody changes: if its instance has ended, its policy decides.
    pub(super) fn settle(self: &Arc<Self>, book: &mut Book, key: &Key) {
        let Some(service) = book.services.get(key) else { return };
        let idle = service.running.is_none() && service.judged && service.retry.is_none();
        if !idle || service.record.wanted != Wanted::Running {
            return;
        }
        match book.current(key) {
            Some(seen) if seen.lives() => {}
            Some(seen) if seen.orphan.is_some() => self.keep_orphan(book, key),
            Some(seen) => {
                let outcome = seen.status.as_ref().and_then(|status| status.outcome.clone());
                let served = served(seen.status.as_ref());
                self.decide(book, key, outcome, served);
            }
            None => {
                // It has none, and should.
                if let Some(service) = book.services.get_mut(key) {
                    service.retry = Some(Instant::now() + service.backoff.next_wait());
                    self.watch.ring();
                }
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut book = self.core.lock();
        if let Some(service) = book.services.get_mut(&self.key) {
            service.running = None;
        }
        self.core.settle(&mut book, &self.key);
        self.core.finish_removal(&mut book, &self.key);
        drop(book);
        self.core.news.notify_all();
    }
}

/// How long clients had been sent to an instance.
fn served(status: Option<&Status>) -> Duration {
    let times = status.and_then(|status| Some((status.serving_since?, status.outcome.as_ref()?.ended)));
    times.and_then(|(since, ended)| (ended - since).to_std().ok()).unwrap_or_default()
}

/// How an instance ended, in words.
pub(super) fn describe_end(outcome: Option<&Outcome>) -> String {
    match outcome {
        Some(Outcome { reason: Some(reason), .. }) => reason.clone(),
        Some(Outcome { exit_code: Some(code), .. }) => format!("it ended with status {code}"),
        Some(Outcome { exit_code: None, .. }) => "it ended".to_owned(),
        None => "its keeper is gone".to_owned(),
    }
}

/// Whether an instance is ready or beyond, or never will be.
pub(super) fn has_come_up(phase: Phase) -> Option<bool> {
    match phase {
        Phase::Starting => None,
        Phase::Ready | Phase::Serving => Some(true),
        Phase::Draining | Phase::Stopping | Phase::Ended => Some(false),
    }
}

fn foreign(key: &Key) -> Error {
    let cause = "somebody else has changed it in the registry";
    Error::new(Kind::Damaged, format!("write down service '{key}'"), cause).next("restart 'regen serve'")
}
