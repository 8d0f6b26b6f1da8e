//! The last steps of a process before its program: for a container's first process, and for those of `exec`.
//!
//! ```text
//! Kernel::observe   what this kernel and this caller can do                       parent
//! plan              process and linux of the specification ──pure──> Plan         parent; the filter is compiled here
//! Plan::pin         CPUs of an exec until it has joined the container's cgroup    parent
//! Plan::limit       oom score, CPUs after that, rlimits in a user namespace       parent, which has the right to
//! Plan::prepare     labels, no_new_privs, scheduler, directory, user, capabilities, the look for the program   child
//! Plan::execute     signals, filter, execve(2)                                                                 child
//! ```
//!
//! The child is single-threaded and inside all of its namespaces and its root when `prepare` is called. Between
//! `prepare` and `execute` it may wait for `start` and run hooks. Descriptors are the caller's: whatever the program
//! must not have is close-on-exec before `prepare`, so that no directory of the host is open when the working
//! directory is entered (CVE-2024-21626); that the process ended up inside is checked here all the same.
//!
//! A filter is loaded as late as it can be: after it comes nothing but execve(2), so it need not allow our own steps.
//! Without no_new_privs loading takes CAP_SYS_ADMIN, which the process then keeps permitted up to the execve(2) that
//! takes it away. A filter that notifies is the exception: its listener is handed over before the container counts as
//! created, so it is loaded at the end of `prepare`. From then on a call that it reports waits for an answer; the
//! listener is best handed over by write(2) of its number and pidfd_getfd(2), as only `write` is refused there.
//! The filter that reports binds ([`Intercept::Binds`]) is loaded there too, before the container's own.

mod activation;
mod bpf;
mod capability;
mod directory;
mod enosys;
mod feature;
mod fork;
mod intercept;
mod label;
mod limit;
mod lookup;
mod null;
mod persona;
mod schedule;
mod seccomp;
mod user;

use std::os::fd::OwnedFd;

use nix::sys::signal::SigSet;
use oci_spec::runtime::{Linux, Process};
use rustix::thread::{CapabilitySet, set_no_new_privs};

pub use activation::{Activation, FIRST as FIRST_SOCKET};
pub use feature::{FilterFeatures, filter_features};
pub use fork::{FORK_MARK, fork_filter};
pub use intercept::Intercept;
pub use label::mount_label;
pub use null::reopen_null;
pub use persona::{Confinement, Persona, Rights, persona};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::seccomp::load_filter;
use crate::sys::signal::restore_for_exec;

/// Whose last steps these are.
#[derive(Debug, Clone, Copy)]
pub enum Role<'a> {
    /// The container's first process.
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
pub struct Kernel {
    namespace: UserNamespace,
    known: CapabilitySet,
    own: CapabilitySet,
    modules: label::Modules,
}

impl Kernel {
    /// Looks, in the parent.
    ///
    /// # Errors
    /// Those of the calls that look.
    pub fn observe(process: &Process, namespace: UserNamespace) -> Result<Self> {
        let known = capability::known();
        let own = match namespace {
            UserNamespace::Own => capability::own()?,
            UserNamespace::Other => known,
        };
        let modules = label::Modules::observe(process);
        Ok(Self { namespace, known, own, modules })
    }
}

/// What a process gets from its maker beside what its specification says.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Sockets that it finds open; whoever executes it puts them there.
    pub activation: Option<Activation>,
    /// Which of its calls its maker answers.
    pub intercept: Intercept,
    /// When it gives up its maker's rights.
    pub surrender: Surrender,
}

impl Given {
    /// What the caller of the runtime passes on by its environment.
    #[must_use]
    pub fn of_environment() -> Self {
        Self { activation: Activation::of_environment(), ..Self::default() }
    }
}

/// Whether the process may gain privileges by executing a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gain {
    /// It may.
    Allowed,
    /// It may not (`no_new_privs`).
    Forbidden,
}

