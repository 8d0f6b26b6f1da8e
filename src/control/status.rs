//! `run.regen.Control`: the daemon itself.

use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::interface::{Answer, Call, Interface};
use super::message::{CONTROL, Fault};
use super::peer::Access;
use super::server::Gauge;

/// The version of what nodes say to each other: it grows when an old one would misunderstand a new one.
pub const PROTOCOL: u32 = 1;

/// Tells how the daemon is.
#[derive(Debug)]
pub struct Control {
    /// When it began to serve.
    pub started: DateTime<Utc>,
    /// The state root.
    pub root: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// How many connections there are.
    pub gauge: Gauge,
}

/// How the daemon is: the answer of `GetStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// What it speaks with other nodes: [`PROTOCOL`].
    pub protocol: u32,
    /// Its process.
    pub pid: u32,
    /// When it began to serve, as RFC 3339 says.
    pub started: String,
    /// The state root.
    pub root: String,
    /// The store.
    pub store: String,
    /// Connections, that of the caller among them.
    pub connections: usize,
}

impl Interface for Control {
    fn name(&self) -> &'static str {
        CONTROL
    }

    fn description(&self) -> &'static str {
        include_str!("run.regen.Control.varlink")
    }

    fn access(&self, method: &str) -> Option<Access> {
        (method == "GetStatus").then_some(Access::Read)
    }

    fn call(&self, _: &Call<'_>) -> Result<Answer, Fault> {
        Answer::new(&Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            started: self.started.to_rfc3339_opts(SecondsFormat::Nanos, true),
            root: self.root.display().to_string(),
            store: self.store.display().to_string(),
            connections: self.gauge.connections(),
        })
    }
}
