//! What is known of a template while the daemon runs.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rustix::event::{EventfdFlags, eventfd};

use super::Clones;
use super::record::{Key, Record};
use crate::error::{Context, Error, Result};
use crate::template::message::Status;

/// One template: its minder changes what is known, others look and wait for changes.
#[derive(Debug)]
pub(super) struct Template {
    pub key: Key,
    /// Wakes the minder.
    pub bell: OwnedFd,
    seen: Mutex<Seen>,
    news: Condvar,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Seen {
    pub record: Record,
    /// The revision of the record.
    pub revision: u64,
    /// Whether the minder has heard of every keeper that was there when the daemon started.
    pub looked: bool,
    /// What the keeper said last that clones are asked of.
    pub ready: Option<Status>,
    /// The generation of a keeper that loads, or none.
    pub loading: Option<u64>,
    /// What that one does.
    pub step: String,
    /// Why the last keeper that was started came to nothing, or the last that was ready ended.
    pub failure: Option<String>,
    /// When the next one is started.
    pub retry: Option<DateTime<Utc>>,
    /// What came of the creation, until that was told.
    pub creation: Option<Outcome>,
    /// Whether somebody wants it gone.
    pub removed: bool,
    /// What becomes of clones then.
    pub clones: Clones,
    /// What came of the removal.
    pub gone: Option<Result<(), Error>>,
}

/// What came of a creation.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// It can be cloned.
    Ready,
    /// Why it cannot.
    Failed(Error),
    /// Whoever wanted to know does.
    Told,
}

impl Template {
    /// One of which nothing is known but what is written down.
    pub(super) fn new(record: Record, revision: u64) -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(|| "make an event")?;
        let key = Key::of(&record.definition);
        let seen = Seen {
            record,
            revision,
            looked: false,
            ready: None,
            loading: None,
            step: String::new(),
            failure: None,
            retry: None,
            creation: None,
            removed: false,
            clones: Clones::Spared,
            gone: None,
        };
        Ok(Self { key, bell, seen: Mutex::new(seen), news: Condvar::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and tells those who wait.
    pub(super) fn note<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        let changed = change(&mut self.lock());
        self.news.notify_all();
        changed
    }

    /// Sleeps until what is waited for is known; `None` if the time is over before.
    pub(super) fn wait_for<T>(&self, limit: Duration, mut found: impl FnMut(&mut Seen) -> Option<T>) -> Option<T> {
        let deadline = Instant::now().checked_add(limit);
        let mut seen = self.lock();
        loop {
            if let Some(found) = found(&mut seen) {
                return Some(found);
            }
            seen = match deadline {
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.news.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.news.wait(seen).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Wakes the minder.
    pub(super) fn ring(&self) {
        // The only failure is that it is rung already, 2^64 times.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}
