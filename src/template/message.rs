//! What is said to the keeper of a template: one message each of a [`crate::sys::channel::Channel`], a line
//! `regen-template PROTOCOL` and one JSON text, with open files beside it where a message says so.
//!
//! ```text
//! who wants a clone       DIRECTORY/socket          keeper
//!   Request, descriptors ───────────────────────>     takes a sandbox or makes ready the one it is given, forks
//!          <─────────────────────────────── Answer    one for each request, in order
//! daemon                  DIRECTORY/control-N       keeper of generation N
//!   Command ────────────────────────────────────>
//!          <──────────────────────────────── Reply    one for each command; after Watch one more for each change
//! daemon                  descriptor 0 at its birth keeper
//!   Order (definition) ─────────────────────────>
//!          <─────────────────────────────── Report    what it does; Ready or Failed is the last, then the channel ends
//! ```
//!
//! Only root is listened to. A keeper talks to a few connections at once; who comes later waits in connect(2), and nobody
//! is turned away. Keepers outlive daemons and are spoken to by newer builds: a field may be added if it has a default,
//! nothing is renamed or removed, and [`PROTOCOL`] goes up when one could misunderstand the other.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use oci_spec::runtime::{LinuxSeccomp, Process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{ContainerId, Name};
use crate::metrics::Durations;
use crate::sys::channel;
use crate::sys::process::Identity;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;
/// The socket for requests, in the template's directory: that of the newest keeper that is ready.
pub const SOCKET: &str = "socket";
/// What the socket for commands is called, before the generation: `control-3`.
pub const CONTROL: &str = "control-";
/// How many connections a keeper talks to at once, on each of its sockets.
pub const CONNECTIONS: usize = 64;

/// What every message begins with, before the version.
const MAGIC: &[u8] = b"regen-template ";

/// What somebody wants of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// What a container has to be so that it can be a clone's. Answered with [`Answer::Fits`].
    Fit,
    /// A clone in a container that somebody else has made, and whose init shelters it. Answered with [`Answer::Entered`].
    Enter(Box<Enter>),
    /// A clone in a sandbox of the template's own. Answered with [`Answer::Taken`].
    Take(Box<Take>),
}

/// A clone in a container of somebody else's, whose first process shelters it or is about to.
///
/// Its descriptors, in order: the job ([`super::job::Job::seal`]), standard input, output and error, and the working
/// directory (`O_PATH`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enter {
    /// The container, for messages.
    pub container: ContainerId,
    /// Its first process, whose namespaces are the clone's.
    pub init: Identity,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// `process` of its specification: user, capabilities, limits. Arguments and environment are the job's, and are better
    /// left out here.
    pub process: Process,
    /// `linux.seccomp` of its specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<LinuxSeccomp>,
    /// Whether standard input is a terminal that becomes the clone's controlling terminal.
    #[serde(default)]
    pub terminal: Terminal,
}

/// How many descriptors [`Enter`] has.
pub const ENTER_DESCRIPTORS: usize = 5;

/// Whether standard input is the clone's controlling terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Terminal {
    /// It is not.
    #[default]
    None,
    /// It is to be.
    Controlling,
}

/// A clone in a sandbox of the template's own.
///
/// Its descriptors, in order: the job ([`super::job::Job::seal`]), standard input, output and error, and those of
/// [`Self::extra`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    /// What the clone's container is to be called; without it, it keeps the name of the sandbox, which is quicker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ContainerId>,
    /// Which descriptors follow, each at most once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<Extra>,
    /// What becomes of the container.
    #[serde(default)]
    pub cleanup: Cleanup,
    /// Its working directory inside, absolute; without it, [`super::program::Program::cwd`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// Whether standard input is a terminal that becomes the clone's controlling terminal.
    #[serde(default)]
    pub terminal: Terminal,
}

/// The descriptors of [`Take`] before the extra ones.
pub const TAKE_DESCRIPTORS: usize = 4;

/// A descriptor that a request may have or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extra {
    /// Where the container's init writes how the clone ended: `exit N` or `signal N`, and a newline.
    Status,
    /// The clone's descriptor 4, where the result of a call goes.
    Result,
    /// What is mounted on `/function`: a detached mount (open_tree(2)).
    Function,
}

