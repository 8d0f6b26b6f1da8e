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

pub use remote::Remote;

use self::running::Running;
use super::operation::{Submitted, requester};
use super::{Access, Answer, Call, Fault, Interface, Operations, Reach};
use crate::ids::NodeName;
use crate::node::{Node, State};
use crate::operation::fence::Token;
use crate::operation::{Kind, OperationId, Target};
use crate::ops::cluster::Cluster;
use crate::ops::operation::Request;

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
}

/// Which nodes there are.
#[derive(Debug, Clone)]
pub enum Nodes {
    /// This one.
    Alone(Box<Node>),
    /// Those that share a registry.
    Among(Arc<Cluster>),
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
}

impl Nodes {
    /// All of them, in the order of their names, and how old that is, if it is.
    pub(super) fn all(&self) -> (Vec<Arc<Node>>, Option<Duration>) {
        match self {
            Self::Alone(node) => (vec![Arc::new(Node::clone(node))], None),
            Self::Among(cluster) => {
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
            Self::Alone(_) => None,
            Self::Among(cluster) => Some(cluster),
        }
    }

    fn own(&self) -> NodeName {
        match self {
            Self::Alone(node) => node.name.clone(),
            Self::Among(cluster) => cluster.node().name,
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
        let request = Request {
            kind: Kind::NodeDrain,
            targets: vec![Target { node: name, subject: "node".to_owned() }],
            parameters: json!({"undo": undo}),
            requester: requester(call.peer()),
            key: None,
            deadline: None,
        };
        Answer::new(&Submitted { operation: self.operations.engine()?.submit(request)?.id })
    }

    /// A caller who goes away changes nothing: it is done to the end, and who asks again is told what came of it.
    fn execute(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let Order { operation, kind, target, parameters, token } = call.parameters()?;
        let engine = self.operations.engine()?;
        let outcome = self.running.once((operation, target.clone()), || {
            let task = engine.task(operation, (kind, target), parameters, token);
            engine.carry_out(&task, &mut |step| drop(call.send(&Told { step: Some(step), value: None })))
        });
        Answer::new(&Told { step: None, value: Some(outcome?) })
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
            "Drain" | "Execute" => Some(Access::All),
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
