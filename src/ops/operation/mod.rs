//! Operations, carried out: what is asked for is written down and answered at once, and done by threads of their own.
//!
//! ```text
//!  submit                       the caller's thread: admitted, markers taken, written down; one transaction, no calls
//!     │ queue                   nodes take turns, and operations on each
//!     v
//!  worker (threads on demand)   executor: lock ── fence ── act             here, or on another node
//!     │ all targets at their end
//!     v
//!  end                          one transaction: state, results, markers gone
//!
//!  tender (a thread while there is any)   the lease, deadlines, how far long ones are, ends that could not be written
//! ```
//!
//! What is in the registry is the truth, the queue is the working copy of it. A daemon that starts lists what is not at its
//! end (`recover`): what was not begun is queued again, of what was begun is found out what came of it.
//! Without operations there is no thread, and nothing wakes up.

mod active;
mod collect;
mod core;
mod end;
pub mod executor;
mod follow;
mod read;
mod recover;
mod submit;
mod tend;
mod worker;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use executor::{Afterwards, Executor, Executors, Settled, Task};
pub use follow::{Progress, Subscription};

use self::active::Active;
use self::core::{Core, missing};
use crate::error::{Error, Result};
use crate::ids::NodeName;
use crate::metrics;
use crate::operation::book::head;
use crate::operation::fence::{Fence, Token};
use crate::operation::queue::{Bounds, Door};
use crate::operation::{Clock, Kind, Machine, OperationId, Record, State, Target, key};
use crate::registry::{Registry, Watch};

/// How much is done at a time, and how long what was done is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads.
    pub workers: usize,
    /// Tasks of this node at a time.
    pub here: usize,
    /// Tasks of each other node at a time.
    pub elsewhere: usize,
    /// What is taken into the queue.
    pub bounds: Bounds,
    /// So many operations are remembered after their end.
    pub keep: usize,
    /// … and so long.
    pub keep_for: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let week = Duration::from_secs(7 * 24 * 3600);
        Self { workers: 32, here: 32, elsewhere: 8, bounds: Bounds::default(), keep: 10_000, keep_for: week }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is to be done.
    pub kind: Kind,
    /// To what.
    pub targets: Vec<Target>,
    /// How: what the interface's method takes, as JSON.
    pub parameters: Value,
    /// Who asks.
    pub requester: String,
    /// Whoever asks again with the same key is told of the operation that there is.
    pub key: Option<String>,
    /// How long it may take. What was not begun by then never is.
    pub deadline: Option<Duration>,
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// The operation.
    pub id: OperationId,
    /// Whether it was there before, under the same idempotency key.
    pub duplicate: bool,
}

/// Which operations are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Those that are there in their life.
    pub state: Option<State>,
    /// Those that do that.
    pub kind: Option<Kind>,
    /// So many at most.
    pub limit: Option<usize>,
}

/// The operations of a daemon. There is one in a process.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Core>);

impl Engine {
    /// Goes on where the daemon before ended. If the registry is away, that is done when it is back.
    ///
    /// # Errors
    /// Those of opening the fence below `store`.
    pub fn open(
        registry: Arc<dyn Registry>,
        node: NodeName,
        store: &Path,
        executors: Executors,
        limits: Limits,
    ) -> Result<Self> {
        Self::open_at((registry, node, Arc::new(Machine)), store, executors, limits)
    }

