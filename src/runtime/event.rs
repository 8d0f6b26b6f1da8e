//! Events: what a container uses, from time to time, and when it ran out of memory.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use crate::cgroup::{Cgroup, Stats};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::Record;
use crate::runtime::{StateRoot, Status, state};
use crate::sys::alarm::Alarm;

/// Something that happened; serialized, it is a line of `runc events`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    /// The numbers of now.
    Stats {
        /// The container's id.
        id: ContainerId,
        /// The numbers.
        data: Box<Stats>,
    },
    /// It ran out of memory; mostly, a process was killed for it.
    Oom {
        /// The container's id.
        id: ContainerId,
    },
}

/// The numbers of a container.
///
/// # Errors
/// [`Kind::State`] if it has ended, [`Kind::Unsupported`] if it has no cgroup.
pub fn stats(root: &StateRoot, id: &ContainerId) -> Result<Event> {
    running(root, id)?.cgroup.stats().map(|data| Event::Stats { id: id.clone(), data: Box::new(data) })
}

/// Tells of a container until it stops: its numbers each time that the interval is over, and when it runs out of memory.
///
/// # Errors
/// As [`stats`]; those of `tell`.
pub fn watch(
    root: &StateRoot,
    id: &ContainerId,
    interval: Duration,
    mut tell: impl FnMut(&Event) -> Result<()>,
) -> Result<()> {
    let operation = || format!("watch container '{id}'");
    let record = running(root, id)?;
    let Some(process) = record.init()?.open()? else { return Err(not_running(id)) };
    let mut alarm = alarm(&record.cgroup);
    // Without a cgroup there is nothing to tell, now or later.
    record.cgroup.stats().context(operation)?;
    let mut due = Instant::now() + interval;
    loop {
        let ended = wait(&process, alarm.as_ref(), due).context(operation)?;
        for _ in 0..alarm.as_mut().map_or(Ok(0), Alarm::rings).context(operation)? {
            tell(&Event::Oom { id: id.clone() })?;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= due {
            match record.cgroup.stats() {
                Ok(data) => tell(&Event::Stats { id: id.clone(), data: Box::new(data) })?,
                // It may be going away at this moment; the next turn knows.
                Err(error) => tracing::warn!("{error}"),
            }
            due = Instant::now() + interval;
        }
    }
}

/// Whether the process has ended; returns as well when the alarm rings or the time has come.
fn wait(process: &impl std::os::fd::AsFd, alarm: Option<&Alarm>, due: Instant) -> std::io::Result<bool> {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut watched = vec![PollFd::new(process, PollFlags::IN)];
        watched.extend(alarm.map(|alarm| PollFd::new(alarm, PollFlags::IN)));
        match poll(&mut watched, Some(&timeout)) {
            Ok(_) => return Ok(!watched[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// None where memory is not counted.
fn alarm(cgroup: &Cgroup) -> Option<Alarm> {
    let made = match cgroup.unified() {
        Some(directory) => Alarm::version_2(directory),
        None => Alarm::version_1(cgroup.directory("memory")?),
    };
    made.inspect_err(|error| tracing::warn!("{error}")).ok()
}

fn running(root: &StateRoot, id: &ContainerId) -> Result<Record> {
    let record = Record::load(root, id)?;
    match state::status(&record)? {
        Status::Created | Status::Running | Status::Paused => Ok(record),
        Status::Creating | Status::Stopped => Err(not_running(id)),
    }
}

fn not_running(id: &ContainerId) -> Error {
    Error::new(Kind::State, format!("watch container '{id}'"), format!("container with id {id} is not running"))
}
