//! Delete, in its two halves: everything dies, then everything goes.
//!
//! They are apart because a saved container's file system is taken between them: after the last writer is dead, and
//! while the container is still there to be found again if that fails.

use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::{self, Record};
use crate::runtime::{StateRoot, Status, hook, kill, state};
use crate::sys::signal::Signal;

/// How long a killed process may take to die: memory of many gigabytes takes seconds to give back.
const LIMIT: Duration = Duration::from_secs(10);

/// How a container that is to be deleted is made to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Everything in it is killed, whether it runs or not.
    Kill,
    /// It has to have ended; processes that outlived its first one are killed.
    Ended,
    /// It has to have ended; processes that outlived its first one live on, and so does their cgroup.
    EndedSparing,
}

/// Makes sure that the first process of a container is dead, and unless they are spared every other one.
///
/// A container that was never started counts as stopped. One whose record is damaged is emptied by its cgroup, if it
/// may be killed.
///
/// # Errors
/// [`Kind::State`] for a running container that may not be killed, [`Kind::Busy`] if a process does not die.
pub fn stop(root: &StateRoot, id: &ContainerId, how: Stop) -> Result<()> {
    let operation = || format!("stop container '{id}'");
    let force = how == Stop::Kill;
    let _lock = record::lock(root, id)?;
    let record = match Record::load(root, id) {
        Ok(record) => record,
        Err(error) if error.kind() == Kind::Damaged && force => {
            return record::salvage_cgroup(root, id)?.kill_all(LIMIT);
        }
        Err(error) => return Err(error),
    };
    match state::status(&record)? {
        Status::Stopped => {}
        // Its creator holds the lock as long as it lives, so it is dead.
        Status::Created | Status::Creating => {}
        status @ (Status::Running | Status::Paused) if !force => {
            let cause = format!("cannot delete a container that is not stopped: {status}");
            return Err(Error::new(Kind::State, operation(), cause).next("kill it first, or add --force"));
        }
        Status::Running | Status::Paused => kill::note(root, id, Signal::KILL)?,
    }
    if let Some(process) = record.init.as_ref().map(|init| init.open()).transpose()?.flatten() {
        record.cgroup.thaw()?;
        process.signal(Signal::KILL).context(operation)?;
        if !process.wait_end(LIMIT)? {
            return Err(Error::new(Kind::Busy, operation(), "its first process does not die"));
        }
        // Nobody else reaps it if it is our own child.
        process.reap()?;
    }
    match how {
        Stop::Kill | Stop::Ended => record.cgroup.kill_all(LIMIT).context(operation),
        Stop::EndedSparing => Ok(()),
    }
}

/// Takes a stopped container away: its cgroup, its state, and then its poststop hooks, whose failure is logged. `how`
/// is what it was stopped by.
///
/// # Errors
/// [`Kind::State`] if it is not stopped.
pub fn remove(root: &StateRoot, id: &ContainerId, how: Stop) -> Result<()> {
    let operation = || format!("delete container '{id}'");
    let lock = record::lock(root, id)?;
    let record = match Record::load(root, id) {
        Ok(record) => record,
        Err(error) if error.kind() == Kind::Damaged => {
            clear_cgroup(&record::salvage_cgroup(root, id)?).context(operation)?;
            return record::discard(root, id);
        }
        Err(error) => return Err(error),
    };
    match state::status(&record)? {
        Status::Stopped | Status::Creating => {}
        status @ (Status::Created | Status::Running | Status::Paused) => {
            let cause = format!("cannot delete a container that is not stopped: {status}");
            return Err(Error::new(Kind::State, operation(), cause));
        }
    }
    let survivors = how == Stop::EndedSparing && !record.cgroup.processes()?.is_empty();
    if !survivors {
        clear_cgroup(&record.cgroup).context(operation)?;
    }
    record::discard(root, id)?;
    drop(lock);
    let state = hook::State::of(&record, Status::Stopped, None);
    for hook in &record.poststop {
        if let Err(error) = hook::run("poststop", std::slice::from_ref(hook), &state, hook::on_host(&record, None)) {
            tracing::warn!("poststop hook of container '{id}': {error}");
        }
    }
    Ok(())
}

/// Empties and removes a container's cgroups. Nearly always they are empty, and the kernel says so faster than a look at
/// every list of processes.
pub(super) fn clear_cgroup(cgroup: &Cgroup) -> Result<()> {
    match cgroup.remove(Duration::ZERO) {
        Ok(()) => Ok(()),
        Err(_) => {
            cgroup.kill_all(LIMIT)?;
            cgroup.remove(LIMIT)
        }
    }
}
