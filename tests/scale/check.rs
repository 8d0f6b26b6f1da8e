//! What is asked at the end, and what is told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use regen::node::{MEMBERS, NODES, Node};
use regen::operation::record::read_results;
use regen::operation::{OperationId, Record, State, key};

use crate::ledger::Ledger;
use crate::registry::Store;
use crate::request::Request;
use crate::simulation::Simulation;

impl Simulation {
    /// After all faults are over.
    pub fn check(&self) {
        let (ledger, store) = (self.ledger.lock().unwrap(), self.store.lock().unwrap());
        for prefix in ["marker/", "wide/", "active/"] {
            let left: Vec<_> = store.list(prefix).map(|entry| &entry.key).collect();
            assert!(left.is_empty(), "seed {}: held by nobody: {left:?}", self.plan.seed);
        }
        assert!(self.nodes.iter().all(|node| !node.daemon.lock().unwrap().is_busy()), "somebody is not done");
        let mut keys = BTreeSet::new();
        for entry in store.list(key::OPERATION).filter(|entry| entry.key.matches('/').count() == 1) {
            let record = Record::read(entry).unwrap();
            let known = ledger.answered.contains_key(&record.id) || ledger.doubted.contains(&record.id);
            assert!(known, "nobody asked for {record:?}");
            assert!(record.state.is_final(), "it never ended: {record:?}");
            if let Some(text) = record.key {
                assert!(keys.insert(text.clone()), "two operations have the key {text}");
            }
        }
        for (id, (request, _)) in &ledger.answered {
            self.check_operation(&ledger, &store, (id, request));
        }
        self.check_nodes(&ledger, &store);
    }

    /// All that live are registered, with what they serve, and everybody knows that.
    fn check_nodes(&self, ledger: &Ledger, store: &Store) {
        let there = self.plan.nodes - usize::try_from(ledger.gone).unwrap();
        assert_eq!(store.list(NODES).count(), there, "not all nodes are back");
        assert_eq!(store.list(MEMBERS).count(), there * self.plan.members);
        assert_eq!(store.leases(), there, "leases that nobody needs");
        let known = self.directory.snapshot();
        let nodes: Vec<Node> = store.list(NODES).map(|entry| serde_json::from_slice(&entry.value).unwrap()).collect();
        assert!(known.nodes().map(|node| &**node).eq(&nodes), "the copy says something else");
        assert_eq!(known.members().count(), there * self.plan.members);
    }

    fn check_operation(&self, ledger: &Ledger, store: &Store, (id, request): (&OperationId, &Request)) {
        let entry = store.get(&key::head(id)).unwrap_or_else(|| panic!("{id} was answered and is lost"));
        let record = Record::read(entry).unwrap();
        if record.chunks == 0 {
            // Others ended it, because its node did not come back.
            return assert_eq!(record.state, State::Unknown, "{record:?}");
        }
        let pieces = (0..record.chunks).map(|number| store.get(&key::results(id, number)).unwrap());
        let results: Vec<_> = pieces.flat_map(|piece| read_results(piece).unwrap()).collect();
        assert_eq!(results.len(), request.targets.len(), "{record:?}");
        for (target, outcome) in request.targets.iter().zip(&results) {
            let (begun, finished) = ledger.times(*id, target);
            let text = || format!("seed {}: {target} of {record:?}: {outcome:?}", self.plan.seed);
            match outcome.state {
                State::Succeeded => assert!(finished > 0, "it was not done: {}", text()),
                State::Failed | State::Cancelled => assert!(begun == 0, "it was begun: {}", text()),
                State::Unknown => {}
                State::Queued | State::Running => panic!("it is not over: {}", text()),
            }
        }
        if record.state == State::Succeeded {
            assert!(results.iter().all(|outcome| outcome.state == State::Succeeded), "{record:?}");
        }
    }

