//! From a plan to a process: the container's first one, and those of `exec`.
//!
//! ```text
//! maker                                      the process
//!   clone3 ────────────────────────────────>   descriptors marked for closing
//!   id maps, systemd's scope ──── Go ──────>   namespaces joined, root in them, cgroups, session, keyring, names
//!                                              file systems
//!   prestart, createRuntime <── Mounted ────
//!                           ────── Go ─────>   createContainer hooks, pivot, terminal, masks; user, rights, program
//!   limits, terminal, listener <─── Ready ──
//!   on record ───────────── Listen ────────>   waits: on its socket for whoever runs `start`, ...
//!   start ───────────────── Start ─────────>   ... or for its maker (`run`)
//!                                              startContainer hooks
//!           <──────────── Executing ────────   execve
//!           <──── Failed, or the end of the connection: the descriptor was closed by execve
//! ```
//!
//! A process that already runs elsewhere can be made the program instead, as a child of the first one, which then only
//! looks after it (see [`mod@shelter`]):
//!
//! ```text
//!   start ──────────────── Shelter ─────────>   startContainer hooks; the terminal is given up
//!           <──────────── Sheltering ────────   standard streams and working directory, for the program to have
//!   the program is there ── Adopt ──────────>   signals go to it, the dead are reaped, its end is the container's
//!           <────────────── Adopted ─────────
//!   nobody came ─────────── Start ──────────>   (as above, after the hooks)
//! ```
//!
//! Steps in parentheses of what is asked for are left out with their messages. At any time the process may say `Failed`
//! with an [`Error`] and end, and the maker may die: the process then reads the end of the connection where it waits
//! for a word, and ends too. So nothing half-made lives on, and before `Listen` nothing unrecorded does.
//!
//! **Namespaces.** All new ones are made by one clone3, so that a new user namespace owns the others. An intermediate
//! process stands between where something has to be joined or set before a process is in it (see
//! [`namespace::Namespaces::need_intermediate`]); with CLONE_PARENT the process is its maker's child all the same.
//!
//! [`Error`]: crate::error::Error

pub(super) mod exec;
mod idmap;
mod init;
mod maker;
mod message;
mod namespace;
mod plan;
mod shelter;
mod surroundings;
mod terminal;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::signal::SigSet;
use oci_spec::runtime::{Hooks, LinuxResources};

use crate::program::{FIRST_SOCKET, Intercept};
use crate::runtime::create::Stdio;
use crate::runtime::{Pty, hook};
use crate::sys::channel::{Channel, Listener};
use crate::sys::process::Process;

pub(super) use idmap::write_maps;
pub(super) use maker::{adopt, bear, hear_adopted, propose, release, shelter, start};
pub(super) use message::Shelter;
pub(super) use plan::{Plan, plan};
pub(super) use surroundings::Privilege;

/// What a container's first process gets that is its maker's affair.
#[derive(Debug)]
pub(super) struct Order {
    pub stdio: Stdio,
    /// A socket that gets the terminal's near end; if there is none, the maker does.
    pub console_socket: Option<PathBuf>,
    /// The first descriptor that the program does not get.
    pub closed_from: u32,
    /// What the program finds open from descriptor 3 on; they are [`above`] that.
    pub sockets: Vec<OwnedFd>,
    pub intercept: Intercept,
    /// The name of its session keyring, if it gets one.
    pub keyring: Option<String>,
    /// The signal mask that the program starts with.
    pub mask: SigSet,
    /// Where `start` will come from, if not from the maker.
    pub starter: Option<Listener>,
    pub privilege: Privilege,
    /// For systemd, which limits a cgroup once somebody is in it.
    pub resources: Option<LinuxResources>,
}

/// A first process that waits, not on record yet.
#[derive(Debug)]
pub(super) struct Born {
    pub process: Process,
    pub channel: Channel,
    /// The near end of the terminal, if no console socket got it.
    pub pty: Option<Pty>,
    /// Where its calls are answered, if they are intercepted.
    pub listener: Option<OwnedFd>,
}

/// The lowest number of a descriptor that is open while so many sockets are put where the program finds them.
pub(super) fn above(sockets: usize) -> i32 {
    const USUAL: i32 = 64;
    i32::try_from(FIRST_SOCKET as usize + sockets).unwrap_or(i32::MAX).max(USUAL)
}

/// Whether the maker has hooks to run between the process's file systems and its root.
fn has_host_hooks(hooks: &Hooks) -> bool {
    !hook::prestart(hooks).is_empty() || hooks.create_runtime().as_ref().is_some_and(|hooks| !hooks.is_empty())
}
