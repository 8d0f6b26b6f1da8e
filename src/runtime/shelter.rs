//! A container whose program is a process that was made elsewhere.
//!
//! ```text
//! created ── shelter ──> Sheltered ── adopt ──> running; its first process looks after the program
//!                            │ └───── start ──> running; nobody came, and its first process is the program
//!                            └── dropped ─────> stopped
//! ```
//!
//! Between the two the caller has another process enter the container and leave it a child: the program. Its first
//! process, which is that one's parent then, passes signals on, reaps, and ends as the program ends. If that or the caller
//! dies at any point, nothing of the container goes on: what is in a pid namespace ends with its first process.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::SigSet;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::create::Way;
use crate::runtime::record::{Locked, Record};
use crate::runtime::{Created, StateRoot, spawn, start};
use crate::sys::channel::Channel;
use crate::sys::process::{Identity, Process};

/// A container whose first process waits for its program to come. Dropping it ends the container, unless whoever created
/// it still holds the way to its first process.
#[derive(Debug)]
pub struct Sheltered {
    root: StateRoot,
    container: (Locked, Record),
    init: Process,
    channel: Channel,
    given: spawn::Shelter,
    mask: Option<SigSet>,
}

/// Prepares a created container for a program from elsewhere: its startContainer hooks run.
///
/// # Errors
/// [`Kind::State`] if it is not `created`, [`Kind::Unsupported`] if it has no pid namespace of its own; those of hooks, and
/// its first process has then ended.
pub fn shelter(root: &StateRoot, id: &ContainerId) -> Result<Sheltered> {
    begin(root, id, (&Way::Socket, None))
}

impl Created {
    /// Prepares the container that the calling process has just created, for [`super::Starter::Creator`].
    ///
    /// # Errors
    /// As [`shelter`].
    pub fn shelter(&self, root: &StateRoot, id: &ContainerId) -> Result<Sheltered> {
        begin(root, id, (&self.way, self.mask))
    }
}

fn begin(root: &StateRoot, id: &ContainerId, (way, mask): (&Way, Option<SigSet>)) -> Result<Sheltered> {
    let operation = || format!("start container '{id}'");
    let (lock, record) = start::find_waiting(root, id)?;
    check(&record.spec()?).context(operation)?;
    let channel = match way {
        Way::Channel(channel) => channel.duplicate()?,
        Way::Socket if !record.restored => start::connect(root, id).context(operation)?,
        Way::Socket | Way::Restored => {
            let cause = "it was restored: its processes are there already";
            return Err(Error::new(Kind::Unsupported, operation(), cause));
        }
    };
    let gone = || Error::new(Kind::State, operation(), "container not running: its process has ended");
    let init = record.init()?.open()?.ok_or_else(gone)?;
    let given = spawn::shelter(&channel).context(operation)?;
    Ok(Sheltered { root: root.clone(), container: (lock, record), init, channel, given, mask })
}

/// A program's end must end everything, and its parent must be the first process.
fn check(spec: &Spec) -> Result<()> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let own = namespaces.iter().any(|space| space.typ() == LinuxNamespaceType::Pid && space.path().is_none());
    if own {
        return Ok(());
    }
    Err(Error::new(Kind::Unsupported, "give it a program from elsewhere", "it has no new pid namespace of its own")
        .next("add {\"type\": \"pid\"} to linux.namespaces"))
}

impl Sheltered {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.container.1.id
    }

    /// Its first process: whose namespaces, root and terminal the program is to have.
    #[must_use]
    pub fn init(&self) -> &Process {
        &self.init
    }

    /// The same, as it is on record.
    ///
    /// # Errors
    /// [`Kind::State`] if it is not.
    pub fn identity(&self) -> Result<&Identity> {
        self.container.1.init()
    }

    /// The program's standard streams.
    #[must_use]
    pub fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        self.given.stdio.each_ref().map(AsFd::as_fd)
    }

    /// The program's working directory, with `O_PATH`.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.given.directory.as_fd()
    }

    /// What the container was made with.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if that is no specification.
    pub fn spec(&self) -> Result<Spec> {
        self.container.1.spec()
    }

    /// Its cgroups.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.container.1.cgroup
    }

    /// Whether its first process is alone in it: whoever came for the program left nothing behind.
    ///
    /// # Errors
    /// Those of reading /proc and the cgroups.
    pub fn is_empty(&self) -> Result<bool> {
        let init = self.init.pid();
        let operation = || format!("look for children of process {init}");
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).context(operation)?;
        Ok(children.trim().is_empty() && self.cgroup().processes()?.iter().all(|pid| *pid == init))
    }

    /// Lets its first process look after a child of its, which is the program; `pid` is that child's in the container.
    /// `status` gets a line once it has ended: `exit N` or `signal N`. Then the poststart hooks run.
    ///
    /// # Errors
    /// [`Kind::State`] if the first process has no such child, or is gone; those of poststart hooks. The container has then
    /// ended, or is about to.
    pub fn adopt(self, pid: i32, status: Option<BorrowedFd<'_>>) -> Result<()> {
        let operation = || format!("start container '{}'", self.container.1.id);
        let program = self.find_child(pid).context(operation)?;
        spawn::adopt(&self.channel, pid, status).context(operation)?;
        let (lock, mut record) = self.container;
        record.adopted(&self.root, program)?;
        start::complete(&self.root, (lock, record), self.mask)
    }

    /// The way to its first process, and the working directory: the container is not locked any more.
    pub(super) fn into_way(self) -> (Channel, OwnedFd) {
        (self.channel, self.given.directory)
    }

    /// Starts the program that the container was made with, because no other has come.
    ///
    /// # Errors
    /// As [`super::start()`].
    pub fn start(self) -> Result<()> {
        spawn::start(&self.channel).context(|| format!("start container '{}'", self.container.1.id))?;
        start::complete(&self.root, self.container, self.mask)
    }

    /// The child of the first process that has this pid in the container. The first process reaps none before it has
    /// adopted one, so the child stays what it is.
    fn find_child(&self, pid: i32) -> Result<Identity> {
        let operation = || format!("find process {pid} in the container");
        let init = self.init.pid();
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).context(operation)?;
        for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
            if Process::open(child)?.is_some_and(|child| child.inner_pid().is_ok_and(|inner| inner == pid)) {
                return Identity::of(child);
            }
        }
        Err(Error::new(Kind::State, operation(), "it is no child of the first process"))
    }
}
