//! The worker: a process of its own that packs what was sealed, so that nobody waits for it.
//!
//! One works per store, and at most one waits to be the next; whoever finds both places taken may go, because the one
//! that waits has not looked yet and will see everything that was sealed before. A worker that dies leaves nothing
//! that the next one does not do again.

use std::ffi::OsString;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::seen::{self, Seen};
use super::{Place, function, quota, sender, tally};
use crate::error::{Context, Error, Result};
use crate::ids::RingName;
use crate::ring::{PackOptions, Progress, Ring, gc};
use crate::store::Store;
use crate::sys::channel::Channel;
use crate::sys::detach::{spawn_self, spawn_self_with};
use crate::sys::fs::{Durability, TEMPORARY_PREFIX, read_capped, replace_file};
use crate::sys::lock::{Lock, Sharing};
use crate::sys::mount_table;

/// The verb that a worker process is started with.
pub const VERB: &str = "worker";
const PROGRESS: &str = "worker.json";
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Which rings are looked at.
#[derive(Debug, Clone, Copy)]
enum Scope<'a> {
    /// Those of which anything has changed since a worker looked at them.
    Changed,
    /// All of them.
    All,
    /// This one.
    One(&'a RingName),
}

/// How far the worker is, for whoever watches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The ring it is at.
    pub ring: RingName,
    /// The entry.
    pub seq: u64,
    /// Bytes read of its layer.
    pub done: u64,
    /// About how many there are.
    pub total: u64,
}

/// Starts a worker process and returns at once.
///
/// # Errors
/// Those of fork and exec; what was sealed is then packed by a later worker.
pub fn start(place: &Place) -> Result<()> {
    spawn_self(&arguments(place, VERB))
}

/// The same for who has just made something for a worker to do: one that waits to be the next has not looked yet.
///
/// # Errors
/// As [`start`].
pub fn start_if_none_waits(place: &Place) -> Result<()> {
    let waits = match Store::open_existing(&place.store)? {
        Some(store) => Lock::try_take(&store.worker_next_lock(), Sharing::Shared)?.is_none(),
        None => false,
    };
    if waits { Ok(()) } else { start(place) }
}

/// The same for a process that lives on, and has nothing to reap then.
///
/// # Errors
/// As [`start`].
pub fn start_apart(place: &Place) -> Result<()> {
    // The worker does not look at its end.
    let (_ours, theirs) = Channel::pair()?;
    spawn_self_with(theirs, &arguments(place, VERB))
}

/// The command line of a process of ours that works in the background for a store.
pub(super) fn arguments(place: &Place, verb: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--store".into(), place.store.clone().into()];
    if let Some(file) = &place.config_file {
        arguments.extend(["--config".into(), file.clone().into()]);
    }
    arguments.push(verb.into());
    arguments
}

/// What the worker process does.
///
/// # Errors
/// The first failure; the other rings are packed all the same.
pub fn work(place: &Place) -> Result<()> {
    leave_cgroups();
    let Some(store) = Store::open_existing(&place.store)? else { return Ok(()) };
    let Some(next) = Lock::try_take(&store.worker_next_lock(), Sharing::Exclusive)? else { return Ok(()) };
    let lock = Lock::wait(&store.worker_lock(), Sharing::Exclusive)?;
    drop(next);
    let mut last = Instant::now();
    let mut report = |report: &Report| {
        if last.elapsed() >= PROGRESS_EVERY {
            last = Instant::now();
            // Only for people who watch; packing does not depend on it.
            let _ = write_report(&store, report);
        }
    };
    let result = pack_all(place, &store, Scope::Changed, &mut report);
    forget_report(&store);
    drop(lock);
    // What was packed is worth sending also where something else could not be.
    let started = sender::start_if_due(place, &store);
    result.and(started)
}

