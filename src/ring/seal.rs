//! The seal: an upper that nobody can write any more becomes the newest entry's layer.
//!
//! ```text
//!  run ends ──> held? ──yes──> the run stays the ring's run; whoever comes next tries again
//!                 │no
//!              changed? ──no──> run removed, no entry
//!                 │yes
//!          journal in ring.json ──> upper renamed into the layers ──> entry in ring.json
//! ```
//!
//! A run beside the main line is sealed in the same way; its entry stands beside the main line too, and moves nothing. One
//! that gave the ring away and that nobody ever followed is still the last of the main line.
//!
//! What is left of a sealed run is collected by the worker: nobody who waits for the end of a container waits for that.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chrono::Utc;

use super::entry::{Ending, Entry, Outcome, Reason, tag};
use super::holder::{self, Holder};
use super::side::{Line, changed_after};
use super::state::Journal;
use super::{Locked, Ring, fold, slot};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::LayerId;
use crate::overlay::{self, Fate, Upper};
use crate::pack;
use crate::store::{Run, RunRecord, Store, Volume};
use crate::sys::process::boot_id;

/// The kernel takes mounts of a dead namespace down a little after its last process is reaped. How long to wait for
/// that before processes are looked for that hold the upper.
const TEARDOWN: Duration = Duration::from_millis(128);

/// How long to wait where none is found: forgetting the files of a large upper takes the kernel tens of milliseconds for
/// every 10,000 of them. Engines give a clean-up five seconds.
const LONG_TEARDOWN: Duration = Duration::from_secs(2);

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// What became of a run's upper.
#[derive(Debug)]
pub enum Sealing {
    /// It is this entry now.
    Sealed(Box<Entry>),
    /// Nothing had changed; no entry was added.
    Unchanged,
    /// Somebody can still write into it; it stays where it is until they are gone.
    Held(Vec<Holder>),
    /// The ring is not held by this run: somebody sealed it already.
    NotHeldByRun,
}

impl Ring {
    /// Seals what a run left.
    ///
    /// # Errors
    /// Those of looking at the upper and of writing; a started seal is finished by whoever locks the ring next.
    pub fn seal(&self, run: &Run, ending: Ending) -> Result<Sealing> {
        let mut locked = self.lock()?;
        let outcome = Outcome::of(ending, run.record.started, Utc::now());
        let end = End { reason: Reason::Exit, exit_code: ending.exit_code, outcome };
        seal(&mut locked, run, end).context(|| format!("seal ring '{}'", self.name()))
    }
}

/// Seals what a dead run left, of whose end nobody tells.
pub(super) fn recover(locked: &mut Locked, run: &Run) -> Result<Sealing> {
    let end = End { reason: Reason::Recovered, exit_code: None, outcome: Outcome::Unknown };
    let sealing = seal(locked, run, end)?;
    if !matches!(sealing, Sealing::Held(_)) {
        run.record.cgroups.iter().for_each(|directory| remove_cgroup(directory));
    }
    Ok(sealing)
}

/// Removes an empty cgroup that nobody else will: its container's `delete` never came, or spared what lived in it.
pub(super) fn remove_cgroup(directory: &Path) {
    let children = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroup(&child.path());
    }
    // It may be gone already; one that is in use again is not ours any more.
    let _ = std::fs::remove_dir(directory);
}

/// What a new entry says of its run.
pub(super) struct End {
    pub(super) reason: Reason,
    pub(super) exit_code: Option<i32>,
    pub(super) outcome: Outcome,
}

fn seal(locked: &mut Locked, run: &Run, end: End) -> Result<Sealing> {
    let Some(line) = locked.state.line_of(run.id()) else { return Ok(Sealing::NotHeldByRun) };
    if let Some(holders) = find_holders(run)? {
        return Ok(Sealing::Held(holders));
    }
    if line == Line::Main {
        locked.state.last_exit = Some(Utc::now());
    }
    let has_changes = has_changes(&locked.ring().store, run)?;
    if !has_changes || !changed_after(locked, run)? {
        // Processes come back once; those of a container that never came to be, with the next one.
        if line == Line::Main && run.record.revives.is_some() && run.record.device.is_some() {
            locked.state.revive = false;
        }
        locked.state.forget_run(run.id());
        locked.commit_claim()?;
        // All that a snapshot has is in there, too; whoever comes next waits for the ring's lock.
        if has_changes {
            run.throw_away()?
        } else {
            run.remove()?
        }
        return Ok(Sealing::Unchanged);
    }
    let mut entry = new_entry(locked, run, run.id(), &end)?;
    entry.side = line == Line::Side;
    begin(locked, run, &entry)?;
    finish(locked)?;
    Ok(Sealing::Sealed(Box::new(entry)))
}

