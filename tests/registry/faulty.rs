//! The suite over a registry that fails now and then, with callers who ask again; and, over one that also loses answers,
//! what has to hold for callers who look first.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regen::registry::{Answer, Applied, Entry, Event, Failure, Lease, Listing, Registry, Renewed, Transaction, Watch};

use crate::harness::registry::{Faulty, Plan};
use crate::sqlite::{Own, own};
use crate::suite::{Subject, crowd};

/// One who asks again as long as nobody answers and nothing was changed.
#[derive(Debug)]
struct Patient(Arc<Faulty>);

/// A watch that is begun again when it breaks.
#[derive(Debug)]
struct PatientWatch {
    registry: Arc<Faulty>,
    watch: Box<dyn Watch>,
    prefix: String,
    heard: u64,
}

fn patient<T>(mut ask: impl FnMut() -> Answer<T>) -> Answer<T> {
    loop {
        match ask() {
            Err(Failure::Unavailable(error)) if error.to_string().contains("(a test)") => {}
            other => return other,
        }
    }
}

impl Registry for Patient {
    fn identity(&self) -> Answer<String> {
        patient(|| self.0.identity())
    }

    fn get(&self, key: &str) -> Answer<Option<Entry>> {
        patient(|| self.0.get(key))
    }

    fn list(&self, prefix: &str) -> Answer<Listing> {
        patient(|| self.0.list(prefix))
    }

    fn apply(&self, transaction: &Transaction) -> Answer<Applied> {
        patient(|| self.0.apply(transaction))
    }

    fn grant(&self, time: Duration) -> Answer<Lease> {
        patient(|| self.0.grant(time))
    }

    fn renew(&self, lease: Lease) -> Answer<Renewed> {
        patient(|| self.0.renew(lease))
    }

    fn revoke(&self, lease: Lease) -> Answer<()> {
        patient(|| self.0.revoke(lease))
    }

    fn watch(&self, prefix: &str, after: u64) -> Answer<Box<dyn Watch>> {
        let watch = patient(|| self.0.watch(prefix, after))?;
        Ok(Box::new(PatientWatch { registry: Arc::clone(&self.0), watch, prefix: prefix.to_owned(), heard: after }))
    }
}

impl Watch for PatientWatch {
    fn next(&mut self, limit: Option<Duration>) -> Answer<Vec<Event>> {
        let begin = Instant::now();
        loop {
            let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
            match self.watch.next(left) {
                Err(Failure::Unavailable(_)) => {
                    self.watch = patient(|| self.registry.watch(&self.prefix, self.heard))?;
                }
                Ok(events) => {
                    self.heard = events.last().map_or(self.heard, |event| event.revision);
                    return Ok(events);
                }
                other => return other,
            }
        }
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.watch.bell()
    }
}

/// A registry of one's own that fails.
struct Shaky {
    own: Own,
    seed: u64,
}

impl Subject for Shaky {
    fn open(&self) -> Arc<dyn Registry> {
        Arc::new(Patient(Arc::new(Faulty::new(self.own.open(), Plan::shaky(self.seed)))))
    }

    fn address(&self) -> String {
        self.own.address()
    }

    fn shortest_lease(&self) -> Duration {
        self.own.shortest_lease()
    }

    fn forget(&self, revision: u64) {
        self.own.forget(revision);
    }
}

fn shaky() -> Shaky {
    Shaky { own: own(), seed: 1 }
}

conforms!(super::faulty::shaky);

/// One that also loses answers; the callers are on their own.
struct Bad {
    own: Own,
    seed: u64,
}

impl Subject for Bad {
    fn open(&self) -> Arc<dyn Registry> {
        Arc::new(Faulty::new(self.own.open(), Plan::bad(self.seed)))
    }

    fn address(&self) -> String {
        format!("faulty-{}-{}", self.seed, self.own.address())
    }

    fn shortest_lease(&self) -> Duration {
        self.own.shortest_lease()
    }

    fn forget(&self, revision: u64) {
        self.own.forget(revision);
    }
}

const SEEDS: u64 = 5;

#[test]
fn callers_who_look_before_they_ask_again_count_to_the_exact_sum() {
    for seed in 0..SEEDS {
        crowd::threads_count_to_the_exact_sum(&Bad { own: own(), seed });
    }
    crowd::processes_count_to_the_exact_sum(&Bad { own: own(), seed: SEEDS });
}

#[test]
fn a_marker_has_one_holder_at_a_time_also_when_answers_are_lost() {
    for seed in 0..SEEDS {
        crowd::a_key_has_one_holder_at_a_time(&Bad { own: own(), seed });
    }
}

#[test]
fn a_copy_becomes_the_same_although_its_watch_breaks_and_comes_too_late() {
    for seed in 0..SEEDS {
        crowd::a_copy_that_is_fed_by_a_watch_becomes_the_same(&Bad { own: own(), seed });
    }
}

#[test]
fn faults_happen_as_often_as_they_are_planned() {
    let own = own();
    let faulty = Faulty::new(own.open(), Plan::bad(7));
    let failed = (0..1000).filter(|_| faulty.get("a").is_err()).count();
    assert!((60..140).contains(&failed), "{failed} of 1000 failed, 100 should");
    assert!(faulty.faults() > failed, "delays count too");
}