/// When a process gives up the rights of its maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Surrender {
    /// By itself, before it executes its program.
    #[default]
    Itself,
    /// Never: whoever traces it takes them, or keeps it from running. User, groups, capabilities, limits, filter and
    /// `no_new_privs` stay those of the maker.
    Traced,
}

/// Everything that is decided before the child exists.
#[derive(Debug)]
pub struct Plan {
    labels: label::Labels,
    gain: Gain,
    schedule: schedule::Schedule,
    affinity: limit::Affinity,
    limits: limit::Limits,
    credentials: user::Credentials,
    known: CapabilitySet,
    sets: capability::Sets,
    filter: Option<seccomp::Filter>,
    /// The filter that reports to the maker.
    reporter: Option<seccomp::Filter>,
    command: lookup::Command,
    image: Option<lookup::Image>,
    surrender: Surrender,
}

/// Decides, and compiles the seccomp filter; the process is not touched. The filter is that of `linux`, which is the
/// container's for an exec too.
///
/// # Errors
/// [`Kind::Invalid`] naming what makes no sense, [`Kind::Unsupported`] for what this kernel lacks, or for a filter that
/// has a listener of its own where binds are intercepted.
pub fn plan(process: &Process, linux: Option<&Linux>, role: Role<'_>, kernel: &Kernel, given: Given) -> Result<Plan> {
    let (sets, left_out) = capability::plan(process.capabilities().as_ref(), kernel.known, kernel.own);
    for left in left_out {
        tracing::warn!(capability = %left.capability, set = left.set, "capability is left out: {}", left.reason);
    }
    let affinity = match role {
        Role::Init => limit::Affinity::default(),
        Role::Exec { .. } => limit::plan_affinity(process.exec_cpu_affinity().as_ref())?,
    };
    let filter = linux.and_then(|linux| linux.seccomp().as_ref()).map(seccomp::compile).transpose()?;
    Ok(Plan {
        labels: label::plan(process, kernel.modules)?,
        gain: if process.no_new_privileges() == Some(true) { Gain::Forbidden } else { Gain::Allowed },
        schedule: plan_schedule(process, linux, role)?,
        affinity,
        limits: limit::plan(process.rlimits().as_deref(), process.oom_score_adj(), kernel.namespace)?,
        credentials: user::plan(process.user())?,
        known: kernel.known,
        sets,
        reporter: plan_reporter(given.intercept, filter.as_ref())?,
        filter,
        command: lookup::plan(process, given.activation)?,
        image: None,
        surrender: given.surrender,
    })
}

fn plan_reporter(intercept: Intercept, own: Option<&seccomp::Filter>) -> Result<Option<seccomp::Filter>> {
    match (intercept, own) {
        (Intercept::No, _) => Ok(None),
        (Intercept::Binds, Some(own)) if own.notifies() => {
            let cause =
                "its seccomp profile has a listener of its own (SCMP_ACT_NOTIFY), and a process can have only one";
            Err(Error::new(Kind::Unsupported, "intercept binds", cause)
                .next("take the rule out of linux.seccomp, or let the program use the sockets that it is given"))
        }
        (Intercept::Binds, _) => intercept::filter().map(Some),
    }
}

fn plan_schedule(process: &Process, linux: Option<&Linux>, role: Role<'_>) -> Result<schedule::Schedule> {
    let container = match role {
        Role::Init => None,
        Role::Exec { container } => Some(container),
    };
    let scheduler = process.scheduler().as_ref().or_else(|| container?.scheduler().as_ref());
    let io = process.io_priority().as_ref().or_else(|| container?.io_priority().as_ref());
    let personality = linux.and_then(|linux| linux.personality().as_ref());
    Ok(schedule::Schedule {
        scheduler: scheduler.map(schedule::plan_scheduler).transpose()?,
        io: io.map(schedule::plan_io_priority).transpose()?,
        persona: personality.map(schedule::plan_personality),
    })
}