/// What becomes of a clone's container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cleanup {
    /// It stays, as any container, until somebody deletes it.
    #[default]
    Keep,
    /// It is killed and deleted when the connection that asked for it ends.
    WithConnection,
}

/// What a clone may use, beside what its template says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// What a keeper answers to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// What a clone's container has to be.
    Fits(Box<Fits>),
    /// The clone runs in the container that was given.
    Entered {
        /// Its pid, as the keeper sees it.
        pid: i32,
        /// Its pid, as the container's init sees it.
        inner_pid: i32,
    },
    /// The clone runs in a sandbox.
    Taken {
        /// The container.
        container: ContainerId,
        /// The clone's pid, as the keeper sees it.
        pid: i32,
    },
    /// A clone can't be in that container: nothing was done to it.
    Unfit {
        /// Why.
        reason: String,
    },
    /// It could not be done.
    Failed {
        /// Why.
        error: Error,
        /// Whether the clone's program had run by then.
        #[serde(default)]
        stage: Stage,
    },
}

/// How far a clone had come when it failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It had not run: something else can be tried in its place.
    #[default]
    Before,
    /// It may have run.
    After,
}

/// What a container has to be so that it can be a clone's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fits {
    /// The processor, as [`std::env::consts::ARCH`] names it.
    pub arch: String,
    /// The files that the loaded program maps: they have to be in the container too, at these places.
    pub mapped: Vec<Mapped>,
}

/// A file that a loaded program maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped {
    /// Where it is, in the container.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// When it was changed: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

/// What the daemon asks of a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Command {
    /// How it is. Answered with [`Reply::Status`].
    Status,
    /// How it is, now and after every change of its phase; [`Reply::Ended`] is the last.
    Watch,
    /// A newer keeper has the socket: end when nobody waits for anything of this one. Answered at once.
    Retire,
    /// End now, with the sandboxes; clones that are to be kept go on. Answered at once.
    Stop,
}

/// What a keeper answers to a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum Reply {
    /// How it is.
    Status(Box<Status>),
    /// Begun.
    Done,
    /// It ends; nothing comes after this.
    Ended {
        /// Why, unless it was told to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
    },
    /// It could not.
    Failed {
        /// Why.
        error: Error,
    },
}

/// What a keeper tells whoever started it, before it is left alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "report")]
pub enum Report {
    /// What it does now, for people.
    Progress {
        /// `create container 'template-web-1'`
        step: String,
    },
    /// The template is loaded, and the socket is this keeper's.
    Ready(Box<Status>),
    /// It is not, and nothing of this keeper is left.
    Failed {
        /// Why.
        error: Error,
    },
}

/// How a template is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The keeper's [`PROTOCOL`].
    pub protocol: u32,
    /// Whose it is.
    pub owner: Name,
    /// The owner's name for it.
    pub name: Name,
    /// Which keeper of it this is.
    pub generation: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// The keeper.
    pub keeper: Identity,
    /// The template's container.
    pub container: ContainerId,
    /// The loaded program, once there is one.
    pub process: Option<Identity>,
    /// What it says it is, once it is loaded: `python 3.11.2`.
    pub language: Option<String>,
    /// When the keeper began.
    pub started: DateTime<Utc>,
    /// When it was loaded.
    pub ready: Option<DateTime<Utc>>,
    /// Sandboxes that wait for clones.
    pub sandboxes: u32,
    /// How many are to wait: the pool, or fewer where they would need more memory than they may have.
    pub wanted: u32,
    /// Why it makes no more clones, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Clones that were made.
    pub clones: u64,
    /// Clones that could not be made.
    pub failed: u64,
    /// How long those that were made took, from the request to the answer.
    #[serde(default)]
    pub durations: Durations,
    /// Clones that end with the connection that asked for them.
    pub attended: u32,
    /// Requests that wait for a sandbox.
    pub waiting: u32,
    /// Memory in bytes.
    pub memory: Memory,
    /// What an operator should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Memory of a template in bytes; nothing where it was not measured yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The loaded program's share (PSS).
    pub process: Option<u64>,
    /// A waiting sandbox's share (PSS), on average.
    pub sandbox: Option<u64>,
    /// The keeper's and its workers' share (PSS).
    pub keeper: Option<u64>,
}

