//! The lease that the markers of all a daemon's operations hang on. It is asked for when the first is taken, and renewed as
//! long as there is any.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Clock;
use crate::registry::{Answer, Lease, Registry, Renewed};

/// How long it lasts without being renewed.
pub const TIME: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(10);
/// When it counts as lost, though the registry may still have it: clocks do not run at one speed.
const TRUSTED: Duration = Duration::from_secs(20);

/// A lease that was granted, and what it was granted as: the how-manyth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The registry's name for it.
    pub lease: Lease,
    /// The how-manyth of this daemon it is.
    pub number: u64,
    /// When it was renewed last; asked for, that is.
    renewed: Duration,
}

/// Who keeps it.
#[derive(Debug, Default)]
pub struct Keeper {
    held: Mutex<(Option<Held>, u64)>,
}

impl Keeper {
    fn lock(&self) -> MutexGuard<'_, (Option<Held>, u64)> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that lasts long enough to begin something: the one that is there, or a new one.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn ensure(&self, registry: &dyn Registry, clock: &dyn Clock) -> Answer<Held> {
        let fresh = |held: &Held| clock.elapsed() < held.renewed + RENEWAL + RENEWAL / 2;
        let there = self.lock().0;
        match there {
            Some(held) if fresh(&held) => return Ok(held),
            // Others hang on it.
            Some(_) => self.renew(registry, clock)?,
            None => {}
        }
        let mut held = self.lock();
        if let Some(held) = held.0.filter(fresh) {
            return Ok(held);
        }
        let now = clock.elapsed();
        let lease = registry.grant(TIME)?;
        held.1 += 1;
        let new = Held { lease, number: held.1, renewed: now };
        held.0 = Some(new);
        Ok(new)
    }

    /// Whether what was taken with that lease is still ours.
    #[must_use]
    pub fn holds(&self, number: u64, clock: &dyn Clock) -> bool {
        let now = clock.elapsed();
        self.lock().0.is_some_and(|held| held.number == number && now < held.renewed + TRUSTED)
    }

    /// The registry does not know it any more.
    pub fn forget(&self, number: u64) {
        let mut held = self.lock();
        if held.0.is_some_and(|held| held.number == number) {
            held.0 = None;
        }
    }

    /// When it has to be renewed next, by the clock.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.lock().0.map(|held| held.renewed + RENEWAL)
    }

    /// Renews it. One that counts as lost stays lost: what hung on it is given up already.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn renew(&self, registry: &dyn Registry, clock: &dyn Clock) -> Answer<()> {
        let Some(held) = self.lock().0 else { return Ok(()) };
        let asked = clock.elapsed();
        if asked >= held.renewed + TRUSTED {
            self.forget(held.number);
            return Ok(());
        }
        match registry.renew(held.lease)? {
            Renewed::Gone => self.forget(held.number),
            Renewed::Yes => {
                let mut now = self.lock();
                if let Some(now) = now.0.as_mut().filter(|now| now.number == held.number) {
                    now.renewed = asked;
                }
            }
        }
        Ok(())
    }
}
