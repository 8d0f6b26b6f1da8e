//! What an all-seeing witness writes down, and what it objects to at once.

use std::collections::{BTreeMap, BTreeSet};

use regen::ids::NodeName;
use regen::operation::class::{class, conflict};
use regen::operation::marker::{Holder, Marker};
use regen::operation::{Kind, OperationId, Record, Resource, Target, key};
use regen::ops::operation::Task;

use crate::registry::Store;
use crate::request::Request;

/// Work that a node has begun.
#[derive(Debug)]
struct Begun {
    id: OperationId,
    subject: String,
    kind: Kind,
    resources: Vec<Resource>,
    token: u64,
}

/// What an operation was given.
type Given = (OperationId, Kind, Resource);

#[derive(Debug, Default)]
pub struct Ledger {
    pub asked: u64,
    pub answered: BTreeMap<OperationId, (Request, u64)>,
    pub doubted: BTreeSet<OperationId>,
    pub ends: BTreeMap<OperationId, u64>,
    pub duplicates: u64,
    pub conflicts: u64,
    /// Refused before anything is asked of the registry.
    pub refused: u64,
    /// Not taken, because the registry did not answer.
    pub unavailable: u64,
    pub cancelled: u64,
    pub tasks: u64,
    pub retries: u64,
    pub fenced: u64,
    pub taken_up: u64,
    /// … of which somebody else had something by then.
    pub barred: u64,
    pub buried: u64,
    /// … by the node's next daemon, because they came to be when that was there.
    pub orphans: u64,
    pub leases_lost: u64,
    pub registrations: u64,
    pub crashes: u64,
    pub gone: u64,
    pub cuts: u64,
    pub hangs: u64,
    pub set_clocks: u64,
    pub outages: u64,
    pub lost_calls: u64,
    pub lost_answers: u64,
    pub lost_messages: u64,
    pub late_messages: u64,
    /// Nodes that have operations and were not there at the last look.
    pub missed: BTreeSet<NodeName>,
    begun: BTreeMap<(usize, String), Vec<Begun>>,
    /// Who was given what, by node and root.
    given: BTreeMap<(NodeName, String), Vec<Given>>,
    /// How often each target was begun and left something, and how often it was done.
    times: BTreeMap<(OperationId, Target), (u64, u64)>,
}

impl Ledger {
    /// A node begins to work: nobody with a higher token may have been there before, and nobody does anything twice.
    pub fn begin(&mut self, node: usize, task: &Task, resources: &[Resource]) {
        let (id, kind, token) = (task.operation, task.kind, task.token.number);
        let before = self.begun.entry((node, resources[0].root().to_owned())).or_default();
        for other in before.iter().filter(|other| conflict(other.kind, kind)) {
            let meet = other.resources.iter().any(|one| resources.iter().any(|other| one.overlaps(other)));
            if other.id != id && meet {
                assert!(other.token < token, "{kind} {id} works with {token} after {other:?}");
            }
            let twice = (other.id, &other.subject) == (id, &task.target.subject) && !kind.repeatable();
            assert!(!twice, "{kind} {id} begins a second time with {token}, after {other:?}");
        }
        let subject = task.target.subject.clone();
        before.push(Begun { id, subject, kind, resources: resources.to_vec(), token });
        self.times.entry((id, task.target.clone())).or_default().0 += 1;
    }

    fn time(&mut self, node: usize, (id, subject): &(OperationId, String)) -> &mut (u64, u64) {
        let node = crate::request::name(node).parse().unwrap();
        self.times.get_mut(&(*id, Target { node, subject: subject.clone() })).unwrap()
    }

    pub fn finish(&mut self, node: usize, target: &(OperationId, String)) {
        let (begun, finished) = self.time(node, target);
        *finished += 1;
        assert!(finished <= begun, "{node} {target:?}");
    }

    /// Nothing is left of what was begun.
    pub fn undo(&mut self, node: usize, target: &(OperationId, String)) {
        self.time(node, target).0 -= 1;
    }

    pub fn times(&self, id: OperationId, target: &Target) -> (u64, u64) {
        self.times.get(&(id, target.clone())).copied().unwrap_or_default()
    }

    /// A daemon that trusts its lease has its markers in the registry, and so nobody else has.
    pub fn check_marker(&self, record: &Record, target: &Target, store: &Store) {
        let holds = |name: &str| {
            let marker = store.get(name).map(|entry| serde_json::from_slice::<Marker>(&entry.value).unwrap());
            marker.is_some_and(|marker| marker.operation == record.id)
        };
        let wide = format!("wide/{}", record.id);
        // It has ten thousand resources, and every task of it comes here.
        if store.get(&wide).is_some() {
            return;
        }
        let resources = Resource::all(record.kind, target, &record.parameters).unwrap();
        let mut names = resources
            .iter()
            .flat_map(|resource| class(record.kind).iter().map(move |class| format!("marker/{resource}/{class}")));
        assert!(names.all(|name| holds(&name)), "{} {} has no marker", record.kind, record.id);
    }

    /// An operation is given what it takes: nobody who contradicts may have a marker for that.
    pub fn give(&mut self, id: OperationId, kind: Kind, resources: &[Resource], store: &Store) {
        let holds = |id: &OperationId, kind: Kind, resource: &Resource| {
            let narrow = class(kind).iter().map(|class| format!("marker/{resource}/{class}"));
            let is_its = |name: String| {
                store
                    .get(&name)
                    .is_some_and(|entry| entry.value.windows(32).any(|part| part == id.to_string().as_bytes()))
            };
            store.get(&format!("wide/{id}")).is_some() || narrow.into_iter().any(is_its)
        };
        for resource in resources {
            let others = self.given.entry((resource.node.clone(), resource.root().to_owned())).or_default();
            others.retain(|(other, ..)| !self.ends.contains_key(other));
            for (other, other_kind, other_resource) in others.iter() {
                let meet = conflict(*other_kind, kind) && other_resource.overlaps(resource) && *other != id;
                assert!(
                    !meet || !holds(other, *other_kind, other_resource),
                    "{kind} {id} and {other_kind} {other} both have '{resource}'"
                );
            }
            others.push((id, kind, resource.clone()));
        }
    }

    /// Who is told to wait is told for whom: an operation that contradicts, and that was not over before this was asked.
    pub fn check_holder(
        &self,
        holder: &Holder,
        (marker, resources): (&Marker, &[Resource]),
        (store, began): (&Store, u64),
    ) {
        let other = &holder.marker;
        assert!(other.operation != marker.operation && conflict(other.kind, marker.kind), "{holder:?} {marker:?}");
        assert!(resources.iter().any(|resource| resource.overlaps(&holder.resource)), "{holder:?}");
        assert!(self.ends.get(&other.operation).is_none_or(|end| *end >= began), "{holder:?} was over");
        let head = store.get(&key::head(&other.operation)).map(|entry| Record::read(entry).unwrap());
        // A wide one is known by its marker before it is written down.
        let Some(record) = head else { return };
        let all = |target| Resource::all(record.kind, target, &record.parameters).unwrap();
        let mut all = record.targets.iter().flat_map(all);
        let known = record.targets.is_empty() || all.any(|resource| resource.overlaps(&holder.resource));
        assert!(known, "{holder:?} is not about that");
    }
}
