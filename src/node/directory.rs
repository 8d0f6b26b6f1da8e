//! A copy of which nodes there are and who serves on them, fed by what the registry tells.
//!
//! ```text
//! Listing, Event ──> truth: nodes, members by key (under a lock, of who feeds)
//!                      └─> Snapshot: nodes that are there; members of those, sorted ──> readers, who wait for nobody
//! ```
//!
//! A member whose node is not there is kept and not shown: the two come by different ways, in any order.
//!
//! What a member is, is said by who uses this ([`Offer`]); how a version is chosen, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use semver::Version;
use serde::de::DeserializeOwned;

use super::freshness::Freshness;
use super::key::{Key, parse_key};
use super::shard::Sharded;
use super::{MEMBERS, NODES, Node, NodeName};
use crate::error::Result;
use crate::ids::Name;
use crate::registry::{Entry, Event, Listing};
use crate::sys::bell::Bell;

/// Somebody who serves.
pub trait Offer: DeserializeOwned + Send + Sync + std::fmt::Debug {
    /// The service.
    fn service(&self) -> &Name;
    /// Its version.
    fn version(&self) -> &Version;
}

/// Somebody who serves on a node.
#[derive(Debug)]
pub struct Placed<M> {
    /// Where.
    pub node: NodeName,
    /// Who.
    pub offer: Arc<M>,
    turns: Arc<AtomicUsize>,
}

impl<M> Clone for Placed<M> {
    fn clone(&self) -> Self {
        Self { node: self.node.clone(), offer: Arc::clone(&self.offer), turns: Arc::clone(&self.turns) }
    }
}

/// The state at one moment.
#[derive(Debug)]
pub struct Snapshot<M> {
    number: u64,
    nodes: Arc<BTreeMap<NodeName, Arc<Node>>>,
    /// Of each service those who serve, oldest version first, then by node.
    services: Sharded<Arc<Vec<Placed<M>>>>,
}

impl<M> Clone for Snapshot<M> {
    fn clone(&self) -> Self {
        Self { number: self.number, nodes: Arc::clone(&self.nodes), services: self.services.clone() }
    }
}

impl<M> Default for Snapshot<M> {
    fn default() -> Self {
        Self { number: 0, nodes: Arc::default(), services: Sharded::default() }
    }
}

impl<M: Offer> Snapshot<M> {
    /// How many changes there were.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The nodes that are there, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// A node, if it is there.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// Everybody who serves on a node that is there, in no order.
    pub fn members(&self) -> impl Iterator<Item = &Placed<M>> {
        self.services.iter().flat_map(|(_, placed)| placed.iter())
    }

    /// Those who serve a service, oldest version first.
    #[must_use]
    pub fn service(&self, name: &Name) -> &[Placed<M>] {
        self.services.get(name).map_or(&[], |placed| placed.as_slice())
    }

    /// Every service that somebody serves, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Name> {
        self.services.iter().map(|(name, _)| name)
    }

    /// Who a client is sent to. `choose` takes those out of all, who are sorted by version, that are as good as each other
    /// (`service::choice::newest`), and they take turns; `None` if it takes none.
    pub fn resolve(&self, name: &Name, choose: impl FnOnce(&[Placed<M>]) -> &[Placed<M>]) -> Option<&Placed<M>> {
        match choose(self.service(name)) {
            [] => None,
            [only] => Some(only),
            equals => {
                let turn = equals[0].turns.fetch_add(1, Ordering::Relaxed);
                equals.get(turn % equals.len())
            }
        }
    }
}

/// The copy.
#[derive(Debug)]
pub struct Directory<M> {
    own: NodeName,
    /// What readers read; held for as long as a pointer is copied.
    now: RwLock<Arc<Snapshot<M>>>,
    truth: Mutex<Truth<M>>,
    freshness: Freshness,
}

