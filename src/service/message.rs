//! What the daemon and the keepers of instances say to each other: one JSON text per message of a
//! [`crate::sys::channel::Channel`], with sockets beside it where a message says so.
//!
//! ```text
//! daemon                                    keeper (one per instance)
//!   Order, inherited sockets ────────────>    binds, makes the container, starts it
//!          <───────────────── Reply::Status once it runs, or Reply::Failed; then the end of the channel
//! later, on ROOT/@keepers/INSTANCE/control, any number of connections:
//!   Command ─────────────────────────────>
//!          <──────────────────────── Reply    one for each command; after Watch one more for each change
//! ```
//!
//! A keeper ends its instance by itself if that is not ready in time; [`Outcome::reason`] then says what was missing.
//!
//! Keepers outlive daemons, and newer daemons speak to older keepers: a field may be added if it has a default, nothing is
//! renamed or removed, and [`PROTOCOL`] goes up when a keeper could misunderstand.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::address::{Address, Listen};
use super::definition::{Definition, milliseconds};
use super::socket::Company;
use crate::error::Error;
use crate::ids::ContainerId;
use crate::sys::process::Identity;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;

/// The directory of keepers below the state root; no container is called so.
pub const KEEPERS: &str = "@keepers";

/// What makes an instance: the first message on descriptor 0 of a new keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// [`PROTOCOL`]
    pub protocol: u32,
    /// The instance's container.
    pub instance: ContainerId,
    /// What it is an instance of.
    pub definition: Definition,
    /// Its addresses, each once: those of the definition, with `auto` replaced where a port was chosen before.
    pub listen: Vec<Listen>,
    /// Which of `listen` come as sockets with this message, in that order, by index. The keeper makes the others.
    pub inherited: Vec<usize>,
    /// The instance before this one, if it has a keeper: it serves at these addresses, and this one comes up beside it; or it
    /// has ended, and this one has its sockets. If both belong to one ring, it passes to this one.
    pub beside: Option<ContainerId>,
    /// Another instance of the service that has sockets at these addresses, and is asked for nothing: it has no keeper, or is
    /// on its way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<ContainerId>,
    /// The running process to keep instead of a container of our own.
    pub adopt: Option<Identity>,
    /// The container starts from this entry of its ring, where that is not the ring's own choice.
    pub ring_entry: Option<u64>,
    /// The state root.
    pub root: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// The configuration file, if one was named.
    pub config: Option<PathBuf>,
    /// `cgroupfs`, `systemd` or `disabled`.
    pub cgroup_manager: String,
    /// Where its log lies: a directory that is there.
    pub log: PathBuf,
}

impl Order {
    /// Whether others of the service are at its addresses.
    #[must_use]
    pub fn company(&self) -> Company {
        if self.beside.is_some() || self.neighbour.is_some() { Company::Beside } else { Company::Alone }
    }
}

/// What the daemon asks of a keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Command {
    /// How it is. Answered with [`Reply::Status`].
    Status,
    /// How it is, now and after every change, until the connection ends.
    Watch,
    /// New connections go to this instance from now on, whoever had them before. Refused unless it is ready.
    Serve,
    /// Somebody else gets the new connections: finish those that are there, then end. Answered at once.
    Drain {
        /// When to end with connections still there.
        #[serde(with = "milliseconds")]
        timeout: Duration,
        /// How long to go on accepting before the first look: for clients that were just sent here.
        #[serde(with = "milliseconds")]
        grace: Duration,
        /// Whether somebody else has the addresses: the keeper then lets go of its sockets before the end.
        succeeded: bool,
    },
    /// End now: stop signal, ten seconds, SIGKILL. Answered at once.
    Stop,
    /// Its sockets, for the instance that comes next: answered with [`Reply::Sockets`] and the sockets.
    Sockets,
    /// What sends new connections to it, so that another keeper can have some of its own beside them: answered with
    /// [`Reply::Targets`] and a map of sockets for each.
    Targets,
    /// Nobody needs what is kept of an instance that has ended: go. Refused while the instance lives.
    Release,
}

/// What a keeper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum Reply {
    /// How it is.
    Status(Box<Status>),
    /// Done, or begun.
    Done,
    /// Its sockets come with this message.
    Sockets {
        /// What each is, in their order.
        listen: Vec<Listen>,
    },
    /// Its maps of sockets come with this message.
    Targets {
        /// The address that each is for, in their order.
        addresses: Vec<Address>,
    },
    /// It could not.
    Failed {
        /// Why.
        error: Error,
    },
}

/// How an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The keeper's [`PROTOCOL`].
    pub protocol: u32,
    /// The instance's container.
    pub instance: ContainerId,
    /// What it is an instance of.
    pub definition: Definition,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its addresses, with chosen ports.
    pub listen: Vec<Listen>,
    /// The keeper.
    pub keeper: Identity,
    /// The instance's first process, once there is one.
    pub init: Option<Identity>,
    /// When it was started.
    pub started: DateTime<Utc>,
    /// When new connections began to go to it.
    pub serving_since: Option<DateTime<Utc>>,
    /// What it said of itself (STATUS= of sd_notify(3)).
    pub text: Option<String>,
    /// What an operator should know: ports that it binds and that were not declared, and the like.
    pub notes: Vec<String>,
    /// How it ended, once it did.
    pub outcome: Option<Outcome>,
    /// What gives its ring back to the instance that it was taken over from, for whoever decides that this one is not to
    /// serve. Nobody has to understand it who does not do that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<serde_json::Value>,
}

/// Where an instance is in its life.
///
/// ```text
/// Starting ──> Ready ──> Serving ──> Draining ──> Stopping ──> Ended
///     └───────────┴─────────┴──────── (it ends by itself) ───────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its program runs and is not ready yet.
    Starting,
    /// It could serve, and nobody is sent to it.
    Ready,
    /// New connections go to it.
    Serving,
    /// It finishes the connections that it has.
    Draining,
    /// It was told to end.
    Stopping,
    /// It is no more.
    Ended,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The exit status, 128 + n for signal n; none if nobody could learn it.
    pub exit_code: Option<i32>,
    /// Whether it was told to end.
    pub requested: bool,
    /// Connections that were still there when it was told to.
    pub cut: u64,
    /// When.
    pub ended: DateTime<Utc>,
    /// Why it was ended, or could not be saved, where the exit status does not say it.
    #[serde(default)]
    pub reason: Option<String>,
    /// The last lines of its log, for whoever asks why.
    pub last_words: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_keep_their_spelling() {
        let drain =
            Command::Drain { timeout: Duration::from_secs(30), grace: Duration::from_millis(200), succeeded: true };
        let text = serde_json::to_string(&drain).unwrap();
        assert_eq!(text, r#"{"command":"drain","timeout":30000,"grace":200,"succeeded":true}"#);
        assert_eq!(serde_json::from_str::<Command>(r#"{"command":"serve"}"#).unwrap(), Command::Serve);
    }
}
