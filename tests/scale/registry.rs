//! The registry of all nodes, in memory and on virtual time; and each node's way to it, on which calls and answers are lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use regen::error::{Error, Kind};
use regen::node::{MEMBERS, NODES};
use regen::registry::{
    Answer, Applied, CHANGES_MAX, Entry, Event, Failure, Lease, Listing, Registry, Renewed, Transaction, VALUE_MAX,
    Watch,
};

use crate::cost::Costs;
use crate::simulation::Simulation;

#[derive(Debug)]
struct Held {
    until: u64,
    time: u64,
    keys: BTreeSet<String>,
}

/// The truth.
#[derive(Debug, Default)]
pub struct Store {
    now: u64,
    revision: u64,
    entries: BTreeMap<String, (Entry, Option<Lease>)>,
    leases: BTreeMap<u64, Held>,
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    granted: u64,
    /// Transactions that arrive later than whoever sent them waited.
    late: BTreeMap<(u64, u64), Transaction>,
    /// What the nodes have not heard yet.
    events: Vec<Event>,
    pub away: bool,
    pub costs: Costs,
}

impl Store {
    /// Time has come so far: leases end, and what was on its way arrives.
    pub fn advance(&mut self, now: u64) {
        self.now = now;
        if self.away {
            return;
        }
        while let Some(Reverse((end, lease))) = self.ends.peek().copied().filter(|Reverse((end, _))| *end <= now) {
            self.ends.pop();
            match self.leases.get(&lease).map(|held| held.until) {
                Some(until) if until > end => self.ends.push(Reverse((until, lease))),
                Some(_) => self.end(Lease(lease)),
                None => {}
            }
        }
        while let Some(key) = self.late.keys().next().copied().filter(|(at, _)| *at <= now) {
            let transaction = self.late.remove(&key).unwrap();
            // Nobody waits for what comes of it.
            let _ = self.apply(&transaction);
        }
    }

    /// It is back. Its new leader gives every lease its whole time again (etcd, `lessor.Promote`).
    pub fn come_back(&mut self) {
        self.away = false;
        for (lease, held) in &mut self.leases {
            held.until = self.now + held.time;
            self.ends.push(Reverse((held.until, *lease)));
        }
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key).map(|(entry, _)| entry)
    }

    pub fn list<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Entry> + 'a {
        let range = self.entries.range(prefix.to_owned()..).map(|(_, (entry, _))| entry);
        range.take_while(move |entry| entry.key.starts_with(prefix))
    }

    /// Those that somebody uses.
    pub fn leases(&self) -> usize {
        self.leases.values().filter(|held| !held.keys.is_empty()).count()
    }

    /// What happened to nodes and those who serve, since the last time.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn end(&mut self, lease: Lease) {
        let Some(held) = self.leases.remove(&lease.0) else { return };
        self.revision += u64::from(!held.keys.is_empty());
        for key in held.keys {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        let Some((entry, lease)) = self.entries.remove(key) else { return };
        if let Some(held) = lease.and_then(|lease| self.leases.get_mut(&lease.0)) {
            held.keys.remove(key);
        }
        self.costs.remove(key, entry.value.len());
        self.tell(key, None);
    }

    fn tell(&mut self, key: &str, entry: Option<Entry>) {
        if key.starts_with(NODES) || key.starts_with(MEMBERS) {
            self.events.push(Event { key: key.to_owned(), entry, revision: self.revision });
        }
    }

    fn apply(&mut self, transaction: &Transaction) -> Answer<Applied> {
        let (compares, changes) = (transaction.compares.len(), transaction.puts.len() + transaction.deletes.len());
        assert!(compares <= CHANGES_MAX && changes <= CHANGES_MAX, "{compares} compares, {changes} changes");
        let modified = |key: &String| self.get(key).map_or(0, |entry| entry.modified);
        if transaction.compares.iter().any(|compare| modified(&compare.key) != compare.modified) {
            self.costs.refused += 1;
            return Ok(Applied::Refused);
        }
        if transaction.puts.iter().filter_map(|put| put.lease).any(|lease| !self.leases.contains_key(&lease.0)) {
            return Err(Failure::Refused(Error::new(Kind::NotFound, "write to the registry", "the lease is gone")));
        }
        self.revision += 1;
        self.costs.committed += 1;
        self.costs.most_changes = self.costs.most_changes.max(changes);
        let size = transaction.puts.iter().map(|put| put.key.len() + put.value.len()).sum();
        self.costs.largest = self.costs.largest.max(size);
        for key in &transaction.deletes {
            self.remove(key);
        }
        for put in &transaction.puts {
            assert!(put.value.len() <= VALUE_MAX, "{} has {} bytes", put.key, put.value.len());
            self.put(&put.key, &put.value, put.lease);
        }
        Ok(Applied::Committed(self.revision))
    }

    fn put(&mut self, key: &str, value: &[u8], lease: Option<Lease>) {
        let (old, old_lease) = self.entries.remove(key).map_or((None, None), |(old, lease)| (Some(old), lease));
        if let Some(held) = old_lease.and_then(|lease| self.leases.get_mut(&lease.0)) {
            held.keys.remove(key);
        }
        if let Some(held) = lease.and_then(|lease| self.leases.get_mut(&lease.0)) {
            held.keys.insert(key.to_owned());
        }
        let created = old.as_ref().map_or(self.revision, |old| old.created);
        self.costs.put(key, value.len(), old.map(|old| old.value.len()));
        let entry = Entry { key: key.to_owned(), value: value.to_vec(), created, modified: self.revision };
        self.tell(key, Some(entry.clone()));
        self.entries.insert(key.to_owned(), (entry, lease));
    }
}