/// All that was heard, also what is not shown.
#[derive(Debug)]
struct Truth<M> {
    nodes: BTreeMap<NodeName, Arc<Node>>,
    /// By node, then by key.
    members: BTreeMap<NodeName, BTreeMap<String, Arc<M>>>,
    /// The same by service, then by node and key.
    services: BTreeMap<Name, BTreeMap<(NodeName, String), Arc<M>>>,
    bells: Vec<Weak<Bell>>,
}

impl<M> Default for Truth<M> {
    fn default() -> Self {
        Self { nodes: BTreeMap::new(), members: BTreeMap::new(), services: BTreeMap::new(), bells: Vec::new() }
    }
}

/// What has to be shown anew after changes of the truth.
#[derive(Debug, Default)]
struct Touched {
    nodes: bool,
    services: BTreeSet<Name>,
}

impl<M: Offer> Directory<M> {
    /// Nothing yet, on the node of this name. Who serves there is known better by itself, and is not in here.
    #[must_use]
    pub fn new(own: NodeName) -> Self {
        Self { own, now: RwLock::default(), truth: Mutex::default(), freshness: Freshness::default() }
    }

    /// The state of now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot<M>> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long the registry has not been heard for; none while all that happens arrives. What is shown then was so that
    /// long ago.
    #[must_use]
    pub fn stale_for(&self) -> Option<Duration> {
        self.freshness.age()
    }

    /// From now on all that happens arrives.
    pub fn set_fed(&self) {
        self.freshness.begin();
    }

    /// From now on it does not, until it is said again that it does.
    pub fn set_unfed(&self) {
        self.freshness.end();
    }

    /// Is rung, at first and whenever something is different. Silence it first, then look at the state.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn bell(&self) -> Result<Arc<Bell>> {
        let bell = Arc::new(Bell::new()?);
        bell.ring();
        let mut truth = self.lock();
        truth.bells.retain(|bell| bell.strong_count() > 0);
        truth.bells.push(Arc::downgrade(&bell));
        Ok(bell)
    }

    /// All that has this prefix ([`NODES`] or [`MEMBERS`]) is what a listing of it says.
    pub fn reset(&self, prefix: &str, listing: &Listing) {
        let mut truth = self.lock();
        let mut touched = Touched::default();
        let there: BTreeSet<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
        if prefix == NODES {
            let gone = |name: &&NodeName| !there.contains(super::node_key(name).as_str());
            let gone: Vec<_> = truth.nodes.keys().filter(gone).cloned().collect();
            gone.iter().for_each(|name| truth.put_node(name, None, &mut touched));
        } else if prefix == MEMBERS {
            let keys = truth.members.iter().flat_map(|(node, members)| members.keys().map(move |key| (node, key)));
            let gone = keys.filter(|(_, key)| !there.contains(key.as_str()));
            let gone: Vec<_> = gone.map(|(node, key)| (node.clone(), key.clone())).collect();
            gone.iter().for_each(|(node, key)| truth.put_member(node, key, None, &mut touched));
        }
        listing.entries.iter().for_each(|entry| truth.apply(&self.own, &entry.key, Some(entry), &mut touched));
        self.publish(&truth, &touched);
    }

    /// What a watch told.
    pub fn apply(&self, events: &[Event]) {
        let mut truth = self.lock();
        let mut touched = Touched::default();
        events.iter().for_each(|event| truth.apply(&self.own, &event.key, event.entry.as_ref(), &mut touched));
        self.publish(&truth, &touched);
    }

    fn lock(&self) -> MutexGuard<'_, Truth<M>> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, truth: &Truth<M>, touched: &Touched) {
        if !touched.nodes && touched.services.is_empty() {
            return;
        }
        let mut next = Snapshot::clone(&self.snapshot());
        next.number += 1;
        if touched.nodes {
            next.nodes = Arc::new(truth.nodes.clone());
        }
        for name in &touched.services {
            let placed = truth.gather(name);
            next.services.change(name, |old| share_turns(old.as_deref(), placed));
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        truth.bells.iter().filter_map(Weak::upgrade).for_each(|bell| bell.ring());
    }
}