/// The next entry: what `run` stands on, and over it the layer that the upper of `top` is to become.
pub(super) fn new_entry(locked: &Locked, run: &Run, top: &LayerId, end: &End) -> Result<Entry> {
    let (state, record) = (&locked.state, &run.record);
    let (now, seq) = (Utc::now(), state.last_seq + 1);
    let created = state.entries.last().map_or(now, |newest| newest.created.max(now));
    let mut layers = record.layers.clone();
    fold::rewrite_chain(state, &mut layers);
    layers.push(top.clone());
    Ok(Entry {
        seq,
        id: tag(created, seq),
        parent: record.parent,
        created,
        reason: end.reason,
        exit_code: end.exit_code,
        outcome: end.outcome,
        synced: false,
        boot_id: boot_id()?,
        base: record.base.clone(),
        class: record.class,
        id_map: record.id_map.clone(),
        layers,
        pinned: false,
        side: false,
        forked_from: None,
        volumes: record.volumes.iter().map(|volume| (volume.place.clone(), volume.fingerprint.clone())).collect(),
        memory_bytes: None,
        manifest: None,
    })
}

/// Writes into the journal that there is to be this entry of a run.
pub(super) fn begin(locked: &mut Locked, run: &Run, entry: &Entry) -> Result<()> {
    locked.state.bases.insert(entry.base.clone(), run.record.base_lasting.clone());
    locked.state.journal = Some(Journal { entry: entry.clone() });
    locked.commit()
}

/// Finishes a seal or a snapshot that has a journal. Each step can be done again.
pub(super) fn finish(locked: &mut Locked) -> Result<()> {
    let Some(Journal { entry }) = locked.state.journal.clone() else { return Ok(()) };
    let store = locked.ring().store.clone();
    let operation = || format!("finish entry @{} of ring '{}'", entry.seq, locked.ring().name());
    let id = entry.layers.last().ok_or_else(|| Error::new(Kind::Damaged, operation(), "the journal names no layer"))?;
    let upper = store.runs().join(id.as_str()).join("upper");
    if upper.is_dir() {
        store.layers().adopt(id, &upper).context(operation)?;
    } else if !store.layers().has(id) {
        return Err(Error::new(Kind::Damaged, operation(), format!("layer {id} is neither a run's nor sealed"))
            .next("put the store back from a backup"));
    }
    let held = locked.parents_but(id)?;
    let state = &mut locked.state;
    state.forget_run(id);
    let replaced = |newest: &&Entry| slot::replaces(newest, &entry) && !held.contains(&newest.seq);
    if let Some(seq) = state.newest().filter(replaced).map(|newest| newest.seq) {
        state.entries.retain(|entry| entry.seq != seq);
    }
    state.last_seq = entry.seq;
    if !entry.side {
        state.set_next(Some(entry.seq));
    }
    state.journal = None;
    state.entries.push(entry);
    locked.commit()
}

