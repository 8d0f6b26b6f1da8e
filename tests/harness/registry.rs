//! A registry that fails, as its documentation allows: at any call, by a plan that the seed of a random number decides.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use regen::error::{Error, Kind};
use regen::registry::{Answer, Applied, Entry, Event, Failure, Lease, Listing, Registry, Renewed, Transaction, Watch};

/// How often what happens, of a thousand calls.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Two runs with the same one fail at the same calls, as far as threads come in the same order.
    pub seed: u64,
    /// Nobody answers, and nothing is done.
    pub error: u64,
    /// It takes longer: up to 5 ms.
    pub delay: u64,
    /// It is done, or not, and nobody learns which.
    pub lost: u64,
    /// A watch breaks off.
    pub broken: u64,
    /// A watch is told that it is too late.
    pub compacted: u64,
}

impl Plan {
    /// Everything, and often.
    pub fn bad(seed: u64) -> Self {
        Self { seed, error: 100, delay: 50, lost: 100, broken: 100, compacted: 30 }
    }

    /// Only what a caller notices who asks once more.
    pub fn shaky(seed: u64) -> Self {
        Self { lost: 0, compacted: 0, ..Self::bad(seed) }
    }
}

/// A registry around another one.
#[derive(Debug)]
pub struct Faulty(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Arc<dyn Registry>,
    plan: Plan,
    dice: AtomicU64,
    faults: AtomicUsize,
}

impl Faulty {
    pub fn new(registry: Arc<dyn Registry>, plan: Plan) -> Self {
        let dice = AtomicU64::new(plan.seed);
        Self(Arc::new(Inner { registry, plan, dice, faults: AtomicUsize::new(0) }))
    }

    /// How many faults there were.
    pub fn faults(&self) -> usize {
        self.0.faults.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// A random number (SplitMix64).
    fn roll(&self) -> u64 {
        let mut z = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn happens(&self, permille: u64) -> bool {
        let happens = self.roll() % 1000 < permille;
        self.faults.fetch_add(usize::from(happens), Ordering::Relaxed);
        happens
    }

    /// What may happen to every call before anything is done.
    fn before(&self) -> Answer<()> {
        if self.happens(self.plan.delay) {
            std::thread::sleep(Duration::from_micros(self.roll() % 5000));
        }
        if self.happens(self.plan.error) {
            return Err(Failure::Unavailable(Error::new(Kind::Busy, "ask the registry", "nobody answers (a test)")));
        }
        Ok(())
    }

    /// What may happen to a call that changes something.
    fn change<T>(&self, ask: impl FnOnce() -> Answer<T>) -> Answer<T> {
        self.before()?;
        if !self.happens(self.plan.lost) {
            return ask();
        }
        if self.roll().is_multiple_of(2) {
            let _ = ask();
        }
        Err(Failure::Indeterminate(Error::new(Kind::System, "ask the registry", "the answer was lost (a test)")))
    }
}

impl Registry for Faulty {
    fn identity(&self) -> Answer<String> {
        self.0.before()?;
        self.0.registry.identity()
    }

    fn get(&self, key: &str) -> Answer<Option<Entry>> {
        self.0.before()?;
        self.0.registry.get(key)
    }

    fn list(&self, prefix: &str) -> Answer<Listing> {
        self.0.before()?;
        self.0.registry.list(prefix)
    }

    fn apply(&self, transaction: &Transaction) -> Answer<Applied> {
        self.0.change(|| self.0.registry.apply(transaction))
    }

    fn grant(&self, time: Duration) -> Answer<Lease> {
        self.0.change(|| self.0.registry.grant(time))
    }

    fn renew(&self, lease: Lease) -> Answer<Renewed> {
        self.0.change(|| self.0.registry.renew(lease))
    }

    fn revoke(&self, lease: Lease) -> Answer<()> {
        self.0.change(|| self.0.registry.revoke(lease))
    }

    fn watch(&self, prefix: &str, after: u64) -> Answer<Box<dyn Watch>> {
        self.0.before()?;
        let watch = self.0.registry.watch(prefix, after)?;
        Ok(Box::new(FaultyWatch { inner: Arc::clone(&self.0), watch, end: None }))
    }
}

#[derive(Debug)]
struct FaultyWatch {
    inner: Arc<Inner>,
    watch: Box<dyn Watch>,
    /// How it broke off. It stays so.
    end: Option<Failure>,
}

impl Watch for FaultyWatch {
    fn next(&mut self, limit: Option<Duration>) -> Answer<Vec<Event>> {
        if self.end.is_none() && self.inner.happens(self.inner.plan.broken) {
            let error = Error::new(Kind::System, "watch the registry", "the connection broke (a test)");
            self.end = Some(Failure::Unavailable(error));
        }
        if self.end.is_none() && self.inner.happens(self.inner.plan.compacted) {
            self.end = Some(Failure::Compacted);
        }
        match &self.end {
            Some(end) => Err(end.clone()),
            None => self.watch.next(limit),
        }
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.watch.bell()
    }
}
