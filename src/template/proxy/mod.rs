//! Fork by proxy: copies of a program that was loaded once, made by somebody else, each in a container of its own.
//!
//! ```text
//! T   parked: executed the program, has every right, is in our own pid namespace, never runs one of its instructions
//! Z   the template: shares T's memory, has the rights of its container and its pid namespace, and runs
//! I   parked in a container: shares their memory too, has that container's namespaces, rights and descriptors
//! W   the copy: a fork of I at the moment when Z calls fork(2), with Z's registers
//!
//! take      fork ─> T, which joins the template's container ─> execve ─> clone(CLONE_VM) ─> Z, which is confined and runs
//! prepare   T ─> clone(CLONE_VM) in the pid namespace of a container ─> I, which joins the rest and is confined
//! furnish   I gets the descriptors that the copy will have
//! fork      Z calls fork(2) and is stopped there; I forks instead ─> W; I ends, so W is its container's init's child
//! ```
//!
//! All of it is done by ptrace(2), from one thread of a process that has every right: system calls are injected by
//! setting registers and stepping over one instruction. So the program needs no rights and no part in it but a call of
//! fork(2), and everything that programs do before and after a fork of theirs is done as ever.
//!
//! **Trust.** Z is not trusted: it can write all memory that T and I share with it. What T and I do is decided by their
//! registers, which Z cannot reach; where a call takes memory, its effect is looked at from outside before W is made, and
//! anything else than what was ordered ends the template. W's memory is its own.
//!
//! **What differs from fork(2).** A copy has none of the template's descriptors, and what belongs to a place is its
//! container's: namespaces, cgroups, directory, user, limits. It does not have the forking thread's alternate signal stack
//! (sigaltstack(2)), its name if that was changed, and its niceness; a program that wants them sets them after the fork.
//!
//! **Where T is.** setns(2) leads only downwards in the tree of pid namespaces, so T has to be above every container.
//! That is why T executes the program and Z is the clone, and not the other way round.

mod change;
mod crew;
mod guest;
mod held;
mod loader;

use std::os::fd::BorrowedFd;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process as Wanted, Spec};

pub use guest::Guest;
pub use held::Held;

use crate::cgroup::{Cgroup, Entrance};
use crate::error::{Error, Kind, Result};
use crate::program::{Persona, persona};
use crate::sys::process::{ExitStatus, Process};

/// Where T and I have their end of the way by which descriptors come; below it are those that came.
const LANE: u32 = 100;

/// A container that is `created` or runs: its first process keeps its namespaces.
#[derive(Debug)]
pub struct Sandbox {
    /// The first process.
    pub init: Process,
    /// The way into its cgroups.
    pub entrance: Entrance,
}

impl Sandbox {
    /// A container by its first process and its cgroups.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the cgroups are gone.
    pub fn new(init: Process, cgroup: &Cgroup) -> Result<Self> {
        let entrance = cgroup.open_beside(init.pid())?;
        Ok(Self { init, entrance })
    }
}

/// What a template is made of.
#[derive(Debug)]
pub struct Origin<'a> {
    /// Its own container.
    pub sandbox: &'a Sandbox,
    /// The program that is loaded, and its rights.
    pub process: &'a Wanted,
    /// Where its filter is.
    pub linux: Option<&'a Linux>,
    /// Its standard streams.
    pub stdio: [BorrowedFd<'a>; 3],
}

/// How a template ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its process ended.
    Exited(ExitStatus),
    /// Its process has executed another program, whose memory is not the one that copies are made of.
    Executed,
}

/// Whether a copy gets a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// No.
    None,
    /// Its standard input is one, and becomes the one that controls its session.
    Terminal,
}

/// Whether a container of this specification can be a template's or a copy's, and who its process is then.
///
/// # Errors
/// [`Kind::Unsupported`] naming what does not fit, with the advice to start it without a template; [`Kind::Invalid`].
pub fn plan(spec: &Spec) -> Result<Persona> {
    let process = spec.process().as_ref().ok_or_else(|| Error::new(Kind::Invalid, "check process", "it is missing"))?;
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let has = |kind: LinuxNamespaceType| namespaces.iter().any(|namespace| namespace.typ() == kind);
    if !has(LinuxNamespaceType::Pid) {
        return Err(misfit("it has no pid namespace of its own, whose first process could take a copy in"));
    }
    if !has(LinuxNamespaceType::Mount) {
        return Err(misfit("it has no mount namespace of its own, which a copy could join"));
    }
    for kind in [LinuxNamespaceType::User, LinuxNamespaceType::Time] {
        if has(kind) {
            return Err(misfit(&format!("a process that shares memory cannot join its {kind} namespace")));
        }
    }
    persona(process, linux)
}

fn misfit(cause: &str) -> Error {
    Error::new(Kind::Unsupported, "make a copy of a template in this container", cause)
        .next("start this container without a template")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_that_cannot_be_joined_do_not_fit() {
        let planned = |kinds: &[&str]| {
            let namespaces: Vec<_> = kinds.iter().map(|kind| serde_json::json!({"type": kind})).collect();
            let spec: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2",
                "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["x"]},
                "linux": {"namespaces": namespaces}}))
            .unwrap();
            plan(&spec).map(|_| ()).map_err(|error| error.kind())
        };
        assert_eq!(planned(&["pid", "mount"]), Ok(()));
        for kinds in [["mount", "ipc"], ["pid", "network"]] {
            assert_eq!(planned(&kinds), Err(Kind::Unsupported), "{kinds:?}");
        }
        for kind in ["user", "time"] {
            assert_eq!(planned(&["pid", "mount", kind]), Err(Kind::Unsupported), "{kind}");
        }
    }
}
