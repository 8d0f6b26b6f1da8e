//! Which target is begun next: nodes take turns, on each node operations take turns, and a node has so many at a time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::Target;
use crate::ids::NodeName;

/// An operation, as far as this has to know of it.
pub trait Work {
    /// What it is about.
    fn targets(&self) -> &[Target];
}

/// Targets of one operation on one node.
#[derive(Debug)]
pub struct Share<W> {
    active: Arc<W>,
    /// Their indices, the next one last.
    indices: Vec<u32>,
}

/// A target that can be begun.
#[derive(Debug)]
pub struct Turn<W> {
    /// The operation.
    pub active: Arc<W>,
    /// Which of its targets.
    pub index: usize,
    /// How often it was tried.
    pub attempts: u32,
}

#[derive(Debug)]
struct Lane<W> {
    busy: usize,
    /// Whether it is among those that have something to begin.
    listed: bool,
    again: VecDeque<Turn<W>>,
    waiting: VecDeque<Share<W>>,
}

/// See the module.
#[derive(Debug)]
pub struct Queue<W> {
    own: NodeName,
    limits: (usize, usize),
    lanes: HashMap<NodeName, Lane<W>>,
    ready: VecDeque<NodeName>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    turns: HashMap<u64, Turn<W>>,
    number: u64,
}

impl<W: Work> Share<W> {
    /// The targets of an operation by their nodes.
    #[must_use]
    pub fn divide(active: &Arc<W>) -> Vec<(NodeName, Self)> {
        let mut shares: Vec<(NodeName, Self)> = Vec::new();
        let mut places: HashMap<&NodeName, usize> = HashMap::new();
        for (index, target) in active.targets().iter().enumerate().rev() {
            let place = *places.entry(&target.node).or_insert_with(|| {
                shares.push((target.node.clone(), Self { active: Arc::clone(active), indices: Vec::new() }));
                shares.len() - 1
            });
            shares[place].1.indices.push(u32::try_from(index).unwrap_or(u32::MAX));
        }
        shares
    }
}

impl<W: Work> Queue<W> {
    /// With so many at a time on the own node, and on each of the others.
    #[must_use]
    pub fn new(own: NodeName, here: usize, elsewhere: usize) -> Self {
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

    /// What there is to do on each node comes after what there is already.
    pub fn add(&mut self, shares: Vec<(NodeName, Share<W>)>) {
        for (node, share) in shares {
            self.lanes.entry(node.clone()).or_insert_with(Lane::new).waiting.push_back(share);
            self.enlist(&node);
        }
    }

    /// A target that is tried again later.
    pub fn delay(&mut self, turn: Turn<W>, until: Instant) {
        self.number += 1;
        self.turns.insert(self.number, turn);
        self.delayed.push(Reverse((until, self.number)));
    }

    /// When the next of those is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.delayed.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether something can be begun now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next target. Whoever takes it says when it is over ([`Queue::done`]).
    pub fn next(&mut self, now: Instant) -> Option<Turn<W>> {
        while self.due().is_some_and(|due| due <= now) {
            let turn = self.delayed.pop().and_then(|Reverse((_, number))| self.turns.remove(&number));
            if let Some(turn) = turn
                && let Some(node) = turn.active.targets().get(turn.index).map(|target| target.node.clone())
            {
                self.lanes.entry(node.clone()).or_insert_with(Lane::new).again.push_back(turn);
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
    pub fn done(&mut self, node: &NodeName) {
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
    pub fn forget(&mut self, active: &Arc<W>) {
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

impl<W> Lane<W> {
    fn new() -> Self {
        Self { busy: 0, listed: false, again: VecDeque::new(), waiting: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.again.is_empty() && self.waiting.is_empty()
    }

    fn take(&mut self) -> Option<Turn<W>> {
        if let Some(turn) = self.again.pop_front() {
            return Some(turn);
        }
        let mut share = self.waiting.pop_front()?;
        let index = share.indices.pop()?;
        let turn = Turn { active: Arc::clone(&share.active), index: index as usize, attempts: 0 };
        if !share.indices.is_empty() {
            self.waiting.push_back(share);
        }
        Some(turn)
    }
}
