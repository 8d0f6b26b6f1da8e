//! One more process in a container: it joins everything that the first one is in.
//!
//! All namespaces are joined by one setns(2) on the first process's pidfd, so that they are those of one and the same
//! process at one moment. The pid namespace only takes effect for children: the maker joins that before the clone. With
//! another user namespace it would lose its rights by that, so an intermediate joins everything and leaves the process to
//! the maker as its child.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use nix::unistd::setsid;
use oci_spec::runtime::{Process as Wanted, Spec};

use super::init::{become_root, hide};
use super::maker::{Fledgling, send_listener, start, unexpected};
use super::message::{Handed, Report, Word, hear, report};
use super::namespace;
use super::plan::{Seccomp, Terminal, terminal, used_up, user_namespace};
use super::terminal as tty;
use crate::cgroup::Entrance;
use crate::error::{Context, Error, Kind, Result};
use crate::program::{self, Given, Kernel, Role};
use crate::runtime::Pty;
use crate::runtime::record::Record;
use crate::sys::channel::Channel;
use crate::sys::clone::{self, Birth, Parent, close_on_exec_from};
use crate::sys::keyring::join_session_keyring;
use crate::sys::process::Process;

/// What is decided before the process exists.
#[derive(Debug)]
pub(in crate::runtime) struct Plan {
    /// All that are joined, but a user namespace.
    namespaces: CloneFlags,
    user: bool,
    program: Option<program::Plan>,
    terminal: Option<Terminal>,
    seccomp: Seccomp,
}

/// What the process gets that is its maker's affair.
#[derive(Debug)]
pub(in crate::runtime) struct Order<'a> {
    pub record: &'a Record,
    /// The container's first process.
    pub init: &'a Process,
    pub entrance: Entrance,
    pub console_socket: Option<&'a Path>,
    pub closed_from: u32,
    pub keyring: Option<String>,
    pub mask: SigSet,
}

/// Decides, but for the kernel and the first process that it looks at.
///
/// # Errors
/// [`Kind::Invalid`] naming what makes no sense, [`Kind::Unsupported`] for what this kernel lacks.
pub(in crate::runtime) fn plan(spec: &Spec, wanted: &Wanted, init: &Process) -> Result<Plan> {
    let linux = spec.linux().as_ref();
    let namespaces = namespace::plan(linux)?;
    let all = namespaces.joined.iter().fold(namespaces.new, |all, (kind, _)| all | *kind);
    // The kernel lets nobody join the user namespace that it is in, which a joined one may be.
    let user = all.contains(CloneFlags::CLONE_NEWUSER) && is_foreign(init.pid())?;
    let kernel = Kernel::observe(wanted, user_namespace(user))?;
    let container = spec.process().clone().unwrap_or_default();
    let role = Role::Exec { container: &container };
    Ok(Plan {
        namespaces: all - CloneFlags::CLONE_NEWUSER,
        user,
        program: Some(program::plan(wanted, linux, role, &kernel, Given::of_environment())?),
        terminal: terminal(wanted),
        seccomp: Seccomp::of(linux),
    })
}

fn is_foreign(pid: i32) -> Result<bool> {
    let operation = || format!("look at the user namespace of process {pid}");
    let theirs = fs::metadata(format!("/proc/{pid}/ns/user")).context(operation)?;
    let ours = fs::metadata("/proc/self/ns/user").context(operation)?;
    Ok((theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()))
}

/// Runs the process in the container. Returns once it is the program.
///
/// # Errors
/// Whatever failed on either side; the process is then gone.
pub(in crate::runtime) fn spawn(mut plan: Plan, order: Order<'_>) -> Result<(Process, Option<Pty>)> {
    let record = order.record;
    let console_socket = order.console_socket;
    let between = plan.user;
    let mut fledgling = launch(&mut plan, order)?;
    if between {
        fledgling.replace()?;
        fledgling.tell(Word::Go)?;
    }
    let handed = match fledgling.ask()? {
        Report::Ready(handed) => handed,
        other @ (Report::Mounted
        | Report::Cloned(_)
        | Report::Executing
        | Report::Sheltering(_)
        | Report::Adopted
        | Report::Failed(_)) => {
            return Err(unexpected(&other));
        }
    };
    if let Some(program) = &plan.program {
        program.limit(fledgling.pid())?;
    }
    if let Some(listener) = &handed.listener {
        send_listener(record, &plan.seccomp, listener.as_fd(), fledgling.pid())?;
    }
    let pty = match (handed.terminal, console_socket) {
        (Some(near), Some(socket)) => tty::send(near.as_fd(), socket).map(|()| None)?,
        (near, _) => near.map(Pty::new),
    };
    start(fledgling.channel())?;
    let (process, _) = fledgling.come_of_age()?;
    Ok((process, pty))
}