    /// Otherwise the rest says little.
    pub fn assert_that_it_was_hard(&self) {
        let ledger = self.ledger.lock().unwrap();
        let counts = [
            ("conflicts", ledger.conflicts),
            ("refused by fences", ledger.fenced),
            ("taken up", ledger.taken_up),
            ("leases lost", ledger.leases_lost),
            ("duplicates", ledger.duplicates),
            ("cancelled", ledger.cancelled),
            ("retries", ledger.retries),
            ("crashes", ledger.crashes),
            ("gone", ledger.gone),
            ("cuts", ledger.cuts),
            ("hangs", ledger.hangs),
            ("lost calls", ledger.lost_calls),
            ("lost answers", ledger.lost_answers),
            ("late messages", ledger.late_messages),
        ];
        assert!(counts.iter().all(|(_, count)| *count >= 10), "{counts:?}");
        assert!(ledger.outages > 0 && ledger.buried > 0, "{} {}", ledger.outages, ledger.buried);
    }

    /// What it cost, and what happened.
    pub fn report(&self) -> String {
        let (ledger, store) = (self.ledger.lock().unwrap(), self.store.lock().unwrap());
        let seconds = self.now() / 1000;
        let (nodes, members) = (self.plan.nodes, self.plan.members);
        let mut text = format!("{nodes} nodes, {members} services each, {seconds} s of virtual time\n");
        report_work(&mut text, &ledger, &store);
        report_costs(&mut text, &store, (nodes, seconds));
        for (id, (request, at)) in &ledger.answered {
            if request.targets.len() == nodes
                && let Some(end) = ledger.ends.get(id)
            {
                writeln!(text, "all {nodes} nodes by one operation: over after {} ms", end - at).unwrap();
            }
        }
        text
    }
}

fn report_work(text: &mut String, ledger: &Ledger, store: &Store) {
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for id in ledger.answered.keys() {
        let record = Record::read(store.get(&key::head(id)).unwrap()).unwrap();
        *states.entry(record.state.to_string()).or_default() += 1;
    }
    let answered = ledger.answered.len();
    let targets: usize = ledger.answered.values().map(|(request, _)| request.targets.len()).sum();
    let Ledger { asked, conflicts, duplicates, refused, unavailable, cancelled, .. } = ledger;
    let doubted = ledger.doubted.len();
    writeln!(
        text,
        "operations: {asked} asked, {answered} answered with {targets} targets, {conflicts} conflicts, {duplicates} \
         duplicates, {refused} of unknown nodes, {unavailable} without registry, {doubted} in doubt, {cancelled} \
         cancelled; {states:?}",
    )
    .unwrap();
    let Ledger { tasks, retries, fenced, taken_up, barred, leases_lost, buried, .. } = ledger;
    writeln!(
        text,
        "work: {tasks} tasks arrived at other nodes, {retries} put off and tried again, {fenced} refused by fences, \
         {taken_up} operations taken up by a new daemon ({barred} barred), {leases_lost} lost with a lease, {buried} \
         ended by others",
    )
    .unwrap();
    let Ledger { crashes, gone, cuts, hangs, set_clocks, lost_calls, lost_answers, .. } = ledger;
    let Ledger { lost_messages, late_messages, .. } = ledger;
    writeln!(
        text,
        "faults: {crashes} crashes ({gone} for good), {cuts} cuts, {hangs} hangs, {set_clocks} clocks set, {} outage of 45 \
         s; lost: {lost_calls} calls, {lost_answers} answers, {lost_messages} messages; {late_messages} late",
        ledger.outages,
    )
    .unwrap();
}

fn report_costs(text: &mut String, store: &Store, (nodes, seconds): (usize, u64)) {
    let costs = &store.costs;
    writeln!(
        text,
        "registry: {} transactions ({} refused; the largest {} bytes and {} changes), {} reads, {} renewals ({} a \
         second), longest value {}",
        costs.committed,
        costs.refused,
        costs.largest,
        costs.most_changes,
        costs.reads,
        costs.renewals,
        costs.renewals / seconds.max(1),
        costs.longest
    )
    .unwrap();
    let told = costs.told * nodes as u64;
    let bytes = costs.told_bytes as u64 * nodes as u64 / 1_000_000;
    writeln!(
        text,
        "watches: {} changes of nodes and members, to each of {nodes}: {told} events, {bytes} MB",
        costs.told
    )
    .unwrap();
    for (name, family) in &costs.families {
        let (keys, bytes, events) = (family.most_keys, family.most_bytes, family.events);
        writeln!(text, "{name:<24} at most {keys:>7} keys, {bytes:>9} bytes; {events:>7} events").unwrap();
    }
}
