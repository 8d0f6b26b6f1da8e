//! The daemon's one lease: the markers of all its operations hang on it. It is asked for when the first is taken, and renewed
//! as long as there is any.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::operation::Clock;
use crate::registry::{Answer, Lease, Registry, Renewed};

/// How long it lasts without being renewed.
pub(super) const TIME: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub(super) const RENEWAL: Duration = Duration::from_secs(10);
/// When it counts as lost, though the registry may still have it: clocks do not run at one speed.
const TRUSTED: Duration = Duration::from_secs(20);

/// A lease that was granted, and what it was granted as: the how-manyth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub lease: Lease,
    pub number: u64,
    /// When it was renewed last; asked for, that is.
    renewed: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Keeper {
    held: Mutex<(Option<Held>, u64)>,
}

impl Keeper {
    fn lock(&self) -> MutexGuard<'_, (Option<Held>, u64)> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that lasts long enough to begin something: the one that is there, or a new one.
    pub(super) fn ensure(&self, registry: &dyn Registry, clock: &dyn Clock) -> Answer<Held> {
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
    pub(super) fn holds(&self, number: u64, clock: &dyn Clock) -> bool {
        let now = clock.elapsed();
        self.lock().0.is_some_and(|held| held.number == number && now < held.renewed + TRUSTED)
    }

    /// The registry does not know it any more.
    pub(super) fn forget(&self, number: u64) {
        let mut held = self.lock();
        if held.0.is_some_and(|held| held.number == number) {
            held.0 = None;
        }
    }

    /// When it has to be renewed next, by the clock.
    pub(super) fn due(&self) -> Option<Duration> {
        self.lock().0.map(|held| held.renewed + RENEWAL)
    }

    /// Renews it. One that counts as lost stays lost: what hung on it is given up already.
    pub(super) fn renew(&self, registry: &dyn Registry, clock: &dyn Clock) -> Answer<()> {
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
