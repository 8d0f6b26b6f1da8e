//! What is known of a node.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Label, NodeName};

/// A node, as it is registered. Fields that a later regen adds are passed over by this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name, which its certificate says too.
    pub name: NodeName,
    /// What tells it from another host that claims its name: drawn once for a store.
    pub identity: String,
    /// Where other nodes reach its daemon; none if they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// What its operator says of it.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// What it has.
    pub capacity: Capacity,
    /// What it runs.
    pub versions: Versions,
    /// What is on it.
    #[serde(default)]
    pub counts: Counts,
    /// Whether it takes more.
    #[serde(default)]
    pub state: State,
    /// When its daemon began to serve.
    pub started: DateTime<Utc>,
}

/// What a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Processors that the daemon may use.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// What a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// regen's.
    pub regen: String,
    /// That of what nodes say to each other.
    pub protocol: u32,
    /// The kernel's.
    pub kernel: String,
}

/// What is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Versions of services that serve.
    pub services: u64,
    /// Templates.
    pub templates: u64,
    /// Rings.
    pub rings: u64,
}

/// Whether a node takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    #[default]
    Ready,
    /// It was emptied, and nothing is to be placed there.
    Drained,
}

impl Node {
    /// Whether a label is among its own.
    #[must_use]
    pub fn has(&self, label: &Label) -> bool {
        self.labels.contains(label)
    }
}
