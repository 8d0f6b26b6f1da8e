//! Who carries tasks out. A task is an operation on one of its targets.
//!
//! An executor first takes the lock that command-line verbs take, too, then passes the fence under it ([`Task::pass`]), then
//! acts. So one whose operation lost its markers is refused, and what passed was begun: a daemon that starts asks
//! [`Executor::settle`] what came of it.

mod cancel;
mod clone;
mod drain;
mod probe;
mod ring;
mod service;
mod template;
mod travel;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

pub use cancel::Cancel;
pub use clone::Clone as CloneExecutor;
pub use drain::Drain;
pub use probe::Probe;
pub use ring::Ring;
pub use service::Service;
pub use template::Template;
pub use travel::Travel;

use crate::error::{Error, Kind as Fault, Result};
use crate::ids::NodeName;
use crate::operation::fence::{Fence, Passed, Token};
use crate::operation::{Kind, OperationId, Resource, Target};

/// An operation on one of its targets.
#[derive(Debug, Clone)]
pub struct Task {
    /// The operation.
    pub operation: OperationId,
    /// What it does.
    pub kind: Kind,
    /// To what.
    pub target: Target,
    /// How, as the interface's method would be asked.
    pub parameters: Arc<Value>,
    /// The right to.
    pub token: Token,
    /// Until when.
    pub deadline: Option<Instant>,
    /// Whether it is still wanted.
    pub cancel: Arc<Cancel>,
    /// The fence of this node.
    pub fence: Arc<Fence>,
}

/// What came of a task that a daemon which is gone had.
#[derive(Debug)]
pub enum Settled {
    /// It was done.
    Succeeded(Value),
    /// It was not done, and nothing of it is left.
    Failed(Error),
    /// It was not begun, or may be done again.
    Repeat,
    /// Nobody can tell.
    Unknown,
}

/// What is known after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It was not done.
    NotDone,
    /// It may have been.
    Unknown,
}

/// Who carries out tasks of some kinds.
pub trait Executor: Debug + Send + Sync {
    /// Does it, and returns when it is done. `tell` is told how far it is, as the interface's method would tell.
    ///
    /// # Errors
    /// Why it is not done.
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value>;

    /// Finds out what came of it. Only asked of what may have been begun.
    fn settle(&self, task: &Task) -> Settled;

    /// Whether what failed with this error may have been done all the same: a call that was sent, and not answered.
    fn afterwards(&self, _task: &Task, _error: &Error) -> Afterwards {
        Afterwards::NotDone
    }
}

/// Who has tasks carried out on other nodes.
pub trait Elsewhere: Executor {
    /// Whether there is such a node.
    fn knows(&self, node: &NodeName) -> bool;
}

/// All executors of a daemon.
#[derive(Debug, Clone, Default)]
pub struct Executors {
    here: HashMap<Kind, Arc<dyn Executor>>,
    elsewhere: Option<Arc<dyn Elsewhere>>,
}

impl Executors {
    /// Those that need nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default().with(&[Kind::Probe], Arc::new(Probe))
    }

    /// And one for these kinds, on this node.
    #[must_use]
    pub fn with(mut self, kinds: &[Kind], executor: Arc<dyn Executor>) -> Self {
        self.here.extend(kinds.iter().map(|kind| (*kind, Arc::clone(&executor))));
        self
    }

    /// And one for all other nodes.
    #[must_use]
    pub fn elsewhere(mut self, executor: Arc<dyn Elsewhere>) -> Self {
        self.elsewhere = Some(executor);
        self
    }

    /// The one for a kind on this node.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if this daemon has none.
    pub fn here(&self, kind: Kind) -> Result<&Arc<dyn Executor>> {
        self.here.get(&kind).ok_or_else(|| {
            Error::new(Fault::Unsupported, format!("carry out {kind}"), "this daemon cannot do that")
                .next("see the daemon's log for why")
        })
    }

    /// Whether tasks of a node can be carried out.
    pub(super) fn knows(&self, own: &NodeName, node: &NodeName) -> bool {
        own == node || self.elsewhere.as_ref().is_some_and(|elsewhere| elsewhere.knows(node))
    }

    /// The one for a task of a daemon on node `own`.
    pub(super) fn find(&self, own: &NodeName, task: &Task) -> Result<Arc<dyn Executor>> {
        if task.target.node == *own {
            return self.here(task.kind).cloned();
        }
        match &self.elsewhere {
            Some(elsewhere) => Ok(Arc::clone(elsewhere) as Arc<dyn Executor>),
            None => {
                Err(Error::new(Fault::NotFound, format!("reach node '{}'", task.target.node), "there is no such node"))
            }
        }
    }
}

impl Task {
    /// What it takes, on its node.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if its kind is not about its target.
    pub fn resources(&self) -> Result<Vec<Resource>> {
        Resource::all(self.kind, &self.target, &self.parameters)
    }

    /// Those of its own node: the fences of others are theirs.
    fn resources_here(&self) -> Result<Vec<Resource>> {
        let mut all = self.resources()?;
        all.retain(|resource| resource.node == self.target.node);
        Ok(all)
    }

    /// Passes the fence of this node. The caller holds the lock of what the task is about.
    ///
    /// # Errors
    /// [`Fault::State`] if the operation's markers are somebody else's by now; else those of the fence.
    pub fn pass(&self) -> Result<Passed> {
        let mut passed = Passed::First;
        for resource in self.resources_here()? {
            if self.fence.pass(&resource, self.kind, &self.token)? == Passed::Again {
                passed = Passed::Again;
            }
        }
        tracing::info!(operation = %self.operation, kind = %self.kind, target = %self.target, token = self.token.number, "begun");
        Ok(passed)
    }

    /// Whether it passed the fence of this node before.
    ///
    /// # Errors
    /// Those of the fence.
    pub fn has_passed(&self) -> Result<bool> {
        for resource in self.resources_here()? {
            if self.fence.has_passed(&resource, self.kind, &self.token)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Carries out on this node what may have been begun here before: then that is settled, and not done twice.
///
/// # Errors
/// Why it is not done, and whether it may be all the same.
pub fn carry_out(
    executor: &dyn Executor,
    task: &Task,
    tell: &mut dyn FnMut(Value),
) -> std::result::Result<Value, (Afterwards, Error)> {
    let not_done = |error| (Afterwards::NotDone, error);
    if task.has_passed().map_err(not_done)? {
        match executor.settle(task) {
            Settled::Succeeded(value) => return Ok(value),
            Settled::Failed(error) => return Err(not_done(error)),
            Settled::Repeat => {}
            Settled::Unknown => return Err((Afterwards::Unknown, lost(task))),
        }
    }
    executor.execute(task, tell).map_err(|error| (executor.afterwards(task, &error), error))
}

/// Whoever did it is gone.
pub(super) fn lost(task: &Task) -> Error {
    let operation = format!("{} of '{}'", task.kind, task.target);
    Error::new(Fault::Damaged, operation, "the daemon ended while it was being done, and nobody can tell whether it is")
}
