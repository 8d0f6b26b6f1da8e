//! Whether a copy is still fed, and since when not. Time counts while the machine sleeps, too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the start of the machine at which the feed ended, plus one; 0 while it is fed.
#[derive(Debug)]
pub(super) struct Freshness(AtomicU64);

impl Default for Freshness {
    /// Nothing has come yet.
    fn default() -> Self {
        Self(AtomicU64::new(now() + 1))
    }
}

impl Freshness {
    /// From now on it is fed.
    pub(super) fn begin(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// From now on it is not; who says so twice changes nothing.
    pub(super) fn end(&self) {
        // Only the first counts, and that it was lost to another is no failure.
        let _ = self.0.compare_exchange(0, now() + 1, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// How long it has not been fed for; none if it is.
    pub(super) fn age(&self) -> Option<Duration> {
        let ended = self.0.load(Ordering::Acquire).checked_sub(1)?;
        Some(Duration::from_millis(now().saturating_sub(ended)))
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1000 + nanoseconds / 1_000_000
}
