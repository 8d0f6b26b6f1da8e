//! What can be asked of templates that changes them, as it is sent and written down.

use serde::{Deserialize, Serialize};

use super::definition::{Definition, Mode, Source};
use crate::ids::Name;

/// What Create is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// The name.
    pub name: Name,
    /// What it is made from; without it, what the ring was made over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The entry of a ring that lies over that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<String>,
    /// How it is kept.
    #[serde(default)]
    pub mode: Mode,
    /// What loads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The working directory inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The user inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How many sandboxes wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<u32>,
    /// What they may have of memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_memory: Option<u64>,
    /// How long loading may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_timeout_ms: Option<u64>,
}

impl Creation {
    /// What the template is to be, made from this.
    #[must_use]
    pub fn define(self, owner: Name, source: Source) -> Definition {
        let plain = Definition::new(owner, self.name, source);
        Definition {
            ring: self.ring,
            mode: self.mode,
            command: self.command,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            pool: self.pool.unwrap_or(plain.pool),
            pool_memory: self.pool_memory.unwrap_or(plain.pool_memory),
            ready_timeout_ms: self.ready_timeout_ms.unwrap_or(plain.ready_timeout_ms),
            ..plain
        }
    }
}

/// What Remove is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Its name.
    pub name: Name,
    /// Whether its clones go, too.
    #[serde(default)]
    pub force: bool,
}