/// Packs in this process, after a worker that is already at it; one ring, or all of them.
///
/// # Errors
/// As [`work`].
pub fn pack_now(place: &Place, store: &Store, only: Option<&RingName>, report: &mut dyn FnMut(&Report)) -> Result<()> {
    let lock = loop {
        if let Some(lock) = Lock::try_take(&store.worker_lock(), Sharing::Exclusive)? {
            break lock;
        }
        if let Some(theirs) = read_report(store)? {
            report(&theirs);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let result = pack_all(place, store, only.map_or(Scope::All, Scope::One), report);
    drop(lock);
    result
}

/// Whether a worker is at work.
///
/// # Errors
/// Those of flock(2).
pub fn is_busy(store: &Store) -> Result<bool> {
    let free = |path: &Path| Lock::try_take(path, Sharing::Shared).map(|lock| lock.is_some());
    Ok(!free(&store.worker_lock())? || !free(&store.worker_next_lock())?)
}

/// The newest report of a working worker.
///
/// # Errors
/// Those of reading it; that there is none is no error.
pub fn read_report(store: &Store) -> Result<Option<Report>> {
    match read_capped(&store.directory().join(PROGRESS), 4096) {
        Ok(content) => Ok(serde_json::from_slice(&content).ok()),
        Err(error) if error.kind() == crate::error::Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_report(store: &Store, report: &Report) -> Result<()> {
    let text = serde_json::to_vec(report).context(|| "write the worker's progress")?;
    replace_file(store.directory(), PROGRESS, &text, Durability::Volatile)
}

/// A report that stays would be taken for the next worker's. Nothing depends on it, so nobody is told if it does.
fn forget_report(store: &Store) {
    for name in [PROGRESS.to_owned(), format!("{TEMPORARY_PREFIX}{PROGRESS}")] {
        let _ = fs::remove_file(store.directory().join(name));
    }
}

/// The caller has the worker lock.
fn pack_all(place: &Place, store: &Store, scope: Scope<'_>, report: &mut dyn FnMut(&Report)) -> Result<()> {
    forget_report(store);
    tally::sweep(store);
    seen::sweep(store);
    let mut first_failure = match scope {
        Scope::One(name) => pack_ring(place, &Ring::open(store, name)?, report).err(),
        Scope::Changed => pack_rings(place, store, Seen::load(store)?, report)?,
        Scope::All => pack_rings(place, store, Seen::nothing()?, report)?,
    };
    tally::save(store);
    if let Err(error) = quota::keep(place, store) {
        first_failure.get_or_insert(error);
    }
    let collected = gc::collect(store).and_then(|()| function::collect(store));
    match (first_failure, scope) {
        (Some(error), _) => Err(error),
        (None, Scope::Changed | Scope::All) => collected,
        // Another ring that cannot be read keeps its layers from being collected; this one is packed all the same.
        (None, Scope::One(_)) => collected.or_else(|error| {
            tracing::warn!("collect: {error}");
            Ok(())
        }),
    }
}

/// Packs all rings but those that were seen to need nothing; gives the first failure.
fn pack_rings(place: &Place, store: &Store, mut seen: Seen, report: &mut dyn FnMut(&Report)) -> Result<Option<Error>> {
    let rings = Ring::list(store)?;
    let mut first_failure = None;
    for ring in &rings {
        let before = seen::look(ring);
        if before.is_some_and(|now| seen.has(ring, &now)) {
            continue;
        }
        match ring.unless_gone(|ring| pack_ring(place, ring, report)) {
            None | Some(Ok(())) => seen.note(ring, before),
            Some(Err(error)) => {
                seen.note(ring, None);
                first_failure.get_or_insert(error);
            }
        }
        tally::save(store);
    }
    // Without it the next worker looks at all of them.
    if let Err(error) = seen.save(store, &rings) {
        tracing::debug!("{error}");
    }
    Ok(first_failure)
}

fn pack_ring(place: &Place, ring: &Ring, report: &mut dyn FnMut(&Report)) -> Result<()> {
    let floor = place.config.store.min_free;
    let name = ring.name().clone();
    let mut progress = |Progress { seq, done, total }: Progress| {
        report(&Report { ring: name.clone(), seq, done, total });
    };
    let mut options = PackOptions { floor: &|total| floor.bytes(total), progress: &mut progress };
    ring.pack(&mut options)?;
    ring.fold()?;
    ring.repack(&mut options)
}

/// What was made good, and what could not be; a line for each.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Entries that were adopted.
    pub done: Vec<String>,
    /// Rings that stay as they are.
    pub failures: Vec<String>,
}

/// Adopts what crashes left in every ring, repairs their indexes and collects what nothing needs.
///
/// # Errors
/// Those of reading the store.
pub fn recover(store: &Store) -> Result<Recovery> {
    let _lock = Lock::wait(&store.worker_lock(), Sharing::Exclusive)?;
    let mut recovery = Recovery::default();
    for (ring, adopted) in Ring::each(store, recover_ring)? {
        match adopted {
            Ok(adopted) => {
                recovery.done.extend(adopted.map(|seq| format!("{}: adopted entry @{seq}", ring.name())));
            }
            Err(error) => recovery.failures.push(error.to_string()),
        }
    }
    gc::collect(store)?;
    function::collect(store)?;
    Ok(recovery)
}

/// The numbers of the entries that were adopted.
fn recover_ring(ring: &Ring) -> Result<RangeInclusive<u64>> {
    let before = ring.read()?.last_seq;
    let mut locked = ring.lock()?;
    locked.settle_dead("recover")?;
    locked.repair_index()?;
    Ok(before + 1..=locked.state.last_seq)
}

/// A worker must not die with the container's cgroup, nor keep it from being removed: it moves to the root of every
/// hierarchy. Where it may not, it stays, and is resumed if it is killed. Whether it is nowhere in the way.
pub(super) fn leave_cgroups() -> bool {
    let table = mount_table::read().unwrap_or_default();
    let mut left = true;
    for mount in mount_table::parse(&table).filter(|mount| mount.kind.starts_with("cgroup")) {
        left &= fs::write(mount.point.join("cgroup.procs"), "0").is_ok();
    }
    left
}
