//! Kill: a signal to a container, and the note that somebody sent one.

use std::fs;

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::Record;
use crate::runtime::{StateRoot, Status, state};
use crate::sys::fs::{Durability, replace_file};
use crate::sys::signal::Signal;

const MARKER: &str = "stop-requested";

/// Sends a signal to a container's program, or with `all` to every process in its cgroup.
///
/// # Errors
/// [`Kind::State`] with the words "container not running" if there is nobody to send it to.
pub fn kill(root: &StateRoot, id: &ContainerId, signal: Signal, all: bool) -> Result<()> {
    let operation = || format!("kill container '{id}'");
    let not_running = || Error::new(Kind::State, operation(), "container not running");
    let record = Record::load(root, id)?;
    let status = state::status(&record)?;
    let alive = match status {
        Status::Created | Status::Running | Status::Paused => true,
        Status::Creating | Status::Stopped => false,
    };
    if !alive && !all {
        return Err(not_running());
    }
    if signal.number() != 0 && alive {
        note(root, id, signal)?;
    }
    if all {
        record.cgroup.signal_all(signal).context(operation)?;
    } else {
        // What ends everything is for the first process; the rest is the program's own affair.
        let target = record.program.as_ref().filter(|_| signal != Signal::KILL).map_or_else(|| record.init(), Ok)?;
        let process = target.open()?.ok_or_else(not_running)?;
        if !process.signal(signal).context(operation)? {
            return Err(not_running());
        }
    }
    // A frozen process of version 1 dies only once it is thawed.
    match (status, signal) {
        (Status::Paused, Signal::KILL) => record.cgroup.thaw().context(operation),
        _ => Ok(()),
    }
}

/// The last signal that somebody sent to the container on purpose: its end was then asked for.
///
/// # Errors
/// [`Kind::Damaged`] if the note is unreadable.
pub fn stop_requested(root: &StateRoot, id: &ContainerId) -> Result<Option<Signal>> {
    let operation = || format!("read whether container '{id}' was asked to stop");
    match fs::read_to_string(root.container(id).join(MARKER)) {
        Ok(text) => match text.trim().parse::<i32>().ok().and_then(Signal::from_number) {
            Some(signal) => Ok(Some(signal)),
            None => Err(Error::new(Kind::Damaged, operation(), "it is not a number")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(operation),
    }
}

/// Notes that a signal was sent on purpose.
pub(super) fn note(root: &StateRoot, id: &ContainerId, signal: Signal) -> Result<()> {
    let text = signal.number().to_string();
    // Two senders at once may take each other's temporary file away; the note of one of them is enough.
    match replace_file(&root.container(id), MARKER, text.as_bytes(), Durability::Volatile) {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}
