//! Pause and resume: the processes of a container stop where they are, and go on.

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::{self, Record};
use crate::runtime::{StateRoot, Status, state};

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
        Status::Created | Status::Running => record.cgroup.freeze().context(operation),
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
