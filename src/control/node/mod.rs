//! `run.regen.Node`: which nodes there are, and what their daemons ask of each other.
//!
//! ```text
//! operation ── task of another node ──> Remote ── Execute, over TLS ──> Nodes ── fence, executor ──> done there
//!                                         └ no answer: asked again, and told what came of it ┘
//! ```

mod remote;
mod running;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use remote::{Reached, Remote};

use self::remote::lets_nobody_in;
use self::running::{Running, key};
use super::message::error_from_wire;
use super::operation::{self, Cancelled, Submitted, Which, requester};
use super::remote::Line;
use super::{Access, Answer, Call, Fault, Interface, Operations, Reach};
use crate::error::{Error, Kind as Reason};
use crate::ids::NodeName;
use crate::node::{Node, State};
use crate::operation::fence::Token;
use crate::operation::{Kind, OperationId, Target};
use crate::ops::cluster::{Census, Cluster};
use crate::ops::operation::{Afterwards, Request, Task};

/// The interface's name.
pub const NODE: &str = "run.regen.Node";

/// The interface's methods, as callers spell them.
pub mod method {
    /// All that live.
    pub const LIST: &str = "run.regen.Node.List";
    /// Nothing is to be placed on one any more.
    pub const DRAIN: &str = "run.regen.Node.Drain";
    /// A task of an operation.
    pub const EXECUTE: &str = "run.regen.Node.Execute";
    /// The tasks of an operation are not wanted any more.
    pub const CANCEL: &str = "run.regen.Node.Cancel";
}

/// Which nodes there are.
#[derive(Debug, Clone)]
pub enum Nodes {
    /// This one, and how much there is on it, where that is known.
    Alone(Box<Node>, Option<Census>),
    /// Those that share a registry, and how they are reached; not at all without certificates.
    Among(Arc<Cluster>, Option<Reached>),
}

/// The interface, and who does what it says.
#[derive(Debug)]
pub struct Neighbourhood {
    nodes: Nodes,
    operations: Operations,
    running: Running,
}

/// A node, as callers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its name.
    pub name: NodeName,
    /// Whether it is the one that answers.
    pub own: bool,
    /// Whether it takes more.
    pub state: State,
    /// Where other nodes reach it.
    pub address: Option<SocketAddr>,
    /// What its operator says of it.
    pub labels: Vec<String>,
    /// Processors.
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// The version of its regen.
    pub regen: String,
    /// That of what nodes say to each other.
    pub protocol: u32,
    /// Its kernel.
    pub kernel: String,
    /// Versions of services that serve there.
    pub services: u64,
    /// Templates there.
    pub templates: u64,
    /// Rings there.
    pub rings: u64,
    /// Since when its daemon serves.
    pub started: DateTime<Utc>,
}

/// The answer to List.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// In the order of names.
    pub nodes: Vec<Summary>,
    /// How long ago the registry was heard last, if it is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_ms: Option<u64>,
}

/// What Drain is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Which node.
    pub name: NodeName,
    /// Whether it is to take more again.
    #[serde(default)]
    pub undo: bool,
}

/// What Execute is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The operation that it is part of.
    pub operation: OperationId,
    /// What to do.
    pub kind: Kind,
    /// To what.
    pub target: Target,
    /// How.
    pub parameters: Value,
    /// The right to.
    pub token: Token,
    /// The number of the first token that the operation had, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// One answer to Execute: a step, or in the last one what came of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Told {
    /// A step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Value>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Why nobody can tell whether it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// Why a task was not done. It is no error of the call: that is one that began nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The name of the error that the interface's own method would have answered with.
    pub reason: String,
    /// Operation, object and cause.
    pub message: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Failure {
    fn of(error: &Error) -> Self {
        let (reason, next) = (Fault::name_of(error.kind()).to_owned(), error.next_step().map(str::to_owned));
        Self { reason, message: error.without_next_step(), next }
    }

    /// As it was there.
    #[must_use]
    pub fn error(&self) -> Error {
        let Self { reason, message, next } = self;
        error_from_wire(&format!("{NODE}.{reason}"), &json!({"message": message, "next": next}))
    }
}

