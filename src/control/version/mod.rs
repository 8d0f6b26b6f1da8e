//! Versions side by side: what is asked of `run.regen.Service` by those who look for a version, and what is answered.
//!
//! ```text
//! Resolve  name, requirement ──> who and where
//! Connect  name, requirement ──> who and where, with a connected socket
//! Watch    name, requirement ──> the whole state, then what changes, as long as anybody listens
//! ```

mod answer;
mod copy;
mod watch;

use semver::Version;
use serde::{Deserialize, Serialize};

pub use answer::{access, call};
pub use copy::Copy;

use crate::ids::{ContainerId, Name, NodeName};
use crate::service::address::{Address, Listen};
use crate::service::choice::{Requirement, Wanted};
use crate::service::roster;

/// The interface's methods, as callers spell them.
pub mod method {
    /// The newest version that satisfies.
    pub const RESOLVE: &str = "run.regen.Service.Resolve";
    /// … and a socket that is connected to it.
    pub const CONNECT: &str = "run.regen.Service.Connect";
    /// Who serves, and what changes.
    pub const WATCH: &str = "run.regen.Service.Watch";
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The service. Watch alone does without, and then tells of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What its version has to satisfy; any if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requirement: Option<Requirement>,
    /// The address with this name, in place of the first; of Resolve and Connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<Name>,
    /// How long connecting may take; of Connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Question {
    /// For versions of one service.
    #[must_use]
    pub fn new(wanted: Wanted, listen: Option<Name>) -> Self {
        Self { name: Some(wanted.name), requirement: Some(wanted.requirement), listen, timeout_ms: None }
    }
}

/// An instance that clients can be sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The service.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// The instance's container.
    pub instance: ContainerId,
    /// Where clients of this machine connect to: the address that was asked for, or the first.
    pub address: Address,
    /// All of them.
    pub addresses: Vec<Listen>,
    /// The node that it is on, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// How long ago other nodes were heard of last, if the registry is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_ms: Option<u64>,
}

impl Member {
    fn of(member: &roster::Member, chosen: &Listen) -> Self {
        let reachable = |listen: &Listen| Listen { name: listen.name.clone(), address: listen.address.reachable() };
        Self {
            name: member.name.clone(),
            version: member.version.clone(),
            instance: member.instance.clone(),
            address: chosen.address.reachable(),
            addresses: member.listen.iter().map(reachable).collect(),
            node: None,
            stale_ms: None,
        }
    }
}

/// The answer to Connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Who, and where.
    #[serde(flatten)]
    pub member: Member,
    /// Which of the files that come along is the socket.
    #[serde(rename = "fdIndex")]
    pub fd_index: usize,
}

/// One answer to Watch. It has the state at first, and again when so much has changed since the last answer that the
/// changes are not known any more; else what has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// How many changes there were of all services of this node since the daemon started.
    pub number: u64,
    /// Everybody: who is not in here does not serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Vec<Member>>,
    /// In order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Change>>,
}

/// What happened to one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What.
    pub change: What,
    /// To whom.
    #[serde(flatten)]
    pub member: Member,
}

/// A sort of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Clients can be sent there, in place of where that version was before, if it was there.
    Added,
    /// It stops to accept in a moment.
    Withdrawn,
}

#[cfg(test)]
mod tests;
