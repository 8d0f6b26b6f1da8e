//! A registry whose requests are counted: how long they take, and what sort of failure they end with.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Answer, Applied, Entry, Event, Failure, Lease, Listing, Registry, Renewed, Transaction, Watch};
use crate::metrics;

/// See the module.
#[derive(Clone)]
pub struct Counted(Arc<dyn Registry>);

/// A watch whose failures are counted; how long it sleeps says nothing.
#[derive(Debug)]
struct CountedWatch(Box<dyn Watch>);

impl Counted {
    /// Counts requests to this one.
    #[must_use]
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Self(registry)
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

fn count<T>(call: &'static str, ask: impl FnOnce() -> Answer<T>) -> Answer<T> {
    let began = Instant::now();
    let answer = ask();
    metrics::registry_asked(call, began.elapsed());
    answer.inspect_err(|failure| metrics::registry_failed(call, sort(failure)))
}

fn sort(failure: &Failure) -> &'static str {
    match failure {
        Failure::Indeterminate(_) => "indeterminate",
        Failure::Compacted => "compacted",
        Failure::Unavailable(_) => "unavailable",
        Failure::Refused(_) => "refused",
    }
}

impl Registry for Counted {
    fn identity(&self) -> Answer<String> {
        self.0.identity()
    }

    fn get(&self, key: &str) -> Answer<Option<Entry>> {
        count("get", || self.0.get(key))
    }

    fn list(&self, prefix: &str) -> Answer<Listing> {
        count("list", || self.0.list(prefix))
    }

    fn apply(&self, transaction: &Transaction) -> Answer<Applied> {
        count("apply", || self.0.apply(transaction))
    }

    fn grant(&self, time: Duration) -> Answer<Lease> {
        count("grant", || self.0.grant(time))
    }

    fn renew(&self, lease: Lease) -> Answer<Renewed> {
        count("renew", || self.0.renew(lease))
    }

    fn revoke(&self, lease: Lease) -> Answer<()> {
        count("revoke", || self.0.revoke(lease))
    }

    fn watch(&self, prefix: &str, after: u64) -> Answer<Box<dyn Watch>> {
        count("watch", || self.0.watch(prefix, after)).map(|watch| Box::new(CountedWatch(watch)) as Box<dyn Watch>)
    }
}

impl Watch for CountedWatch {
    fn next(&mut self, limit: Option<Duration>) -> Answer<Vec<Event>> {
        self.0.next(limit).inspect_err(|failure| metrics::registry_failed("watch", sort(failure)))
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell()
    }
}