impl Nodes {
    /// All of them, in the order of their names, and how old that is, if it is.
    pub(super) fn all(&self) -> (Vec<Arc<Node>>, Option<Duration>) {
        match self {
            Self::Alone(node, census) => {
                let counts = census.as_ref().map_or(node.counts, Census::count);
                (vec![Arc::new(Node { counts, ..Node::clone(node) })], None)
            }
            Self::Among(cluster, _) => {
                let own = Arc::new(cluster.node());
                let directory = cluster.directory();
                let known = directory.snapshot();
                let others = known.nodes().filter(|node| node.name != own.name).cloned();
                let mut nodes: Vec<_> = others.chain([Arc::clone(&own)]).collect();
                nodes.sort_by(|one, other| one.name.cmp(&other.name));
                (nodes, directory.stale_for())
            }
        }
    }

    /// Those that share a registry, if any do.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Alone(..) => None,
            Self::Among(cluster, _) => Some(cluster),
        }
    }

    fn own(&self) -> NodeName {
        match self {
            Self::Alone(node, _) => node.name.clone(),
            Self::Among(cluster, _) => cluster.node().name,
        }
    }

    /// Refuses what this daemon could not have done, before it is an operation. Nodes that are not known are refused by who
    /// admits operations.
    ///
    /// # Errors
    /// [`Reason::State`] with what is missing.
    pub(super) fn check_reach(&self, targets: &[Target]) -> Result<(), Error> {
        let Self::Among(cluster, reached) = self else { return Ok(()) };
        let (own, known) = (cluster.node().name, cluster.directory().snapshot());
        let mut last = &own;
        for Target { node, .. } in targets.iter().filter(|target| target.node != own) {
            if node == last {
                continue;
            }
            last = node;
            let Some(found) = known.node(node) else { continue };
            if reached.is_none() {
                let next = "start it with --address and --certs, or ask a daemon that has them";
                return Err(Error::new(
                    Reason::State,
                    format!("reach node '{node}'"),
                    "this daemon has no certificates",
                )
                .next(next));
            }
            if found.address.is_none() {
                return Err(lets_nobody_in(node));
            }
        }
        Ok(())
    }

    /// Has another node's daemon cancel an operation that it has.
    ///
    /// # Errors
    /// [`Reason::State`] if it cannot be reached; what it answers.
    pub(super) fn cancel_on(&self, node: &NodeName, which: &Which) -> Result<Cancelled, Error> {
        let fail = |cause: String| {
            let operation = format!("cancel operation {}", which.id);
            Error::new(Reason::State, operation, cause).next(format!("cancel it there, once '{node}' is back"))
        };
        match self {
            Self::Among(_, Some(reached)) => {
                let call = |mut line: Line| {
                    let (answer, _) = line.call(operation::method::CANCEL, which)?;
                    line.keep();
                    Ok(answer)
                };
                let line = reached.connect(node).map_err(|error| fail(format!("node '{node}' has it: {error}")))?;
                call(line)
            }
            Self::Among(_, None) => Err(fail(format!("node '{node}' has it, and this daemon has no certificates"))),
            Self::Alone(..) => Err(fail(format!("node '{node}' had it, and this daemon is of no cluster"))),
        }
    }
}

impl Neighbourhood {
    /// The nodes, and what is done on this one.
    #[must_use]
    pub fn new(nodes: Nodes, operations: Operations) -> Self {
        Self { nodes, operations, running: Running::default() }
    }

    fn list(&self) -> Result<Answer, Fault> {
        let ((nodes, stale), own) = (self.nodes.all(), self.nodes.own());
        let nodes = nodes.iter().map(|node| Summary::of(node, node.name == own)).collect();
        let stale_ms = stale.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Answer::new(&List { nodes, stale_ms })
    }

