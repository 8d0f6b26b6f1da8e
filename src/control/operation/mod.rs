//! `run.regen.Operation`: operations, by the daemon's socket.
//!
//! ```text
//! Submit, Probe ──> the id, once it is written down
//! List, Show    ──> how they are
//! Wait, Watch   ──> with "more": how far they are, as it happens; last: what came of it
//! Cancel        ──> how it is then
//! ```
//!
//! Methods of other interfaces that change something are operations, too: `run` carries them out for those who wait.

mod abroad;
mod answer;
mod run;
mod target;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(super) use run::{Asked, requester, run};

use super::message::error_from_wire;
use super::{Access, Answer, Call, Fault, Interface, Nodes, Reach};
use crate::error::{Error, Kind as Reason};
use crate::ids::{Name, NodeName};
use crate::operation::{Kind, OperationId, Record, State};
use crate::ops::operation::Engine;

/// The interface's name.
pub const OPERATION: &str = "run.regen.Operation";

/// The interface's methods, as callers spell them.
pub mod method {
    /// Operations, newest first.
    pub const LIST: &str = "run.regen.Operation.List";
    /// All that is known of one.
    pub const SHOW: &str = "run.regen.Operation.Show";
    /// A new one.
    pub const SUBMIT: &str = "run.regen.Operation.Submit";
    /// The end of one.
    pub const WAIT: &str = "run.regen.Operation.Wait";
    /// To give one up.
    pub const CANCEL: &str = "run.regen.Operation.Cancel";
    /// What they do.
    pub const WATCH: &str = "run.regen.Operation.Watch";
    /// A new one that does nothing.
    pub const PROBE: &str = "run.regen.Operation.Probe";
}

/// What a caller has to be allowed. What an operation was asked with is told to nobody who may only look.
const METHODS: [(&str, Access); 7] = [
    (method::LIST, Access::Read),
    (method::SHOW, Access::Read),
    (method::WAIT, Access::Read),
    (method::WATCH, Access::Read),
    (method::SUBMIT, Access::All),
    (method::CANCEL, Access::All),
    (method::PROBE, Access::All),
];

/// The interface, and who does what it says.
#[derive(Debug, Clone)]
pub enum Operations {
    /// Operations are carried out, on these nodes; rings that name no owner are of the daemon's own user.
    Managed(Engine, Name, Nodes),
    /// The registry cannot be used: why.
    Unmanaged(Error),
}

/// What List is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Question {
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Only those of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// At most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Which operation is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// Its id.
    pub id: OperationId,
}

/// What Submit is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// What to do.
    pub kind: Kind,
    /// Where: `node=NAME`, `label=KEY=VALUE`, `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<String>>,
    /// To what: `SUBJECT` or `NODE:SUBJECT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// What the interface's own method takes.
    #[serde(default)]
    pub parameters: Option<Value>,
    /// The idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// The answer to those who do not wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The operation's id.
    pub operation: OperationId,
}

/// What Wait is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its id.
    pub id: OperationId,
    /// How long to wait, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What Watch is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Watching {
    /// Its id; all of them without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<OperationId>,
}

/// What Probe is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trial {
    /// How many tasks.
    #[serde(default)]
    pub targets: Option<usize>,
    /// How long each waits.
    #[serde(default)]
    pub delay_ms: Option<u64>,
}

/// An operation, as callers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it does.
    pub kind: Kind,
    /// Where it is in its life.
    pub state: State,
    /// The node whose daemon carries it out.
    pub node: NodeName,
    /// Who asked for it.
    pub requester: String,
    /// When.
    pub created: DateTime<Utc>,
    /// When the first target was begun.
    pub started: Option<DateTime<Utc>>,
    /// When it was over.
    pub ended: Option<DateTime<Utc>>,
    /// What it is about, if that is little.
    pub targets: Vec<String>,
    /// How many targets it has.
    pub total: usize,
    /// How many of them are done.
    pub succeeded: usize,
    /// … are not.
    pub failed: usize,
    /// … were given up.
    pub cancelled: usize,
    /// … may be done or not.
    pub unknown: usize,
    /// Why it did not succeed, where that is one reason for all.
    pub error: Option<String>,
    /// The idempotency key.
    pub key: Option<String>,
    /// How long it may take.
    pub deadline_ms: Option<u64>,
    /// What it was asked with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}

