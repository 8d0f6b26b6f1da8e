//! What all threads of the engine share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::active::Active;
use super::collect::Collection;
use super::executor::Executors;
use super::follow::Watchers;
use super::recover::Recovery;
use super::tend::Tender;
use super::{Limits, end, worker};
use crate::error::{Error, Kind as Fault, Result};
use crate::ids::NodeName;
use crate::metrics;
use crate::operation::book::Book;
use crate::operation::course::Now;
use crate::operation::fence::Fence;
use crate::operation::lane::{Queue, Share};
use crate::operation::lease::Keeper;
use crate::operation::marker::Markers;
use crate::operation::queue::{Door, Load};
use crate::operation::{Clock, OperationId, Record, State};
use crate::registry::Registry;

/// See the module.
#[derive(Debug)]
pub(super) struct Core {
    pub registry: Arc<dyn Registry>,
    pub node: NodeName,
    pub clock: Arc<dyn Clock>,
    pub executors: Executors,
    pub limits: Limits,
    pub fence: Arc<Fence>,
    pub markers: Markers,
    pub lease: Keeper,
    pub watchers: Watchers,
    pub tender: Tender,
    pub recovery: Recovery,
    pub collection: Collection,
    /// The registry's own name, once it was asked for.
    identity: OnceLock<String>,
    /// Divides those who try again.
    chance: AtomicU32,
    /// The lease that was lost last, by its number.
    lost: AtomicU64,
    work: Mutex<Work>,
    /// There is something to begin, or to wait for.
    pub bell: Condvar,
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Work {
    pub active: HashMap<OperationId, Arc<Active>>,
    pub queue: Queue<Active>,
    /// With those that are being admitted.
    pub load: Load,
    pub threads: usize,
    pub idle: usize,
    /// Operations that ended since old ones were collected.
    pub ended: usize,
}

impl Core {
    pub(super) fn new(
        (registry, node, clock): (Arc<dyn Registry>, NodeName, Arc<dyn Clock>),
        fence: Fence,
        (executors, limits): (Executors, Limits),
    ) -> Self {
        let queue = Queue::new(node.clone(), limits.here, limits.elsewhere);
        let work = Work {
            active: HashMap::new(),
            queue,
            load: Load { operations: 0, targets: 0, door: Door::Open },
            threads: 0,
            idle: 0,
            ended: 0,
        };
        Self {
            registry,
            node,
            clock,
            executors,
            limits,
            fence: Arc::new(fence),
            markers: Markers::default(),
            lease: Keeper::default(),
            watchers: Watchers::default(),
            tender: Tender::default(),
            recovery: Recovery::default(),
            collection: Collection::default(),
            identity: OnceLock::new(),
            chance: AtomicU32::new(0),
            lost: AtomicU64::new(0),
            work: Mutex::new(work),
            bell: Condvar::new(),
        }
    }

    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registry's own name.
    pub(super) fn identity(&self) -> Result<String> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity.clone());
        }
        let identity = self.registry.identity()?;
        Ok(self.identity.get_or_init(|| identity).clone())
    }

    /// What is written down of operations.
    pub(super) fn book(&self) -> Book<'_> {
        let (registry, node, clock) = (&*self.registry, &self.node, &*self.clock);
        Book { registry, node, clock, markers: &self.markers, lease: &self.lease }
    }

    pub(super) fn chance(&self) -> u32 {
        // Neighbours in this are far from each other: 2^32 by the golden ratio.
        self.chance.fetch_add(0x9e37_79b9, Ordering::Relaxed) >> 8
    }

    pub(super) fn find(&self, id: &OperationId) -> Option<Arc<Active>> {
        self.work().active.get(id).cloned()
    }

    /// Takes an operation that is written down to work. Room was made for it before.
    pub(super) fn enqueue(self: &Arc<Self>, active: Arc<Active>) {
        let (shares, late) = (Share::divide(&active), active.deadline.is_some());
        let mut work = self.work();
        work.queue.add(shares);
        work.active.insert(active.record.id, active);
        worker::call(self, &mut work);
        drop(work);
        self.tender.start(self);
        if late {
            self.tender.ring();
        }
    }

    /// Writes the end down if that is the caller's part.
    pub(super) fn end_if(self: &Arc<Self>, active: &Arc<Active>, now: Now) {
        match now {
            Now::Nothing => {}
            Now::End => end::end(self, active),
        }
    }

    /// Stops an operation whose markers are lost: what it has not begun it never begins.
    pub(super) fn lose(self: &Arc<Self>, active: &Arc<Active>) {
        if self.lost.swap(active.lease, Ordering::Relaxed) != active.lease {
            metrics::lease_lost();
        }
        let reason = "the daemon lost its lease before this was begun";
        let now = active.give_up((State::Cancelled, reason), Some(State::Unknown));
        self.work().queue.forget(active);
        self.end_if(active, now);
    }

    /// An operation is at its end, and that is written down.
    pub(super) fn close(self: &Arc<Self>, active: &Arc<Active>, record: Record) {
        let mut work = self.work();
        work.queue.forget(active);
        work.active.remove(&record.id);
        work.load.operations -= 1;
        work.load.targets -= active.record.targets.len();
        work.ended += 1;
        drop(work);
        active.close(record);
        let progress = active.progress(None, &serde_json::Value::Null);
        self.watchers.tell(|| progress.clone());
    }
}

/// There is no such operation.
pub(super) fn missing(id: &OperationId) -> Error {
    Error::new(Fault::NotFound, format!("find operation {id}"), "there is none, or it is collected")
        .next("see 'regen op ls'")
}
