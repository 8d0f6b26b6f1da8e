//! The last steps of a process before its program: for a container's first process, and for those of `exec`.
//!
//! ```text
//! Kernel::observe   what this kernel and this caller can do                       parent
//! plan              process and linux of the specification ──pure──> Plan         parent; the filter is compiled here
//! Plan::limit       rlimits, oom score, final CPU affinity, of the child          parent, which has the right to
//! Plan::prepare     labels, scheduler, personality, directory, user, capabilities, the look for the program    child
//! Plan::execute     filter, last capabilities, signals, execve(2)                                              child
//! ```
//!
//! The child is single-threaded and inside all of its namespaces and its root when `prepare` is called. Between
//! `prepare` and `execute` it may wait for `start` and run hooks. Descriptors are the caller's: whatever the program
//! must not have is close-on-exec before `prepare`, so that no directory of the host is open when the working
//! directory is entered (CVE-2024-21626).

use std::os::fd::OwnedFd;

use nix::sys::signal::SigSet;
use oci_spec::runtime::{Linux, Process};

use crate::error::{Error, Kind, Result};

/// Whose last steps these are.
#[derive(Debug, Clone, Copy)]
pub enum Role<'a> {
    /// The container's first process. Its working directory is made if it is missing.
    Init,
    /// One more process; what it leaves open (scheduler, I/O priority) is that of the container's process.
    Exec {
        /// `process` of the container's specification.
        container: &'a Process,
    },
}

/// Whether the process will be in a user namespace other than the caller's, where it has every capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespace {
    /// The caller's own.
    Own,
    /// Another one.
    Other,
}

/// What this kernel and this caller can do, as far as the process asks for it.
#[derive(Debug, Clone)]
pub struct Kernel {}

impl Kernel {
    /// Looks, in the parent.
    ///
    /// # Errors
    /// Those of the calls that look.
    pub fn observe(_process: &Process, _namespace: UserNamespace) -> Result<Self> {
        Ok(Self {})
    }
}

/// Everything that is decided before the child exists.
#[derive(Debug)]
pub struct Plan {}

/// Decides, without I/O. The seccomp filter is that of `linux`, which is the container's for an exec too.
///
/// # Errors
/// [`Kind::Invalid`] naming what makes no sense, [`Kind::Unsupported`] for what this kernel lacks.
pub fn plan(_process: &Process, _linux: Option<&Linux>, _role: Role<'_>, _kernel: &Kernel) -> Result<Plan> {
    Ok(Plan {})
}

impl Plan {
    /// Sets the CPU affinity that an exec asks for until it has joined the container's cgroup: on the child, before
    /// it is moved there. Nothing for a container's first process.
    ///
    /// # Errors
    /// Those of sched_setaffinity(2).
    pub fn pin(&self, _pid: i32) -> Result<()> {
        Ok(())
    }

    /// Sets resource limits, oom score adjustment and final CPU affinity of the child, from outside: in a user
    /// namespace of its own it could not raise any. After it joined its cgroups; the later before `execute` the
    /// better, as the limits bind our own steps too.
    ///
    /// # Errors
    /// Those of prlimit(2), sched_setaffinity(2) and of writing to /proc.
    pub fn limit(&self, _pid: i32) -> Result<()> {
        Ok(())
    }

    /// In the child, inside its root: everything that does not have to wait for `start`. Returns the listener of a
    /// filter that notifies, for the parent to send to the filter's `listenerPath`.
    ///
    /// # Errors
    /// [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for the program, else what was refused.
    pub fn prepare(&mut self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// In the child: becomes the program, which starts with the signal mask `mask` and default dispositions.
    /// Returns only if that fails.
    #[must_use]
    pub fn execute(self, _mask: &SigSet) -> Error {
        Error::new(Kind::Unsupported, "execute", "not there yet")
    }
}

/// The mount option that gives a file system the SELinux label `linux.mountLabel`, such as
/// `context="system_u:object_r:container_file_t:s0:c1,c2"`; `None` where this kernel has no SELinux or the label is
/// empty.
#[must_use]
pub fn mount_label(_label: &str) -> Option<String> {
    None
}