/// What came of one target, as callers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// `NODE:SUBJECT`
    pub target: String,
    /// How far it is.
    pub state: State,
    /// What the interface's own method would have answered.
    pub value: Option<Value>,
    /// Why it is not done.
    pub error: Option<String>,
    /// The name of the error that the interface's own method would have answered with.
    pub reason: Option<String>,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Which target takes the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The step, as the interface's own method tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Value>,
    /// How many targets are over.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// The answer to List.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct List {
    /// Newest first.
    pub operations: Vec<Operation>,
}

/// One answer to Show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// In the first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// In the order of targets.
    pub results: Vec<Outcome>,
}

/// One answer to Wait: how far it is, or in the last one how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waited {
    /// How it is when it is over, or the time is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What came of it, if that is little; Show has it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<Vec<Outcome>>,
}

/// One answer to Watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct News {
    /// Which operation it is about.
    pub id: OperationId,
    /// How it is now, when its state is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// The answer to Cancel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancelled {
    /// How it is then.
    pub operation: Operation,
}

impl Outcome {
    /// Why it is not done, as if it had been asked of the interface's own method.
    #[must_use]
    pub fn failure(&self) -> Error {
        match &self.error {
            Some(error) => {
                let name = format!("{OPERATION}.{}", self.reason.as_deref().unwrap_or("Failed"));
                error_from_wire(&name, &json!({"message": error}))
            }
            None => Error::new(Reason::State, format!("change '{}'", self.target), format!("it is {}", self.state)),
        }
    }
}

impl Operation {
    /// What somebody may see of a record.
    fn of(record: &Record, access: Access) -> Self {
        let parameters = (access == Access::All && !record.parameters.is_null()).then(|| record.parameters.clone());
        Self {
            id: record.id,
            kind: record.kind,
            state: record.state,
            node: record.node.clone(),
            requester: record.requester.clone(),
            created: record.created,
            started: record.started,
            ended: record.ended,
            targets: record.targets.iter().take(FEW).map(ToString::to_string).collect(),
            total: record.counts.total,
            succeeded: record.counts.succeeded,
            failed: record.counts.failed,
            cancelled: record.counts.cancelled,
            unknown: record.counts.unknown,
            error: record.error.clone(),
            key: record.key.clone(),
            deadline_ms: record.deadline_ms,
            parameters,
        }
    }
}

/// An operation is told of with so many of its targets.
const FEW: usize = 16;

impl Operations {
    /// Who carries operations out.
    ///
    /// # Errors
    /// Why nobody does.
    pub(super) fn engine(&self) -> Result<&Engine, Fault> {
        match self {
            Self::Managed(engine, ..) => Ok(engine),
            Self::Unmanaged(reason) => Err(reason.clone().during("manage operations").into()),
        }
    }
}

impl Operations {
    /// Begins nothing any more and takes nothing; what is being done has so long to come to its end. The rest is for the next
    /// daemon.
    pub fn close(&self, patience: Duration) {
        if let Self::Managed(engine, ..) = self {
            engine.close(patience);
        }
    }

    /// Goes on after that.
    pub fn open(&self) {
        if let Self::Managed(engine, ..) = self {
            engine.reopen();
        }
    }
}

impl Interface for Operations {
    fn name(&self) -> &'static str {
        OPERATION
    }

    fn description(&self) -> &'static str {
        include_str!("../run.regen.Operation.varlink")
    }

    fn access(&self, name: &str) -> Option<Access> {
        METHODS.iter().find(|(known, _)| known.rsplit('.').next() == Some(name)).map(|(_, access)| *access)
    }

    /// Whoever has an operation cancels it also for those who asked another node.
    fn reach(&self, name: &str) -> Reach {
        match self.access(name) {
            Some(Access::Read) => Reach::Everywhere,
            Some(Access::All) if name == "Cancel" => Reach::Everywhere,
            Some(Access::All | Access::Nothing) | None => Reach::Local,
        }
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        match self {
            Self::Managed(engine, owner, nodes) => answer::call(engine, (owner, nodes), call),
            Self::Unmanaged(_) => Err(self.engine().err().unwrap_or(Fault::Gone)),
        }
    }
}
