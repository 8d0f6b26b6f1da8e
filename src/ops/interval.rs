//! Snapshots by themselves: every so often an entry of a container that goes on, where it changed anything since.
//!
//! ```text
//! create ──> a process of its own ── waits ── snapshot ── waits ── … ──> the container ends, and so does it
//! ```
//!
//! Whoever created the container ends soon, and an engine may be replaced while its containers live: so this is nobody's child,
//! in none of the container's cgroups, and holds nothing but a handle to the container's first process. What fails is tried
//! again the next time.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use chrono::Utc;

use super::request::RingRequest;
use super::snapshot::{self, Scope, Taken};
use super::{Place, worker};
use crate::cgroup::Cgroup;
use crate::error::{Context, Kind, Result};
use crate::ids::{LayerId, RingName};
use crate::ring::Ring;
use crate::ring::entry::timestamp;
use crate::store::{Run, Store};
use crate::sys::channel::Channel;
use crate::sys::detach::spawn_self_with;
use crate::sys::exe;

/// The verb that such a process is started with.
pub const VERB: &str = "snapshots";
/// What failed is not tried again before so many times as long as it took: a container may have stood still meanwhile.
const AFTER_FAILURE: u32 = 20;
/// A snapshot that fails as its container ends has not failed.
const ENDING: Duration = Duration::from_secs(1);

/// Starts the process for a container that was created, whose run says who it is, if it asked for that.
///
/// # Errors
/// [`Kind::Unsupported`] for a container of which there could never be a snapshot; those of fork and exec.
pub(super) fn start(place: &Place, request: Option<&RingRequest>, (run, cgroup): (&Run, &Cgroup)) -> Result<()> {
    let every = request.and_then(|request| request.snapshot_every);
    let (Some(ring), Some(every)) = (&run.record.ring, every) else { return Ok(()) };
    cgroup.check_freezer().map_err(|error| {
        let operation = format!("make snapshots of container '{}' by themselves", run.record.container);
        error.during(operation).next("ask for none, or let regen make cgroups: see docs/oci.md")
    })?;
    let mut arguments: Vec<OsString> = vec!["--store".into(), place.store.clone().into()];
    if let Some(file) = &place.config_file {
        arguments.extend(["--config".into(), file.clone().into()]);
    }
    arguments.extend([VERB.into(), ring.to_string().into(), run.id().to_string().into()]);
    arguments.push(every.duration().as_millis().to_string().into());
    // It does not look at the end of whoever started it.
    let (_ours, theirs) = Channel::pair()?;
    spawn_self_with(theirs, &arguments).context(|| "start what makes the snapshots")
}

/// What the process does.
///
/// # Errors
/// Those of finding the container; what a snapshot failed at is left in the store instead.
pub fn keep(place: &Place, ring: &RingName, run: &LayerId, every: Duration) -> Result<()> {
    worker::leave_cgroups();
    let Some(store) = Store::open_existing(&place.store)? else { return Ok(()) };
    let Some(found) = Run::load(&store, run)? else { return Ok(()) };
    let container = found.record.holders.first().map(|holder| holder.open()).transpose()?.flatten();
    let Some(container) = container else { return Ok(()) };
    drop(found);
    exe::forget_code();
    let (mut begun, mut pause) = (Instant::now(), every);
    while !container.wait_end(pause.saturating_sub(begun.elapsed()))? {
        begun = Instant::now();
        let made = snapshot(place, &store, ring, run);
        pause = every;
        if let Err(error) = made {
            pause = every.max(begun.elapsed() * AFTER_FAILURE);
            if container.wait_end(ENDING)? {
                break;
            }
            // Where the disk is full not even the note can be left; the next snapshot is tried all the same.
            let _ = store.note_failure(&format!("{} {error}\n", timestamp(Utc::now())));
        }
    }
    Ok(())
}

/// Makes one, if the run still has the ring: one that gave it to a successor may get it back.
fn snapshot(place: &Place, store: &Store, ring: &RingName, run: &LayerId) -> Result<()> {
    let ring = match Ring::open(store, ring) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        ring => ring?,
    };
    if ring.read()?.run.as_ref() != Some(run) {
        return Ok(());
    }
    match snapshot::take(place, &ring, Scope::Files, &mut || Ok(()))? {
        Taken::Entry(_) => worker::start_apart(place),
        Taken::Unchanged(_) => Ok(()),
    }
}
