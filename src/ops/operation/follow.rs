//! Progress, for those who watch: what is told while an operation runs, and how it ended.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};
use serde_json::Value;

use crate::error::{Context, Result};
use crate::operation::{OperationId, State};

/// How much is kept for a watcher who does not take it; of more, the oldest goes.
const KEPT: usize = 1024;

/// A step of an operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Which.
    pub operation: OperationId,
    /// Where it is in its life. With a final state nothing follows.
    pub state: State,
    /// The index of the target that this is about, if it is about one.
    pub target: Option<usize>,
    /// What the executor told; null if a target, or all, came to an end.
    pub step: Value,
    /// How many targets are at their end.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

impl Progress {
    /// Whether nothing comes any more: it is at its end, or would be if that could be written down.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state.is_final() || self.done == self.total
    }
}

/// What a watcher has.
#[derive(Debug)]
pub struct Subscription(Arc<Mailbox>);

#[derive(Debug)]
pub(super) struct Mailbox {
    bell: OwnedFd,
    news: Mutex<VecDeque<Progress>>,
}

/// Who watches something.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<Vec<Weak<Mailbox>>>);

impl Subscription {
    pub(super) fn new() -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(|| "make an event")?;
        Ok(Self(Arc::new(Mailbox { bell, news: Mutex::default() })))
    }

    /// What was told since the last call, in order. If that was much, the oldest of it is missing.
    #[must_use]
    pub fn take(&self) -> Vec<Progress> {
        let mut news = self.0.news.lock().unwrap_or_else(PoisonError::into_inner);
        // What is told from now on rings again.
        let _ = rustix::io::read(&self.0.bell, &mut [0_u8; 8]);
        news.drain(..).collect()
    }

    /// Readable when there is something to take.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    pub(super) fn tell(&self, progress: Progress) {
        self.0.tell(progress);
    }
}

impl Mailbox {
    fn tell(&self, progress: Progress) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if news.len() >= KEPT {
            news.pop_front();
        }
        news.push_back(progress);
        // A counter that is full is readable anyway.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl Watchers {
    pub(super) fn add(&self, subscription: &Subscription) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&subscription.0));
    }

    /// Tells all who are still there; it is put together only if there is anybody.
    pub(super) fn tell(&self, progress: impl Fn() -> Progress) {
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| match watcher.upgrade() {
            Some(watcher) => {
                watcher.tell(progress());
                true
            }
            None => false,
        });
    }
}