/// Where a template is in its life.
///
/// ```text
/// Loading ──> Ready ──> Retiring ──> Ended
///    └──────────┴─────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its program loads.
    Loading,
    /// It can be cloned.
    Ready,
    /// It makes no more clones: a newer keeper has its name, or its program ended. It sees those to their end that it has to
    /// remove.
    Retiring,
    /// It is no more.
    Ended,
}

/// The bytes of a message.
///
/// # Errors
/// [`Kind::Invalid`] for one that is longer than [`channel::LIMIT`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(PROTOCOL.to_string().as_bytes());
    bytes.push(b'\n');
    serde_json::to_writer(&mut bytes, message).context(|| "write a message of a template")?;
    if bytes.len() > channel::LIMIT {
        let cause = format!("it has {} bytes, at most {} are possible", bytes.len(), channel::LIMIT);
        return Err(Error::new(Kind::Invalid, "write a message of a template", cause));
    }
    Ok(bytes)
}

/// The message in these bytes.
///
/// # Errors
/// [`Kind::Unsupported`] for another version of the protocol, naming both; [`Kind::Invalid`] for what is no message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let operation = || "read a message of a template";
    let refuse = |kind, cause: String| Err(Error::new(kind, operation(), cause));
    let line = bytes.strip_prefix(MAGIC).and_then(|rest| {
        let end = rest.iter().take(16).position(|byte| *byte == b'\n')?;
        Some((std::str::from_utf8(&rest[..end]).ok()?.parse::<u32>().ok()?, &rest[end + 1..]))
    });
    match line {
        Some((PROTOCOL, text)) => serde_json::from_slice(text).context(operation),
        Some((version, _)) => {
            let cause = format!("it is of version {version}, this is version {PROTOCOL}");
            refuse(Kind::Unsupported, cause)
        }
        None => refuse(Kind::Invalid, "it does not say that it is one".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_spelling() {
        let take = Take {
            id: Some("web1".parse().unwrap()),
            extra: vec![Extra::Status, Extra::Function],
            cleanup: Cleanup::WithConnection,
            workdir: None,
            limits: Limits { memory: Some(1 << 20) },
            terminal: Terminal::None,
        };
        let bytes = encode(&Request::Take(Box::new(take.clone()))).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            "regen-template 1\n{\"request\":\"take\",\"id\":\"web1\",\"extra\":[\"status\",\"function\"],\
             \"cleanup\":\"with-connection\",\"limits\":{\"memory\":1048576},\"terminal\":\"none\"}"
        );
        assert_eq!(decode::<Request>(&bytes).unwrap(), Request::Take(Box::new(take)));
        let bytes = encode(&Command::Retire).unwrap();
        assert_eq!(bytes, b"regen-template 1\n{\"command\":\"retire\"}");
    }

    #[test]
    fn what_may_be_left_out_has_its_value() {
        let Request::Take(take) = decode(b"regen-template 1\n{\"request\":\"take\"}").unwrap() else { panic!() };
        assert_eq!((take.id, take.cleanup, take.limits), (None, Cleanup::Keep, Limits::default()));
        let Answer::Failed { stage, .. } = decode(
            b"regen-template 1\n{\"answer\":\"failed\",\"error\":\
              {\"kind\":\"Busy\",\"operation\":\"a\",\"cause\":\"b\",\"next\":null,\"errno\":null}}",
        )
        .unwrap() else {
            panic!()
        };
        assert_eq!(stage, Stage::Before);
    }

    #[test]
    fn another_version_is_named_and_nonsense_is_refused() {
        let error = decode::<Request>(b"regen-template 7\n{\"request\":\"fit\"}").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("version 7, this is version 1"), "{error}");
        for nonsense in
            [&b""[..], b"{}", b"regen-template ", b"regen-template x\n{}", b"regen-template 1\n", b"\xff\xfe"]
        {
            assert_eq!(decode::<Request>(nonsense).unwrap_err().kind(), Kind::Invalid, "{nonsense:?}");
        }
        let unknown = decode::<Request>(b"regen-template 1\n{\"request\":\"dance\"}").unwrap_err();
        assert!(unknown.to_string().contains("dance"), "{unknown}");
    }

    #[test]
    fn a_message_that_would_not_arrive_is_refused() {
        let long = Answer::Unfit { reason: "x".repeat(channel::LIMIT) };
        assert_eq!(encode(&long).unwrap_err().kind(), Kind::Invalid);
    }
}
