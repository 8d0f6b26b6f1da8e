//! Markers alone: wide against narrow, from many threads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regen::operation::marker::{Claim, Marker, Markers, Taken, Wish};
use regen::operation::{Kind, Machine, OperationId, Resource, Target, key};
use regen::registry::{Applied, Failure, Lease, Put, Registry, Transaction};
use serde_json::Value;

use super::registry_memory::{Fault, Memory};

fn resources(kind: Kind, targets: &[String]) -> Vec<Resource> {
    let targets = targets.iter().map(|target| target.parse::<Target>().unwrap());
    targets.flat_map(|target| Resource::all(kind, &target, &Value::Null).unwrap()).collect()
}

struct Daemon {
    markers: Markers,
    lease: Lease,
    registry: Memory,
}

impl Daemon {
    fn new(registry: &Memory) -> Self {
        Self {
            markers: Markers::default(),
            lease: registry.grant(Duration::from_secs(600)).unwrap(),
            registry: registry.clone(),
        }
    }

    fn take(&self, kind: Kind, resources: &[Resource]) -> Option<(OperationId, Claim)> {
        let operation = OperationId::draw(chrono::Utc::now()).unwrap();
        let marker = Marker { operation, kind, node: "a".parse().unwrap(), since: chrono::Utc::now() };
        let wish = Wish { marker, resources, key: None, lease: self.lease, head: 0 };
        let mut write = |_| Ok(vec![Put::new(key::head(&operation), b"{}".to_vec())]);
        match self.markers.take(&self.registry, &wish, &mut write) {
            Ok(Taken::Taken(claim)) => Some((operation, claim)),
            Ok(Taken::Held(_)) => None,
            Ok(Taken::Duplicate(_)) => panic!("there is no key"),
            Err(Failure::Indeterminate(_)) => self.settle(&wish),
            Err(failure) => panic!("{failure:?}"),
        }
    }

    /// Nobody knows whether it was taken: it is not to be, or else this finds it.
    fn settle(&self, wish: &Wish<'_>) -> Option<(OperationId, Claim)> {
        let id = wish.marker.operation;
        let tombstone = Transaction::replace(&key::head(&id), 0, b"{}".to_vec());
        loop {
            match self.registry.apply(&tombstone) {
                Ok(Applied::Committed(_)) => break,
                Ok(Applied::Refused) => {
                    let claim = loop {
                        if let Ok(claim) = self.markers.take_over(&self.registry, wish) {
                            break claim;
                        }
                    };
                    return claim.map(|claim| (id, claim));
                }
                Err(_) => {}
            }
        }
        while self.markers.forget(&self.registry, &id).is_err() {}
        None
    }

    fn release(&self, claim: &Claim) {
        let mut transaction = Transaction::default();
        claim.release(&mut transaction);
        loop {
            match self.registry.apply(&transaction) {
                Ok(_) => return,
                Err(Failure::Indeterminate(_)) => {}
                Err(failure) => panic!("{failure:?}"),
            }
        }
    }
}

#[test]
fn wide_and_narrow_ones_never_have_the_same_and_tokens_grow() {
    let registry = Memory::new(Arc::new(Machine));
    let mut calls = 0;
    registry.judge(move |_| {
        calls += 1;
        match calls % 13 {
            0 => Fault::LostAnswer,
            5 => Fault::LostCall,
            _ => Fault::None,
        }
    });
    // Who is at which probe, and the last token there.
    let there: Mutex<HashMap<usize, (bool, u64)>> = Mutex::default();
    let daemons: Vec<_> = (0..3).map(|_| Daemon::new(&registry)).collect();
    let taken = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..9_usize {
            let (daemon, there, taken) = (&daemons[thread % 3], &there, &taken);
            scope.spawn(move || {
                for round in 0..80_usize {
                    // From one to two hundred of three hundred.
                    let count = if (thread + round) % 4 == 0 { 60 + 17 * thread } else { 1 + round % 3 };
                    let first = (thread * 31 + round * 47) % 300;
                    let numbers: Vec<_> = (0..count).map(|index| (first + index) % 300).collect();
                    let targets: Vec<_> = numbers.iter().map(|number| format!("a:probe/{number}")).collect();
                    let Some((_, claim)) = daemon.take(Kind::Probe, &resources(Kind::Probe, &targets)) else {
                        continue;
                    };
                    taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let mut now = there.lock().unwrap();
                    for number in &numbers {
                        let (held, last) = now.insert(*number, (true, claim.token)).unwrap_or_default();
                        assert!(!held, "two have probe {number}");
                        assert!(claim.token > last, "token {} after {last}", claim.token);
                    }
                    drop(now);
                    std::thread::yield_now();
                    let mut now = there.lock().unwrap();
                    numbers.iter().for_each(|number| now.get_mut(number).unwrap().0 = false);
                    drop(now);
                    daemon.release(&claim);
                }
            });
        }
    });
    assert!(taken.into_inner() > 100);
    registry.heal();
    assert_eq!(registry.keys("marker/"), Vec::<String>::new());
    assert_eq!(registry.keys("wide/"), Vec::<String>::new());
}