impl Plan {
    /// Sets the CPUs that an exec asks for until it has joined the container's cgroup: on the child, before it is
    /// moved there. Nothing for a container's first process.
    ///
    /// # Errors
    /// Those of sched_setaffinity(2).
    pub fn pin(&self, pid: i32) -> Result<()> {
        limit::pin(pid, self.affinity.initial.as_ref())
    }

    /// Sets oom score adjustment and last CPUs of the child, and in a user namespace of its own, where it could not
    /// raise any, resource limits, from outside. After it joined its cgroups; the later before `execute` the better, as
    /// the limits bind our own steps too.
    ///
    /// # Errors
    /// Those of prlimit(2), sched_setaffinity(2) and of writing to /proc.
    pub fn limit(&self, pid: i32) -> Result<()> {
        limit::pin(pid, self.affinity.last.as_ref())?;
        self.limits.apply(pid)
    }

    /// In the child, inside its root: everything that does not have to wait for `start`. Returns the listener of a
    /// filter that notifies: for the parent to send to the `listenerPath` of the container's own, or to keep if it
    /// intercepts.
    ///
    /// # Errors
    /// [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for the program, else what was refused.
    pub fn prepare(&mut self) -> Result<Option<OwnedFd>> {
        match self.surrender {
            Surrender::Itself => self.prepare_as_user(),
            Surrender::Traced => self.prepare_as_maker().map(|()| None),
        }
    }

    /// Only what has nothing to do with rights.
    fn prepare_as_maker(&mut self) -> Result<()> {
        let directory = self.command.directory();
        let entry = directory::enter(directory)?;
        directory::enter_as_user(directory, entry)?;
        directory::check_inside()?;
        self.filter = None;
        self.image = Some(self.command.resolve(directory::home_of(self.credentials.uid()).as_deref())?);
        Ok(())
    }

    fn prepare_as_user(&mut self) -> Result<Option<OwnedFd>> {
        self.labels.apply()?;
        if self.gain == Gain::Forbidden {
            set_no_new_privs(true).context(|| "set no_new_privs")?;
        }
        self.schedule.apply()?;
        let directory = self.command.directory();
        let entry = directory::enter(directory)?;
        self.credentials.set_umask();
        self.sets.bound(self.known)?;
        let home = directory::home_of(self.credentials.uid());
        self.limits.apply_own()?;
        self.credentials.assume()?;
        // As the user, but with every right that the process will have.
        self.sets.apply(self.extra())?;
        directory::enter_as_user(directory, entry)?;
        directory::check_inside()?;
        self.image = Some(self.command.resolve(home.as_deref())?);
        match self.reporter.take() {
            Some(reporter) => load_filter(&reporter.program, reporter.flags).context(|| "intercept binds"),
            None if self.filter.as_ref().is_some_and(seccomp::Filter::notifies) => self.confine(),
            None => Ok(None),
        }
    }

    /// What the process needs until it is confined.
    fn extra(&self) -> CapabilitySet {
        match (self.filter.is_some() || self.reporter.is_some(), self.gain) {
            (true, Gain::Allowed) => CapabilitySet::SYS_ADMIN,
            (true, Gain::Forbidden) | (false, _) => CapabilitySet::empty(),
        }
    }

    /// Loads the filter if it is not loaded yet.
    fn confine(&mut self) -> Result<Option<OwnedFd>> {
        match self.filter.take() {
            Some(filter) => load_filter(&filter.program, filter.flags),
            None => Ok(None),
        }
    }

    /// In the child: becomes the program, which starts with the signal mask `mask` and default dispositions. Returns
    /// only if that fails.
    #[must_use]
    pub fn execute(mut self, mask: &SigSet) -> Error {
        let confined = restore_for_exec(mask).and_then(|()| self.confine());
        match (confined, &self.image) {
            (Err(error), _) => error,
            (Ok(_), Some(image)) => image.execute(),
            (Ok(_), None) => Error::new(Kind::Invalid, "execute the program", "the process was not prepared"),
        }
    }
}
