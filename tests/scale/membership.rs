//! That a node is there and who serves on it, as it tells, and as the others hear it.

use std::collections::BTreeSet;
use std::time::Duration;

use regen::error::{Error, Kind as Fault};
use regen::ids::NodeName;
use regen::node::{Capacity, Counts, MEMBERS, NODES, Node, State, Versions, member_key, node_key};
use regen::operation::book::Book;
use regen::operation::{Clock, key};
use regen::registry::{Answer, Applied, Compare, Failure, Lease, Listing, Put, Registry, Renewed, Transaction};
use regen::service::roster::Member;
use serde_json::json;

use crate::daemon::Daemon;
use crate::event::Event;
use crate::registry::Wire;
use crate::request::number;
use crate::simulation::Simulation;

/// How long a node's own lease lasts, and when it is renewed: as daemons have it (`ops::cluster`).
const LEASE: Duration = Duration::from_secs(30);
const RENEWAL: Duration = Duration::from_secs(10);
/// So many services there are for each that a node has.
const SPREAD: usize = 300;

/// A node's lease, and when it was renewed.
#[derive(Debug, Clone, Copy)]
pub struct Joined {
    lease: Lease,
    renewed: Duration,
}

impl Simulation {
    /// Renews a node's lease, and registers it where that is gone.
    pub fn attend(&self, node: usize, daemon: &mut Daemon) {
        let (wire, now) = (Wire { simulation: self, node }, self.clock(node).elapsed());
        if let Some(joined) = &mut daemon.joined {
            if now + Duration::from_secs(1) < joined.renewed + RENEWAL {
                return;
            }
            match wire.renew(joined.lease) {
                Ok(Renewed::Yes) => return joined.renewed = now,
                // It is tried again soon.
                Err(_) => return,
                Ok(Renewed::Gone) => daemon.joined = None,
            }
        }
        daemon.joined = self.join(node, &wire, now).ok();
    }

    fn join(&self, node: usize, wire: &Wire<'_>, renewed: Duration) -> Answer<Joined> {
        self.ledger.lock().unwrap().registrations += 1;
        let there = wire.get(&node_key(&self.nodes[node].name))?.map_or(0, |entry| entry.modified);
        let lease = wire.grant(LEASE)?;
        let (record, members) = (self.node_record(node), (0..self.plan.members).map(|number| member(node, number)));
        let mut puts = vec![Put::leased(node_key(&record.name), serde_json::to_vec(&record).unwrap(), lease)];
        puts.extend(members.map(|member| {
            let name = member_key(&record.name, &member.name, &member.version);
            Put::leased(name, serde_json::to_vec(&member).unwrap(), lease)
        }));
        // What comes late of an earlier attempt changes nothing.
        let compares = vec![Compare::unchanged(node_key(&record.name), there)];
        match wire.apply(&Transaction { compares, puts, deletes: Vec::new() })? {
            Applied::Committed(_) => Ok(Joined { lease, renewed }),
            Applied::Refused => {
                Err(Failure::Unavailable(Error::new(Fault::Busy, "register the node", "it is done just now")))
            }
        }
    }

    fn node_record(&self, node: usize) -> Node {
        let (high, low) = (node / 250, node % 250);
        Node {
            name: self.nodes[node].name.clone(),
            identity: format!("{node:032x}"),
            address: Some(format!("10.7.{high}.{low}:7117").parse().unwrap()),
            labels: vec!["zone=b".parse().unwrap(), "disk=nvme".parse().unwrap()],
            capacity: Capacity { cpus: 32, memory: 128 << 30 },
            versions: Versions { regen: "0.1.0".to_owned(), protocol: 1, kernel: "6.18.0-1-amd64".to_owned() },
            counts: Counts { services: self.plan.members as u64, templates: 4, rings: 100 },
            state: State::Ready,
            started: self.clock(node).wall(),
        }
    }

    /// What the registry told in the last second.
    pub fn feed(&self) {
        self.later(1000, Event::Feed);
        let mut store = self.store.lock().unwrap();
        if store.away {
            return;
        }
        let events = store.take_events();
        drop(store);
        if !events.is_empty() {
            self.directory.apply(&events);
        }
    }

    /// Who was not heard for a while is listed.
    pub fn come_back(&self) {
        let mut store = self.store.lock().unwrap();
        store.come_back();
        store.take_events();
        for prefix in [NODES, MEMBERS] {
            let entries = store.list(prefix).cloned().collect();
            self.directory.reset(prefix, &Listing { revision: 0, entries });
        }
    }

    /// Ends what nodes had that do not come back, as `ops::cluster::mourn` does on every node.
    pub fn mourn(&self) {
        self.later(30_000, Event::Mourn);
        let first = self.below(self.plan.nodes);
        let is_able = |node: &usize| {
            let state = self.nodes[*node].state.lock().unwrap();
            state.up && state.asleep_until <= self.now() && state.cut_until <= self.now()
        };
        let observer = (first..self.plan.nodes).chain(0..first).find(is_able);
        let known = self.directory.snapshot();
        let mut ledger = self.ledger.lock().unwrap();
        let Some(observer) = observer.filter(|_| !self.store.lock().unwrap().away) else {
            return ledger.missed.clear();
        };
        let listed: Vec<_> = self.store.lock().unwrap().list(key::ACTIVE).map(|entry| entry.key.clone()).collect();
        let busy = listed.iter().map(|key| key.split('/').nth(1).unwrap().parse::<NodeName>().unwrap());
        let busy: BTreeSet<_> = busy.collect();
        let gone: BTreeSet<_> = busy.iter().filter(|name| known.node(name).is_none()).cloned().collect();
        ledger.missed.retain(|name| gone.contains(name));
        let late: Vec<_> = ledger.missed.iter().cloned().collect();
        ledger.missed.extend(gone);
        drop(ledger);
        for node in busy.iter().map(|name| number(name.as_str())).filter(is_able) {
            let (hands, daemon) = (self.hands(node), self.nodes[node].daemon.lock().unwrap());
            if daemon.recovered
                && let Ok(count) = hands.book(&daemon).bury(hands.name, &|id| daemon.active.contains_key(id))
            {
                self.ledger.lock().unwrap().orphans += count as u64;
            }
        }
        let (wire, clock, daemon) =
            (Wire { simulation: self, node: observer }, self.clock(observer), Daemon::default());
        let Daemon { markers, keeper, .. } = &daemon;
        let name = &self.nodes[observer].name;
        let book = Book { registry: &wire, node: name, clock: &clock, markers, lease: keeper };
        for name in late {
            if let Ok(count) = book.bury(&name, &|_| false) {
                self.ledger.lock().unwrap().buried += count as u64;
            }
        }
    }
}

/// Who serves, as the others are told.
fn member(node: usize, number: usize) -> Member {
    let service = (node * 7 + number * SPREAD / 3) % SPREAD;
    let address = format!("tcp://10.7.{}.{}:{}", node / 250, node % 250, 8000 + number);
    let member = json!({
        "name": format!("service-{service}"),
        "version": format!("1.{number}.0"),
        "instance": format!("service-{service}-1.{number}.0-1"),
        "listen": [{"name": "http", "address": address}],
    });
    serde_json::from_value(member).unwrap()
}