fn launch(plan: &mut Plan, order: Order<'_>) -> Result<Fledgling> {
    let root = match order.record.chroot {
        true => Some(crate::sys::fs::open_path(Path::new(&format!("/proc/{}/root", order.init.pid())))?),
        false => None,
    };
    if !plan.user && plan.namespaces.contains(CloneFlags::CLONE_NEWPID) {
        setns(order.init, CloneFlags::CLONE_NEWPID).context(|| "join the container's pid namespace")?;
    }
    let cgroup = order.entrance.clone_into().map(|directory| directory.try_clone_to_owned()).transpose();
    let cgroup = cgroup.context(|| "open the container's cgroup")?;
    let birth =
        Birth { namespaces: CloneFlags::empty(), cgroup: cgroup.as_ref().map(AsFd::as_fd), parent: Parent::Caller };
    let (ours, theirs) = Channel::pair()?;
    let between = plan.user;
    let tenant = Tenant { plan, order, channel: theirs, root };
    let mut ours = Some(ours);
    let copy = &mut ours;
    let process = clone::spawn(birth, move || {
        drop(copy.take());
        if between { tenant.intermediate() } else { tenant.run() }
    })?;
    Ok(Fledgling::new(process, ours.ok_or_else(used_up)?))
}

/// The process itself.
struct Tenant<'a> {
    plan: &'a mut Plan,
    order: Order<'a>,
    channel: Channel,
    /// The container's root, if that is not the root of its mount namespace.
    root: Option<File>,
}

impl Tenant<'_> {
    fn run(mut self) -> i32 {
        let Err(error) = self.settle().and_then(|()| self.live());
        self.fail(error)
    }

    fn fail(&self, error: Error) -> i32 {
        let status = i32::from(error.exit_code());
        // If nobody is left to be told, nobody waits for it either.
        let _ = report(&self.channel, &Report::Failed(error));
        status
    }

    /// Joins everything at once, and makes the process that is in the pid namespace too.
    fn intermediate(mut self) -> i32 {
        if let Err(error) = self.settle() {
            return self.fail(error);
        }
        let told = match self.channel.duplicate() {
            Ok(told) => told,
            Err(error) => return self.fail(error),
        };
        let birth = Birth { namespaces: CloneFlags::empty(), cgroup: None, parent: Parent::Grandparent };
        // Both read the same end; what this one says is said before the other speaks.
        let made = clone::spawn(birth, || match hear(&self.channel) {
            Ok(Some(Word::Go)) => {
                let Err(error) = self.live();
                self.fail(error)
            }
            _ => 1,
        });
        match made {
            Ok(process) => i32::from(report(&told, &Report::Cloned(process.pid())).is_err()),
            Err(error) => self.fail(error),
        }
    }

    /// Into the container.
    fn settle(&mut self) -> Result<()> {
        close_on_exec_from(self.order.closed_from)?;
        // Whoever is in the container must not look into us, or take over what we have open.
        hide()?;
        if let Some(program) = &self.plan.program {
            program.pin(nix::unistd::getpid().as_raw())?;
        }
        self.order.entrance.enter()?;
        let namespaces = match self.plan.user {
            true => self.plan.namespaces | CloneFlags::CLONE_NEWUSER,
            false => self.plan.namespaces - CloneFlags::CLONE_NEWPID,
        };
        setns(self.order.init, namespaces).context(|| "join the container's namespaces")?;
        if self.plan.user {
            become_root()?;
        }
        if let Some(root) = self.root.take() {
            let operation = || "enter the container's root";
            rustix::process::fchdir(&root).context(operation)?;
            rustix::process::chroot(".").context(operation)?;
        }
        rustix::process::chdir("/").context(|| "enter the container's root")
    }

    fn live(&mut self) -> Result<Infallible> {
        setsid().context(|| "begin a session")?;
        if let Some(name) = &self.order.keyring {
            join_session_keyring(name)?;
        }
        let pair = self.plan.terminal.map(Terminal::open).transpose()?;
        if let Some(pair) = &pair {
            tty::attach(pair.far.as_fd())?;
        }
        let listener = self.plan.program.as_mut().ok_or_else(used_up)?.prepare()?;
        self.tell(&Report::Ready(Handed { terminal: pair.map(|pair| pair.near), listener }))?;
        match hear(&self.channel)? {
            Some(Word::Start) => {}
            Some(Word::Go | Word::Listen | Word::Shelter) | None => {
                return Err(Error::new(Kind::System, "wait for the start", "the maker is gone"));
            }
        }
        self.tell(&Report::Executing)?;
        Err(self.plan.program.take().ok_or_else(used_up)?.execute(&self.order.mask))
    }

    fn tell(&self, what: &Report) -> Result<()> {
        match report(&self.channel, what)? {
            true => Ok(()),
            false => Err(Error::new(Kind::System, "run a process in the container", "the maker is gone")),
        }
    }
}
