//! How clients' requests become operations.

use regen::error::Kind as Fault;
use regen::operation::course::Afterwards;
use regen::operation::marker::{Marker, Taken, owner};
use regen::operation::queue::{Admission, Asked, Bounds, Late, admit};
use regen::operation::{Clock, Counts, OperationId, Record, Resource, State, key};
use regen::registry::{Failure, Registry};

use crate::daemon::{Active, Daemon};
use crate::event::Event;
use crate::request::Request;
use crate::simulation::Simulation;

pub fn resources(record: &Record) -> Vec<Resource> {
    let all = |target| Resource::all(record.kind, target, &record.parameters).unwrap();
    record.targets.iter().flat_map(all).collect()
}

impl Simulation {
    /// A client asks.
    pub fn submit(&self, node: usize, request: &Request) {
        // It is in the middle of another one.
        let Ok(mut daemon) = self.nodes[node].daemon.try_lock() else { return };
        self.within_submission(|| self.admit(node, &mut daemon, request));
        let life = self.life(node);
        self.dispatch(node, &mut daemon);
        self.watch_over(life, &mut daemon);
    }

    fn admit(&self, node: usize, daemon: &mut Daemon, request: &Request) {
        self.ledger.lock().unwrap().asked += 1;
        if !daemon.recovered {
            return;
        }
        let hands = self.hands(node);
        let known = request.key.as_ref().map(|text| hands.wire.get(&key::idempotency(text)));
        let Ok(known) = known.transpose() else { return };
        let known = known.flatten().as_ref().and_then(owner);
        let directory = self.directory.snapshot();
        let is_strange = |name: &&_| *name != hands.name && directory.node(name).is_none();
        let stranger = request.targets.iter().map(|target| &target.node).find(is_strange).cloned();
        let (kind, targets) = (request.kind, request.targets.len());
        let asked = Asked { kind, targets, stranger, late: Late::No, known };
        match admit(&daemon.load(), &Bounds::default(), &asked) {
            Admission::Accept => {}
            Admission::Duplicate(_) => return self.ledger.lock().unwrap().duplicates += 1,
            Admission::Refuse(_) => return self.ledger.lock().unwrap().refused += 1,
        }
        let (record, began) = (self.record(node, request), self.now());
        let resources = resources(&record);
        let admitted = hands.book(daemon).admit(&record, &resources);
        let mut ledger = self.ledger.lock().unwrap();
        match admitted {
            Ok((held, Taken::Taken(claim))) => {
                ledger.answered.insert(record.id, (request.clone(), self.now()));
                ledger.give(record.id, kind, &resources, &self.store.lock().unwrap());
                drop(ledger);
                if let Some(time) = request.cancelled_after {
                    self.later(time, Event::Cancel { life: self.life(node), id: record.id });
                }
                let mut active = Active::new(record, claim.token, (held.number, claim), Afterwards::NotDone);
                active.held = request.held;
                daemon.take_up(active);
            }
            Ok((_, Taken::Duplicate(_))) => ledger.duplicates += 1,
            Ok((_, Taken::Held(holder))) => {
                let (operation, node) = (record.id, record.node.clone());
                let marker = Marker { operation, kind, node, since: record.created };
                ledger.conflicts += 1;
                ledger.check_holder(&holder, (&marker, &resources), (&self.store.lock().unwrap(), began));
            }
            Err(Failure::Indeterminate(_)) => {
                ledger.doubted.insert(record.id);
                daemon.doubtful.push(record);
            }
            Err(Failure::Unavailable(_)) => ledger.unavailable += 1,
            Err(Failure::Refused(error)) if error.kind() == Fault::NotFound => ledger.unavailable += 1,
            Err(failure) => panic!("{failure:?}"),
        }
    }

    fn record(&self, node: usize, request: &Request) -> Record {
        let created = self.clock(node).wall();
        Record {
            id: OperationId::new(u64::try_from(created.timestamp_millis()).unwrap(), self.bytes()),
            kind: request.kind,
            state: State::Queued,
            node: self.nodes[node].name.clone(),
            requester: "alice".to_owned(),
            created,
            started: None,
            ended: None,
            counts: Counts { total: request.targets.len(), ..Counts::default() },
            error: None,
            key: request.key.clone(),
            deadline_ms: None,
            since: None,
            token: None,
            chunks: 0,
            parameters: request.parameters.clone(),
            targets: request.targets.clone(),
            results: Vec::new(),
        }
    }
}
