//! The life of one container: create, start, signal, exec, stop, remove. The only user of libcontainer ("the engine").
//!
//! ```text
//!              create              start               its program ends
//!   (nothing) ───────> created ───────────> running ─────────────────────> stopped
//!                         │                    │ stop --force                 │
//!                         └────── stop ────────┴──────────> stopped ──────────┴── remove ──> (nothing)
//! ```
//!
//! On disk, under the state root (`--root`), one directory per container:
//!
//! ```text
//! ROOT/ID/               made with O_EXCL, mode 0700: of two creators exactly one wins
//!   lock                 fcntl(2)
//!   record.json          what it is: bundle, cgroup, hooks
//!   init.json            its first process, once there is one: pid, start time, boot id
//!   started              its program was started
//!   stop-requested       the last signal that somebody sent on purpose; absent if nobody did
//!   engine/config.json   the derived specification, which the engine reads
//!   engine/ID/           the engine's own files; nothing in there is trusted
//!   resources.json       the limits that hold, once they were updated
//!   exec/RANDOM/ID/      the same for one exec, gone when it runs
//! ```
//!
//! Rules:
//! - Whoever changes a container holds the record lock on `lock`. Readers take none: each file appears whole, once.
//! - A process is signalled through a pidfd that was opened first and then compared with the recorded start time and
//!   boot id, so a pid that was given to another process is never hit.
//! - What is dead stays dead: status is computed from the record and /proc, and not stored.
//! - One operation per process, single-threaded: the engine forks, and changes the working directory.

mod create;
mod delete;
mod engine;
mod event;
mod exec;
mod executor;
pub mod features;
mod foreground;
mod hook;
mod kill;
mod leftover;
mod list;
mod pause;
mod pty;
mod record;
mod rootfs;
mod start;
mod state;
mod update;

use std::path::{Path, PathBuf};

use crate::ids::ContainerId;

pub use create::{CreateRequest, Created, Stdio, create};
pub use delete::{Stop, remove, stop};
pub use event::{Event, stats, watch};
pub use exec::{ExecOutcome, ExecRequest, exec};
pub use foreground::wait_foreground;
pub use hook::relay;
pub use kill::{kill, stop_requested};
pub use leftover::{Leftover, leftovers};
pub use list::{Listed, list};
pub use pause::{pause, processes, resume};
pub use pty::Pty;
pub use start::start;
pub use state::{ContainerState, Status, spec, state};
pub use update::update;

/// The directory under which the states of containers lie (`--root`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRoot(PathBuf);

impl StateRoot {
    /// A state root at this path, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of one container.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.0.join(id.as_str())
    }
}
