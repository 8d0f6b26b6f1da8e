//! The life of one container: create, start, signal, exec, stop, remove.
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
//!   cgroup               symlink: where its cgroups are, for when the record is damaged
//!   record.json          what it is: specification, bundle, cgroups, later hooks
//!   cgroups.json         where its cgroups are, if not where the record says (systemd's, or some could not be made)
//!   start                socket on which its first process waits; not if its creator starts it
//!   init                 symlink: its first process, once there is one: pid, start time, boot id
//!   program              symlink: its program, if that is another process (see `shelter`)
//!   restored             its processes came from files, and stand still until it is started
//!   started              its program was started
//!   memo                 symlink: a few words of its creator's for whoever starts it
//!   name                 symlink: what it is called, if it was renamed
//!   stop-requested       the last signal that somebody sent on purpose; absent if nobody did
//!   resources.json       the limits that hold, once they were updated
//! ```
//!
//! Rules:
//! - Whoever changes a container holds the record lock on `lock`. Readers take none: each file appears whole, once.
//! - A process is signalled through a pidfd that was opened first and then compared with the recorded start time and
//!   boot id, so a pid that was given to another process is never hit.
//! - What is dead stays dead: status is computed from the record and /proc, and not stored.
//! - One operation per process, single-threaded: processes are made by clone3(2) and go on in Rust (see `spawn`).

mod berth;
mod checkpoint;
mod create;
mod delete;
mod event;
mod exec;
pub mod features;
mod foreground;
mod hook;
mod kill;
mod leftover;
mod list;
mod pause;
mod pty;
mod record;
mod rename;
pub mod rootless;
mod shelter;
mod spawn;
mod start;
mod state;
mod update;

use std::path::{Path, PathBuf};

use crate::ids::ContainerId;

pub use berth::{Berth, finish_start, record_program};
pub use checkpoint::{CheckpointRequest, Images, RestoreRequest, Tree, checkpoint, outside};
pub use create::{CreateRequest, Created, Listen, Starter, Stdio, create, first_closed};
pub use delete::{Stop, remove, stop};
pub use event::{Event, stats, watch};
pub use exec::{ExecOutcome, ExecRequest, exec};
pub use foreground::wait_foreground;
pub use kill::{kill, stop_requested};
pub use leftover::{Leftover, leftovers};
pub use list::{Listed, list};
pub use pause::{Hold, hold, pause, processes, resume};
pub use pty::Pty;
pub use record::memo;
pub use rename::rename;
pub use shelter::{Sheltered, shelter};
pub use start::start;
pub use state::{ContainerState, Status, attachment, spec, state};
pub use update::update;

pub use crate::program::Intercept;

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
