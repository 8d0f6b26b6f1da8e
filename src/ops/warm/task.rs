//! What a keeper has its workers do, and what they say: one JSON text per message of their channel.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxSeccomp, Process};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::ids::ContainerId;
use crate::sys::process::Identity;
use crate::template::message::Limits;

/// What is to be done. Every task may take its time, and may fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "task")]
pub(super) enum Task {
    /// Make a container whose first process waits for a program from elsewhere.
    Make {
        /// What it is called.
        container: ContainerId,
        /// What it is for.
        part: Part,
    },
    /// End a container and take it away. That there is none is fine.
    Remove {
        /// Which.
        container: ContainerId,
    },
    /// Do for a clone that runs what can be done later: hooks, and what the store and the record say of it.
    Settle {
        /// What it is called now.
        container: ContainerId,
        /// Whether it was called otherwise before.
        renamed: bool,
        /// The limits that it was given.
        limits: Limits,
    },
    /// Measure the memory of these processes.
    Measure {
        /// Which; one that has ended counts nothing.
        processes: Vec<Identity>,
    },
}

/// What a container of a template is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    /// The loaded program.
    Template,
    /// A clone that comes later.
    Sandbox,
}

/// What came of a task.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub(super) enum Outcome {
    /// The container is there. With it come the way to its first process, and its working directory.
    Made(Box<Made>),
    /// It is done.
    Done,
    /// Shares of memory in bytes (PSS), one for each process.
    Measured {
        /// In the order of the task.
        bytes: Vec<u64>,
    },
    /// It could not be done.
    Failed {
        /// Why.
        error: Error,
    },
}

/// A container that waits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Made {
    /// Its first process.
    pub init: Identity,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// What its program is to be, with everything that the image says.
    pub process: Process,
    /// The filter of its program.
    pub seccomp: Option<LinuxSeccomp>,
    /// Its first process's share of memory in bytes (PSS).
    pub memory: u64,
}

/// The open files that come with [`Outcome::Made`].
#[derive(Debug)]
pub(super) struct Ways {
    /// To its first process.
    pub channel: OwnedFd,
    /// Its working directory, with `O_PATH`.
    pub directory: OwnedFd,
}
