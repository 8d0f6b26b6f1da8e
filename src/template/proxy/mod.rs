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
//! **Where T is.** setns(2) leads only downwards in the tree of pid namespaces, so T has to be above every container.
//! That is why T executes the program and Z is the clone, and not the other way round.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use oci_spec::runtime::{Linux, Process as Wanted, Spec};

use crate::cgroup::{Cgroup, Entrance};
use crate::error::{Error, Kind, Result};
use crate::program::{Persona, persona};
use crate::sys::channel::Channel;
use crate::sys::process::{ExitStatus, Process};

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
    /// Its process executes another program, whose memory is not the one that copies are made of.
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
    persona(process, spec.linux().as_ref())
}

/// A loaded template, held by the calling thread, which is its process's only one.
#[derive(Debug)]
pub struct Held {
    template: Process,
    channel: Channel,
}

/// A place for a copy in a container.
#[derive(Debug)]
pub struct Guest(());

impl Held {
    /// Loads a program: in its container, with descriptor 3 its end of the zygote socket. Its process runs when this
    /// returns. Blocks SIGCHLD in the calling thread, which has to be its process's only one and to make every further
    /// call.
    ///
    /// # Errors
    /// [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for the program; [`Kind::Unsupported`] for what does
    /// not fit; else what was refused. Nothing is left then.
    pub fn take(_origin: &Origin<'_>) -> Result<Self> {
        Err(missing())
    }

    /// The template's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.template
    }

    /// The zygote socket: one message for each datagram.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Whether copies can still be made; if not, the template has to be loaded anew.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        false
    }

    /// Lets everything of the template go on that was stopped by what it does: to be called for every SIGCHLD. Never
    /// blocks, and reaps the template's own processes only. Returns how it ended, once it has.
    ///
    /// # Errors
    /// Those of ptrace(2).
    pub fn attend(&mut self) -> Result<Option<End>> {
        Err(missing())
    }

    /// Makes a place for a copy in a container, whose process will be `persona` and begin in `directory`.
    ///
    /// # Errors
    /// What was refused; nothing is left in the container then. If the template has interfered, it is ended.
    pub fn prepare(&mut self, _: &Sandbox, _: &Persona, _directory: BorrowedFd<'_>) -> Result<Guest> {
        Err(missing())
    }

    /// Gives it the descriptors that the copy will have, from 0 on: standard streams, job and, for a call, result.
    ///
    /// # Errors
    /// As [`Held::prepare`]; it is then of no use.
    pub fn furnish(&mut self, _: &mut Guest, _descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        Err(missing())
    }

    /// Makes the copy, once the template was asked to fork. It runs when this returns, as a child of its container's
    /// first process.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the template does not fork within `limit`: it is of no use any more. Else what was refused. No
    /// copy is left.
    pub fn fork(&mut self, _: Guest, _: Control, _limit: Duration) -> Result<Process> {
        Err(missing())
    }

    /// Ends what was prepared and is not wanted.
    ///
    /// # Errors
    /// Those of ending it.
    pub fn dismiss(&mut self, _: Guest) -> Result<()> {
        Err(missing())
    }

    /// Ends the template: its processes are killed and reaped. Copies go on. Dropping does the same.
    ///
    /// # Errors
    /// Those of ending them.
    pub fn close(self) -> Result<()> {
        Err(missing())
    }
}

fn missing() -> Error {
    Error::new(Kind::Unsupported, "load a template", "this version cannot do it yet")
}
