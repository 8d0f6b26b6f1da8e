//! Which target is begun next: nodes take turns, on each node operations take turns, and a node has so many at a time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::active::Active;
use super::executor::Afterwards;
use crate::ids::NodeName;

/// Targets of one operation on one node.
#[derive(Debug)]
pub(super) struct Share {
    active: Arc<Active>,
    /// Their indices, the next one last.
    indices: Vec<u32>,
}

/// A target that can be begun.
#[derive(Debug)]
pub(super) struct Turn {
    pub active: Arc<Active>,
    pub index: usize,
    /// How often it was tried.
    pub attempts: u32,
    /// Whether one of those attempts may have done it.
    pub before: Afterwards,
}

#[derive(Debug, Default)]
struct Lane {
    busy: usize,
    /// Whether it is among those that have something to begin.
    listed: bool,
    again: VecDeque<Turn>,
    waiting: VecDeque<Share>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    own: NodeName,
    limits: (usize, usize),
    lanes: HashMap<NodeName, Lane>,
    ready: VecDeque<NodeName>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    turns: HashMap<u64, Turn>,
    number: u64,
}

impl Share {
    /// The targets of an operation by their nodes.
    pub(super) fn divide(active: &Arc<Active>) -> Vec<(NodeName, Self)> {
        let mut shares: Vec<(NodeName, Self)> = Vec::new();
        let mut places: HashMap<&NodeName, usize> = HashMap::new();
        for (index, target) in active.record.targets.iter().enumerate().rev() {
            let place = *places.entry(&target.node).or_insert_with(|| {
                shares.push((target.node.clone(), Self { active: Arc::clone(active), indices: Vec::new() }));
                shares.len() - 1
            });
            shares[place].1.indices.push(u32::try_from(index).unwrap_or(u32::MAX));
        }
        shares
    }
}

impl Queue {
    /// With so many at a time on the own node, and on each of the others.
    pub(super) fn new(own: NodeName, here: usize, elsewhere: usize) -> Self {
        Self {
            own,
            limits: (here, elsewhere),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            turns: HashMap::new(),
            number: 0,
        }
    }

    pub(super) fn add(&mut self, shares: Vec<(NodeName, Share)>) {
        for (node, share) in shares {
            self.lanes.entry(node.clone()).or_default().waiting.push_back(share);
            self.enlist(&node);
        }
    }

    /// A target that is tried again later.
    pub(super) fn delay(&mut self, turn: Turn, until: Instant) {
        self.number += 1;
        self.turns.insert(self.number, turn);
        self.delayed.push(Reverse((until, self.number)));
    }

    /// When the next of those is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.delayed.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether something can be begun now.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next target. Whoever takes it says when it is over ([`Queue::done`]).
    pub(super) fn next(&mut self, now: Instant) -> Option<Turn> {
        while self.due().is_some_and(|due| due <= now) {
            let turn = self.delayed.pop().and_then(|Reverse((_, number))| self.turns.remove(&number));
            if let Some(turn) = turn
                && let Some(node) = turn.active.record.targets.get(turn.index).map(|target| target.node.clone())
            {
                self.lanes.entry(node.clone()).or_default().again.push_back(turn);
                self.enlist(&node);
            }
        }
        let node = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&node)?;
        lane.listed = false;
        lane.busy += 1;
        let turn = lane.take();
        self.enlist(&node);
        turn
    }

    /// A target of a node is not at work any more.
    pub(super) fn done(&mut self, node: &NodeName) {
        if let Some(lane) = self.lanes.get_mut(node) {
            lane.busy -= 1;
            if lane.busy == 0 && lane.is_empty() {
                self.lanes.remove(node);
                return;
            }
        }
        self.enlist(node);
    }

    /// Forgets what waits of an operation.
    pub(super) fn forget(&mut self, active: &Arc<Active>) {
        for lane in self.lanes.values_mut() {
            lane.waiting.retain(|share| !Arc::ptr_eq(&share.active, active));
            lane.again.retain(|turn| !Arc::ptr_eq(&turn.active, active));
        }
        let Self { lanes, ready, .. } = self;
        ready.retain(|node| {
            let Some(lane) = lanes.get_mut(node) else { return false };
            lane.listed = !lane.is_empty();
            lane.listed
        });
        self.lanes.retain(|_, lane| lane.busy > 0 || !lane.is_empty());
        self.turns.retain(|_, turn| !Arc::ptr_eq(&turn.active, active));
        let turns = &self.turns;
        self.delayed.retain(|Reverse((_, number))| turns.contains_key(number));
    }

    fn enlist(&mut self, node: &NodeName) {
        let limit = if *node == self.own { self.limits.0 } else { self.limits.1 };
        let Some(lane) = self.lanes.get_mut(node) else { return };
        if !lane.listed && !lane.is_empty() && lane.busy < limit {
            lane.listed = true;
            self.ready.push_back(node.clone());
        }
    }
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.again.is_empty() && self.waiting.is_empty()
    }

    fn take(&mut self) -> Option<Turn> {
        if let Some(turn) = self.again.pop_front() {
            return Some(turn);
        }
        let mut share = self.waiting.pop_front()?;
        let index = share.indices.pop()?;
        let turn =
            Turn { active: Arc::clone(&share.active), index: index as usize, attempts: 0, before: Afterwards::NotDone };
        if !share.indices.is_empty() {
            self.waiting.push_back(share);
        }
        Some(turn)
    }
}