    /// The same, by another clock.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_at(
        (registry, node, clock): (Arc<dyn Registry>, NodeName, Arc<dyn Clock>),
        store: &Path,
        executors: Executors,
        limits: Limits,
    ) -> Result<Self> {
        let core = Arc::new(Core::new((registry, node, clock), Fence::open(store)?, (executors, limits)));
        if let Err(error) = recover::recover(&core) {
            tracing::error!("look for operations that are not at their end, tried again soon: {error}");
            core.tender.start(&core);
        }
        Ok(Self(core))
    }

    /// The node that this is.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.0.node
    }

    /// Writes an operation down, and has it carried out. Returns before anything of it is done.
    ///
    /// # Errors
    /// [`crate::error::Kind::Busy`] if somebody holds what it takes, naming their operation, its node and its age, or if there
    /// is too much to do; [`crate::error::Kind::Usage`], [`crate::error::Kind::Invalid`] or [`crate::error::Kind::NotFound`]
    /// for targets that cannot be; else those of the registry.
    pub fn submit(&self, request: Request) -> Result<Submitted> {
        submit::submit(&self.0, request)
    }

    /// All that is known of one, with what came of its targets.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`]
    pub fn show(&self, id: &OperationId) -> Result<Record> {
        match self.0.find(id) {
            Some(active) => Ok(active.snapshot()),
            None => read::whole(&*self.0.registry, id)?.ok_or_else(|| missing(id)),
        }
    }

    /// Newest first, with some of their targets, and without results.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn list(&self, filter: Filter) -> Result<Vec<Record>> {
        read::list(&self.0, filter)
    }

    /// What was not begun never is; what was is told, where that is safe. The operation as it is then.
    ///
    /// # Errors
    /// [`crate::error::Kind::State`] if it has ended, or if another node has it; [`crate::error::Kind::NotFound`].
    pub fn cancel(&self, id: &OperationId) -> Result<Record> {
        let Some(active) = self.0.find(id) else {
            let record = self.show(id)?;
            if record.state.is_final() {
                return Err(Active::refuse_cancel(&record));
            }
            let cause = format!("node '{}' has it", record.node);
            return Err(
                Error::new(crate::error::Kind::State, format!("cancel operation {id}"), cause).next("cancel it there")
            );
        };
        let now = active.give_up((State::Cancelled, "it was cancelled"), None);
        self.0.work().queue.forget(&active);
        self.0.end_if(&active, now);
        Ok(active.snapshot())
    }

    /// The node whose daemon has an operation that is not at its end; none if this daemon has it, or nobody. It is this node's
    /// own if that was not taken up yet.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`]; those of the registry.
    pub fn elsewhere(&self, id: &OperationId) -> Result<Option<NodeName>> {
        if self.0.find(id).is_some() {
            return Ok(None);
        }
        let (record, _) = head(&*self.0.registry, id)?.ok_or_else(|| missing(id))?;
        Ok((!record.state.is_final()).then_some(record.node))
    }

    /// How an operation is that another node has, without targets and results, and what tells of the next change.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`]; those of the registry.
    pub fn look(&self, id: &OperationId) -> Result<(Record, Box<dyn Watch>)> {
        let (record, modified) = head(&*self.0.registry, id)?.ok_or_else(|| missing(id))?;
        Ok((record, self.0.registry.watch(&key::head(id), modified)?))
    }

    /// Sleeps until an operation is at its end; `None` if it is not in that time.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`]; those of the registry, for one that another node has.
    pub fn wait(&self, id: &OperationId, limit: Option<Duration>) -> Result<Option<Record>> {
        match self.0.find(id) {
            Some(active) => Ok(active.wait(limit)),
            None => read::wait(&self.0, id, limit.and_then(|limit| Instant::now().checked_add(limit))),
        }
    }

    /// The steps of an operation of this daemon, from now on. Of one that has ended, its end.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`]; those of eventfd(2).
    pub fn follow(&self, id: &OperationId) -> Result<Subscription> {
        let subscription = Subscription::new()?;
        if let Some(active) = self.0.find(id) {
            active.watchers.add(&subscription);
            subscription.tell(active.progress(None, &Value::Null));
            return Ok(subscription);
        }
        let Record { state, counts, .. } = head(&*self.0.registry, id)?.ok_or_else(|| missing(id))?.0;
        let (done, total) = (counts.done(), counts.total);
        subscription.tell(Progress { operation: *id, state, target: None, step: Value::Null, done, total });
        Ok(subscription)
    }

    /// The steps and the ends of all operations of this daemon, from now on.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn follow_all(&self) -> Result<Subscription> {
        let subscription = Subscription::new()?;
        self.0.watchers.add(&subscription);
        Ok(subscription)
    }

    /// How much there is to do: operations, and their targets, that are not at their end.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let load = self.0.work().load;
        (load.operations, load.targets)
    }

    /// How much waits to be begun, how much is being done, and how long the oldest of those that wait has waited.
    #[must_use]
    pub fn backlog(&self) -> metrics::Work {
        let active: Vec<_> = self.0.work().active.values().cloned().collect();
        let (mut backlog, now) = (metrics::Work::default(), self.0.clock.wall());
        for active in active {
            match active.lock().course.state {
                State::Queued => {
                    backlog.queued += 1;
                    let waited = (now - active.record.created).to_std().unwrap_or_default();
                    backlog.oldest = backlog.oldest.max(waited);
                }
                State::Running => backlog.running += 1,
                State::Succeeded | State::Failed | State::Cancelled | State::Unknown => {}
            }
        }
        backlog
    }

    /// Forgets operations of this node that ended long ago, or that are too many; how many. That is done now and then anyway.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn collect(&self) -> Result<usize> {
        collect::collect(&self.0)
    }

    /// Ends as unknown what a node has that does not come back; how many operations that were. To be called when its lease was
    /// gone for long enough that it knows, too: then it begins nothing any more, and what it has begun is refused where its
    /// markers are somebody else's. Of this node itself, that is only what an earlier daemon sent and what came late.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn bury(&self, node: &NodeName) -> Result<usize> {
        self.0.book().bury(node, &|id| self.0.find(id).is_some())
    }

    /// The nodes that have operations which are not at their end.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn busy_nodes(&self) -> Result<BTreeSet<NodeName>> {
        recover::busy_nodes(&self.0)
    }

    /// A task that another node's daemon has carried out here, with the fence of this node. `since` is the number of the first
    /// token that its operation had.
    #[must_use]
    pub fn task(
        &self,
        operation: OperationId,
        (kind, target): (Kind, Target),
        parameters: Value,
        (token, since): (Token, u64),
    ) -> Task {
        let (parameters, cancel) = (Arc::new(parameters), Arc::default());
        let fence = Arc::clone(&self.0.fence);
        Task { operation, kind, target, parameters, token, since, deadline: None, cancel, fence }
    }

    /// Carries such a task out. What was begun here before is settled, and not done twice.
    ///
    /// # Errors
    /// Why it is not done, and whether it may have been all the same.
    pub fn carry_out(
        &self,
        task: &Task,
        tell: &mut dyn FnMut(Value),
    ) -> std::result::Result<Value, (Afterwards, Error)> {
        let executor = self.0.executors.here(task.kind).map_err(|error| match task.has_passed() {
            Ok(false) => (Afterwards::NotDone, error),
            Ok(true) | Err(_) => (Afterwards::Unknown, error),
        })?;
        executor::carry_out(&**executor, task, tell)
    }

    /// Begins nothing any more and takes nothing; what is being done has so long to come to its end. The rest is for the next
    /// daemon.
    pub fn close(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.0.work().load.door = Door::Closed;
        while Instant::now() < deadline {
            let active: Vec<_> = self.0.work().active.values().cloned().collect();
            if active.iter().all(|active| active.lock().course.running == 0) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Goes on after [`Engine::close`]: the daemon did not end.
    pub fn reopen(&self) {
        let mut work = self.0.work();
        work.load.door = Door::Open;
        worker::call(&self.0, &mut work);
    }
}
