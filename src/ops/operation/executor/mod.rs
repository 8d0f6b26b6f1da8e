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
pub use crate::operation::course::Afterwards;
use crate::operation::fence::{Fence, Passed, Token};
use crate::operation::{Kind, OperationId, Outcome, Resource, State, Target};

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
    /// The number of the first token that its operation had: it may have been begun under that.
    pub since: u64,
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

/// What is known of a task before it is begun.
#[derive(Debug)]
pub enum Past {
    /// It is to be done. Whether that may have been done before says the rest.
    Open(Afterwards),
    /// It was done.
    Done(Value),
    /// It was begun, and not done.
    Undone(Error),
    /// It was begun, and nobody can tell what came of it.
    Lost,
    /// Nobody knows whether it was begun.
    Unread(Error),
}

impl Past {
    /// Asks the fence of this node whether a task of it was begun, and if so the executor what came of it. `before` is what is
    /// known without that: what nobody may have begun is not asked about.
    pub fn of(executor: &dyn Executor, task: &Task, before: Afterwards) -> Self {
        if before == Afterwards::NotDone {
            return Self::Open(before);
        }
        match task.has_passed() {
            Err(error) => return Self::Unread(error),
            Ok(false) => return Self::Open(Afterwards::NotDone),
            Ok(true) => {}
        }
        match executor.settle(task) {
            Settled::Succeeded(value) => Self::Done(value),
            Settled::Failed(error) => Self::Undone(error),
            Settled::Repeat => Self::Open(Afterwards::Unknown),
            Settled::Unknown => Self::Lost,
        }
    }
}

/// What a task's past leads to.
#[derive(Debug)]
pub enum Lead {
    /// It is carried out. If that fails, it may have been done all the same, or not.
    Execute(Afterwards),
    /// It is at its end.
    End(Outcome),
    /// It failed, and may have been done all the same, or not.
    Fail(Error, Afterwards),
}

impl Past {
    /// Decides. `barred` is why the task must not be begun now, where it is not.
    #[must_use]
    pub fn lead(self, task: &Task, barred: Option<&str>) -> Lead {
        match (self, barred) {
            (Self::Done(value), _) => Lead::End(Outcome::succeeded(value)),
            (Self::Lost, _) => Lead::End(Outcome::failed(State::Unknown, &lost(task))),
            (Self::Undone(error), _) => Lead::Fail(error, Afterwards::NotDone),
            (Self::Unread(error), _) => Lead::Fail(error, Afterwards::Unknown),
            (Self::Open(before), None) => Lead::Execute(before),
            (Self::Open(before), Some(reason)) => {
                Lead::Fail(Error::new(Fault::State, "take it up again", reason), before)
            }
        }
    }
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

    /// Whether it passed the fence of this node before, under any of its operation's tokens.
    ///
    /// # Errors
    /// Those of the fence.
    pub fn has_passed(&self) -> Result<bool> {
        let first = Token { number: self.since, ..self.token.clone() };
        for resource in self.resources_here()? {
            if self.fence.has_passed(&resource, self.kind, &first)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Carries out on this node what may have been begun here before: then that is settled, and not done twice.
///
/// # Errors
/// Why it is not done, and whether it may have been all the same.
pub fn carry_out(
    executor: &dyn Executor,
    task: &Task,
    tell: &mut dyn FnMut(Value),
) -> std::result::Result<Value, (Afterwards, Error)> {
    let before = match Past::of(executor, task, Afterwards::Unknown) {
        Past::Done(value) => return Ok(value),
        Past::Undone(error) => return Err((Afterwards::NotDone, error)),
        Past::Lost => return Err((Afterwards::Unknown, lost(task))),
        Past::Unread(error) => return Err((Afterwards::Unknown, error)),
        Past::Open(before) => before,
    };
    executor.execute(task, tell).map_err(|error| (before.or(executor.afterwards(task, &error)), error))
}

/// Whoever did it is gone.
fn lost(task: &Task) -> Error {
    let operation = format!("{} of '{}'", task.kind, task.target);
    Error::new(Fault::Damaged, operation, "the daemon ended while it was being done, and nobody can tell whether it is")
}
