//! Time, as a parameter: tests and simulations have their own.

use std::fmt::Debug;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::time::{ClockId, clock_gettime};

/// What tells the time.
pub trait Clock: Debug + Send + Sync {
    /// The time of day, which may jump: for people only.
    fn wall(&self) -> DateTime<Utc>;

    /// The time since some moment, which only grows and goes on while the machine sleeps: for leases.
    fn elapsed(&self) -> Duration;
}

/// The machine's own: `CLOCK_REALTIME` and `CLOCK_BOOTTIME` (clock_gettime(2)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Clock for Machine {
    fn wall(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn elapsed(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        let part = |number: i64| u64::try_from(number).unwrap_or(0);
        Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
    }
}