/// What a node has of the registry.
pub struct Wire<'a> {
    pub simulation: &'a Simulation,
    pub node: usize,
}

impl std::fmt::Debug for Wire<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({})", self.node)
    }
}

impl Wire<'_> {
    /// The truth, unless nobody answers. Others may come before.
    fn store(&self) -> Answer<std::sync::MutexGuard<'_, Store>> {
        self.simulation.let_others_come(self.node);
        let store = self.simulation.store.lock().unwrap();
        if store.away || self.simulation.is_cut(self.node) { Err(away()) } else { Ok(store) }
    }
}

fn away() -> Failure {
    Failure::Unavailable(Error::new(Kind::System, "reach the registry", "nobody answers"))
}

fn doubt() -> Failure {
    Failure::Indeterminate(Error::new(Kind::System, "write to the registry", "the answer was lost"))
}

impl Registry for Wire<'_> {
    fn identity(&self) -> Answer<String> {
        Ok("simulated".to_owned())
    }

    fn get(&self, key: &str) -> Answer<Option<Entry>> {
        let mut store = self.store()?;
        store.costs.reads += 1;
        Ok(store.get(key).cloned())
    }

    fn list(&self, prefix: &str) -> Answer<Listing> {
        let mut store = self.store()?;
        store.costs.reads += 1;
        Ok(Listing { revision: store.revision, entries: store.list(prefix).cloned().collect() })
    }

    fn apply(&self, transaction: &Transaction) -> Answer<Applied> {
        // A write may be on its way when the wire is cut.
        let cut = self.simulation.is_cut(self.node) && self.simulation.chance(500);
        if cut || self.simulation.is_faulty(self.simulation.plan.lost_calls) {
            self.simulation.ledger.lock().unwrap().lost_calls += 1;
            if self.simulation.chance(400) {
                let mut store = self.simulation.store.lock().unwrap();
                let at = store.now + self.simulation.within(1..5000);
                let number = self.simulation.within(0..u64::MAX);
                store.late.insert((at, number), transaction.clone());
            }
            return Err(doubt());
        }
        let answer = self.store()?.apply(transaction);
        if self.simulation.is_faulty(self.simulation.plan.lost_calls) {
            self.simulation.ledger.lock().unwrap().lost_answers += 1;
            return Err(doubt());
        }
        answer
    }

    fn grant(&self, time: Duration) -> Answer<Lease> {
        let mut store = self.store()?;
        store.granted += 1;
        let (lease, time) = (store.granted, u64::try_from(time.as_millis()).unwrap());
        let until = store.now + time;
        store.leases.insert(lease, Held { until, time, keys: BTreeSet::new() });
        store.ends.push(Reverse((until, lease)));
        Ok(Lease(lease))
    }

    fn renew(&self, lease: Lease) -> Answer<Renewed> {
        let mut store = self.store()?;
        store.costs.renewals += 1;
        let now = store.now;
        Ok(match store.leases.get_mut(&lease.0) {
            Some(held) => {
                held.until = now + held.time;
                Renewed::Yes
            }
            None => Renewed::Gone,
        })
    }

    fn revoke(&self, lease: Lease) -> Answer<()> {
        self.store()?.end(lease);
        Ok(())
    }

    fn watch(&self, _: &str, _: u64) -> Answer<Box<dyn Watch>> {
        Err(away())
    }
}
