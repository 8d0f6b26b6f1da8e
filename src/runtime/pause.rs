//! Pause and resume: the processes of a container stop where they are, and go on.

use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::{self, Record};
use crate::runtime::{StateRoot, Status, state};

/// How long somebody who wants a container to stand still waits for it to do so.
const PAUSE_PATIENCE: Duration = Duration::from_secs(10);
/// The same for a moment's work: meanwhile those that have stopped already stand still for nothing.
const MOMENT_PATIENCE: Duration = Duration::from_secs(3);

/// Freezes every process of a container, also of one that waits for `start`.
///
/// # Errors
/// [`Kind::State`] with the words "container not running" if it is paused or has ended; [`Kind::Unsupported`] if it has
/// no cgroup.
pub fn pause(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let operation = || format!("pause container '{id}'");
    let _lock = record::lock(root, id)?;
    let record = Record::load(root, id)?;
    match state::status(&record)? {
        Status::Created | Status::Running => record.cgroup.freeze(PAUSE_PATIENCE).context(operation),
        status @ (Status::Creating | Status::Paused | Status::Stopped) => {
            Err(Error::new(Kind::State, operation(), format!("container not running: it is {status}")))
        }
    }
}

/// Lets the processes of a paused container go on.
///
/// # Errors
/// [`Kind::State`] with the words "container not paused".
pub fn resume(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let operation = || format!("resume container '{id}'");
    let _lock = record::lock(root, id)?;
    let record = Record::load(root, id)?;
    match state::status(&record)? {
        Status::Paused => record.cgroup.thaw().context(operation),
        status @ (Status::Creating | Status::Created | Status::Running | Status::Stopped) => {
            Err(Error::new(Kind::State, operation(), format!("container not paused: it is {status}")))
        }
    }
}

/// A container that nobody else pauses, resumes or deletes as long as this lives.
#[derive(Debug)]
pub struct Hold {
    root: StateRoot,
    id: ContainerId,
    cgroup: Cgroup,
    paused: bool,
    _lock: record::Locked,
}

/// Keeps others from pausing, resuming or deleting a running or paused container for a moment.
///
/// # Errors
/// [`Kind::State`] with the words "container not running" if it has ended.
pub fn hold(root: &StateRoot, id: &ContainerId) -> Result<Hold> {
    let lock = record::lock(root, id)?;
    let record = Record::load(root, id)?;
    let paused = match state::status(&record)? {
        Status::Created | Status::Running => false,
        Status::Paused => true,
        status @ (Status::Creating | Status::Stopped) => {
            let cause = format!("container not running: it is {status}");
            return Err(Error::new(Kind::State, format!("hold container '{id}'"), cause));
        }
    };
    Ok(Hold { root: root.clone(), id: id.clone(), cgroup: record.cgroup, paused, _lock: lock })
}

impl Hold {
    /// Whether somebody has paused it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What is known of it.
    pub(super) fn record(&self) -> Result<Record> {
        Record::load(&self.root, &self.id)
    }

    /// The pids of its processes on the host.
    ///
    /// # Errors
    /// Those of reading the cgroup.
    pub fn processes(&self) -> Result<Vec<i32>> {
        self.cgroup.processes()
    }

    /// Does something while every process of the container stands still, and lets them go on whatever comes of it.
    ///
    /// # Errors
    /// As [`pause`]; those of `work`; [`Kind::State`] if somebody let the processes go on meanwhile.
    pub fn while_frozen(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let operation = || format!("freeze container '{}' for a moment", self.id);
        let began = Instant::now();
        let thaw = Thaw(&self.cgroup);
        self.cgroup.freeze(MOMENT_PATIENCE).context(operation)?;
        let done = work();
        let stood = self.cgroup.is_frozen();
        drop(thaw);
        // Dropping cannot tell that it failed.
        self.cgroup.thaw().context(operation)?;
        tracing::debug!(container = %self.id, "stood still for {:?}", began.elapsed());
        done?;
        if stood {
            return Ok(());
        }
        Err(Error::new(Kind::State, operation(), "somebody let it go on, or killed it").next("try again"))
    }
}

/// Lets a cgroup go on, also while a panic unwinds.
struct Thaw<'a>(&'a Cgroup);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        // Whoever can tell of a failure tries again.
        let _ = self.0.thaw();
    }
}

/// The pids of a container's processes on the host, in their order; none of a container that has ended.
///
/// # Errors
/// [`Kind::Unsupported`] if it has no cgroup by which they could be told from others.
pub fn processes(root: &StateRoot, id: &ContainerId) -> Result<Vec<i32>> {
    let operation = || format!("list the processes of container '{id}'");
    let record = Record::load(root, id)?;
    let running = match state::status(&record)? {
        Status::Created | Status::Running | Status::Paused => true,
        Status::Creating | Status::Stopped => false,
    };
    if running && record.cgroup.directories.is_empty() {
        let error = Error::new(Kind::Unsupported, operation(), "the container has no cgroup");
        return Err(error.next("look for the descendants of its first process"));
    }
    record.cgroup.processes().context(operation)
}