    fn drain(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let Draining { name, undo } = call.parameters()?;
        if let Nodes::Alone(..) = self.nodes {
            let cause = "this daemon is of no cluster, so nobody places anything here but its own users";
            let error = Error::new(Reason::State, format!("drain node '{name}'"), cause);
            return Err(error.next("start it with --cluster").into());
        }
        let targets = vec![Target { node: name, subject: "node".to_owned() }];
        self.nodes.check_reach(&targets)?;
        let request = Request {
            kind: Kind::NodeDrain,
            targets,
            parameters: json!({"undo": undo}),
            requester: requester(call.peer()),
            key: None,
            deadline: None,
        };
        Answer::new(&Submitted { operation: self.operations.engine()?.submit(request)?.id })
    }

    /// A caller who goes away changes nothing: it is done to the end, and who asks again is told what came of it.
    fn execute(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let Order { operation, kind, target, parameters, token, since } = call.parameters()?;
        let since = since.unwrap_or(token.number);
        let engine = self.operations.engine()?;
        self.check_node(&target)?;
        let outcome = self.running.once(key(operation, &target, &token), |cancel| {
            let task = engine.task(operation, (kind, target), parameters, (token, since));
            let task = Task { cancel: Arc::clone(cancel), ..task };
            self.check_drained(&task).map_err(|error| (Afterwards::NotDone, error))?;
            engine.carry_out(&task, &mut |step| drop(call.send(&Told { step: Some(step), ..Told::default() })))
        });
        match outcome {
            Ok(value) => Answer::new(&Told { value: Some(value), ..Told::default() }),
            Err((Afterwards::NotDone, error)) => {
                Answer::new(&Told { failure: Some(Failure::of(&error)), ..Told::default() })
            }
            Err((Afterwards::Unknown, error)) => {
                Answer::new(&Told { unknown: Some(error.to_string()), ..Told::default() })
            }
        }
    }

    fn check_node(&self, target: &Target) -> Result<(), Error> {
        let own = self.nodes.own();
        if target.node == own {
            return Ok(());
        }
        Err(Error::new(Reason::State, format!("carry out a task of '{target}'"), format!("this is node '{own}'")))
    }

    /// Who sends a task may not have heard yet that this node is drained. What was begun before comes to its end.
    fn check_drained(&self, task: &Task) -> Result<(), Error> {
        let is_drained = self.nodes.cluster().is_some_and(|cluster| cluster.node().state == State::Drained);
        if !is_drained || !task.kind.places() || task.has_passed()? {
            return Ok(());
        }
        Err(Error::new(Reason::State, format!("{} of '{}'", task.kind, task.target), "the node is drained")
            .next("choose another one, or take it back: 'regen node drain --undo'"))
    }
}

impl Interface for Neighbourhood {
    fn name(&self) -> &'static str {
        NODE
    }

    fn description(&self) -> &'static str {
        include_str!("../run.regen.Node.varlink")
    }

    fn access(&self, method: &str) -> Option<Access> {
        match method {
            "List" => Some(Access::Read),
            "Drain" | "Execute" | "Cancel" => Some(Access::All),
            _ => None,
        }
    }

    fn reach(&self, method: &str) -> Reach {
        if method == "Drain" { Reach::Local } else { Reach::Everywhere }
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        match call.method() {
            "List" => self.list(),
            "Drain" => self.drain(call),
            "Execute" => self.execute(call),
            "Cancel" => {
                let Which { id } = call.parameters()?;
                self.running.cancel(id);
                Answer::new(&json!({}))
            }
            other => Err(Fault::MethodNotFound(other.to_owned())),
        }
    }
}

impl Summary {
    fn of(node: &Node, own: bool) -> Self {
        Self {
            name: node.name.clone(),
            own,
            state: node.state,
            address: node.address,
            labels: node.labels.iter().map(ToString::to_string).collect(),
            cpus: node.capacity.cpus,
            memory: node.capacity.memory,
            regen: node.versions.regen.clone(),
            protocol: node.versions.protocol,
            kernel: node.versions.kernel.clone(),
            services: node.counts.services,
            templates: node.counts.templates,
            rings: node.counts.rings,
            started: node.started,
        }
    }
}