impl<M: Offer> Truth<M> {
    /// A key that has this value now; one that cannot be read is as one that is not there.
    fn apply(&mut self, own: &NodeName, key: &str, entry: Option<&Entry>, touched: &mut Touched) {
        match parse_key(key) {
            Key::Node(name) => {
                let node = entry.and_then(read).filter(|node: &Node| node.name == name);
                self.put_node(&name, node.map(Arc::new), touched);
            }
            Key::Member(node) if node == *own => {}
            Key::Member(node) => self.put_member(&node, key, entry.and_then(read).map(Arc::new), touched),
            Key::Other => {}
        }
    }

    fn put_node(&mut self, name: &NodeName, node: Option<Arc<Node>>, touched: &mut Touched) {
        let (is, was) = (node.is_some(), self.nodes.contains_key(name));
        match node {
            Some(node) => drop(self.nodes.insert(name.clone(), node)),
            None => drop(self.nodes.remove(name)),
        }
        touched.nodes |= is || was;
        if is != was {
            let members = self.members.get(name).into_iter().flat_map(BTreeMap::values);
            touched.services.extend(members.map(|member| member.service().clone()));
        }
    }

    fn put_member(&mut self, node: &NodeName, key: &str, member: Option<Arc<M>>, touched: &mut Touched) {
        let of_node = self.members.entry(node.clone()).or_default();
        let old = match &member {
            Some(member) => of_node.insert(key.to_owned(), Arc::clone(member)),
            None => of_node.remove(key),
        };
        if of_node.is_empty() {
            self.members.remove(node);
        }
        let place = (node.clone(), key.to_owned());
        if let Some(old) = old {
            let service = old.service();
            touched.services.insert(service.clone());
            if let Some(of_service) = self.services.get_mut(service) {
                of_service.remove(&place);
                if of_service.is_empty() {
                    self.services.remove(service);
                }
            }
        }
        if let Some(member) = member {
            touched.services.insert(member.service().clone());
            self.services.entry(member.service().clone()).or_default().insert(place, member);
        }
    }

    /// Those who serve a service on nodes that are there, oldest version first, then by node.
    fn gather(&self, service: &Name) -> Vec<Placed<M>> {
        let members = self.services.get(service).into_iter().flatten();
        let there = members.filter(|((node, _), _)| self.nodes.contains_key(node));
        let place = |((node, _), member): (&(NodeName, String), &Arc<M>)| Placed {
            node: node.clone(),
            offer: Arc::clone(member),
            turns: Arc::default(),
        };
        let mut placed: Vec<_> = there.map(place).collect();
        placed.sort_by(|one, other| {
            one.offer.version().cmp(other.offer.version()).then_with(|| one.node.cmp(&other.node))
        });
        placed
    }
}

/// Equals share whose turn it is, also with those who were there before.
fn share_turns<M: Offer>(old: Option<&Vec<Placed<M>>>, mut placed: Vec<Placed<M>>) -> Option<Arc<Vec<Placed<M>>>> {
    let equal = |one: &Placed<M>, other: &Placed<M>| one.offer.version().cmp_precedence(other.offer.version()).is_eq();
    for index in 0..placed.len() {
        let before = index.checked_sub(1).map(|before| &placed[before]).filter(|before| equal(before, &placed[index]));
        let former = || old.and_then(|old| old.iter().find(|old| equal(old, &placed[index])));
        if let Some(turns) = before.or_else(former).map(|equal| Arc::clone(&equal.turns)) {
            placed[index].turns = turns;
        }
    }
    (!placed.is_empty()).then(|| Arc::new(placed))
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| tracing::warn!("'{}' in the registry is passed over: {error}", entry.key))
        .ok()
}

#[cfg(test)]
mod tests;