/// Who can still write into the upper; `None` if nobody can.
pub(super) fn find_holders(run: &Run) -> Result<Option<Vec<Holder>>> {
    let began = Instant::now();
    let mut limit = TEARDOWN;
    let mut pause = Duration::from_micros(500);
    while is_held(run)? {
        if began.elapsed() >= limit {
            let members = holder::in_cgroups(&run.record.cgroups);
            let holders = if members.is_empty() { holder::of_mount(run) } else { members };
            if !holders.is_empty() || limit == LONG_TEARDOWN {
                return Ok(Some(holders));
            }
            limit = LONG_TEARDOWN;
        }
        sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(None)
}

/// Whether anybody can still write into the upper, now. Nobody can into one that somebody has removed meanwhile, or made a
/// layer of.
pub(super) fn is_held(run: &Run) -> Result<bool> {
    match try_hold(run) {
        Err(_) if run.is_over() => Ok(false),
        held => held,
    }
}

fn try_hold(run: &Run) -> Result<bool> {
    if !holder::in_cgroups(&run.record.cgroups).is_empty() {
        return Ok(true);
    }
    let work = match run.record.ring {
        Some(_) => run.work(),
        // The kernel has marked the work directory of what is thrown away, and mounts it no more.
        None => run.trial()?,
    };
    let lower = run.trial_lower()?;
    let upper = Upper { directory: run.upper(), work, fate: Fate::Kept };
    if overlay::is_held(&upper, &lower, run.record.class)? {
        return Ok(true);
    }
    for (index, volume) in run.record.volumes.iter().enumerate() {
        let directory = run.upper().join(volume.inside());
        let work = match run.record.ring {
            Some(_) => run.volume_work(index),
            None => run.trial()?,
        };
        // A run that was cut short before it had them has nothing in them.
        let is_there = directory.is_dir() && work.is_dir();
        if is_there && overlay::is_held(&Upper { directory, work, fate: Fate::Kept }, &lower, run.record.class)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the container itself changed anything, as opposed to the stubs under its mounts.
pub(super) fn has_changes(store: &Store, run: &Run) -> Result<bool> {
    let RunRecord { mount_points, class, volumes, .. } = &run.record;
    let lowers = run.record.lowers(store);
    let lowers: Vec<&Path> = lowers.iter().map(AsRef::as_ref).collect();
    let covers = |path: &Path| lowers.iter().any(|lower| lower.join(path).symlink_metadata().is_ok());
    let ignore = |path: &Path, metadata: &std::fs::Metadata| {
        // What is a change of a directory that was there is nobody's stub.
        (is_stub(mount_points, path, metadata) && !(metadata.is_dir() && covers(path)))
            || volumes.iter().any(|volume| is_prepared(volume, &lowers, path, metadata))
    };
    pack::has_changes_over(&run.upper(), *class, &lowers, &ignore)
}

/// Whether `path` (relative to the root) is what a runtime makes to mount something on: an empty file or a directory
/// at a mount point, or a directory on the way to one.
fn is_stub(mount_points: &[std::path::PathBuf], path: &Path, metadata: &std::fs::Metadata) -> bool {
    let empty = metadata.is_dir() || (metadata.is_file() && metadata.len() == 0);
    empty
        && mount_points.iter().any(|point| {
            let point = point.strip_prefix("/").unwrap_or(point);
            if metadata.is_dir() { point.starts_with(path) } else { point == path }
        })
}

/// Whether a directory is that of a volume, or on the way to one, and looks as it did when it was made for the run.
fn is_prepared(volume: &Volume, lowers: &[&Path], path: &Path, metadata: &std::fs::Metadata) -> bool {
    if !metadata.is_dir() || !volume.inside().starts_with(path) {
        return false;
    }
    let shown = lowers.iter().find_map(|lower| lower.join(path).symlink_metadata().ok().filter(Metadata::is_dir));
    let source = volume.source.metadata().ok().filter(|_| volume.inside() == path);
    let looks = |metadata: &Metadata| (metadata.mode(), metadata.uid(), metadata.gid());
    // Where nothing was, it was made as directories are made.
    let candidates: Vec<_> = [shown, source].into_iter().flatten().collect();
    candidates.is_empty() || candidates.iter().any(|like| looks(like) == looks(metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_things_at_or_above_mount_points_are_stubs() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        let full = directory.path().join("full");
        std::fs::write(&empty, "").unwrap();
        std::fs::write(&full, "x").unwrap();
        let points = ["/etc/hosts".into(), "/run/secrets/a".into()];
        let stub = |path: &str, real: &Path| is_stub(&points, Path::new(path), &real.metadata().unwrap());
        assert!(stub("etc/hosts", &empty));
        assert!(!stub("etc/hosts", &full));
        assert!(!stub("etc/passwd", &empty));
        assert!(stub("run/secrets", directory.path()));
        assert!(!stub("run/other", directory.path()));
    }
}
