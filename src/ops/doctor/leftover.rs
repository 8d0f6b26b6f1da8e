//! What crashes left: under the state root, in the mount table, in the store.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::error::{Result, quote};
use crate::ops::Place;
use crate::ops::load::MOUNT_POINT;
use crate::ring::Ring;
use crate::runtime::{Leftover, leftovers};
use crate::store::{Run, Store};
use crate::sys::mount_table;

pub(super) fn examine(place: &Place) -> Vec<Finding> {
    let containers = leftovers(&place.root).map(|found| found.iter().map(judge_container).collect::<Vec<_>>());
    let mounts = look_mounts(&place.root.path().join(MOUNT_POINT)).map(|found| judge_mounts(&found));
    let store = look_store(place).map(|found| judge_store(&found));
    [
        or_ok(containers, "containers", "none was left half-made, damaged or half-removed"),
        or_ok(mounts, "mounts", "no root file system was left attached"),
        or_ok(store, "store content", "nothing was left by a crash"),
    ]
    .concat()
}

/// What was found, or that there was nothing, or why that cannot be told.
fn or_ok(found: Result<Vec<Finding>>, subject: &str, text: &str) -> Vec<Finding> {
    match found {
        Ok(found) if found.is_empty() => vec![Finding::ok(subject, text)],
        Ok(found) => found,
        Err(error) => vec![Finding::unseen(subject, &error)],
    }
}

fn judge_container(found: &Leftover) -> Finding {
    match found {
        Leftover::HalfMade(id) => {
            let mend = format!("regen delete --force {id}");
            Finding::warn(format!("container {id}"), "whoever was making it is dead", mend)
        }
        Leftover::Damaged(id, error) => {
            Finding::warn(format!("container {id}"), error.without_next_step(), format!("regen delete --force {id}"))
        }
        Leftover::Trash(path) => {
            let text = format!("{} is of a container whose removal was cut short", quote(path));
            Finding::warn("containers", text, format!("rm -r {}", quote(path)))
        }
    }
}

/// The mounts below the place where root file systems are attached, which nobody but their makers should see.
fn look_mounts(place: &Path) -> Result<Vec<PathBuf>> {
    let table = mount_table::read()?;
    let points = mount_table::parse(&table).map(|mount| mount.point);
    Ok(points.filter(|point| point.starts_with(place)).collect())
}

fn judge_mounts(found: &[PathBuf]) -> Vec<Finding> {
    let judge = |point: &PathBuf| {
        let text = format!("a root file system is attached at {}", quote(point));
        Finding::warn("mounts", text, format!("umount {}", quote(point)))
    };
    found.iter().map(judge).collect()
}

/// What nobody will come back to.
#[derive(Debug, Default)]
struct Orphans {
    /// Runs without a living holder that no ring names.
    runs: usize,
    /// Half-made and half-removed layers.
    stages: usize,
}

fn look_store(place: &Place) -> Result<Orphans> {
    let Some(store) = Store::open_existing(&place.store)? else { return Ok(Orphans::default()) };
    // Rings that cannot be read have a finding of their own.
    let states = Ring::list(&store)?.into_iter().filter_map(|ring| ring.read().ok());
    let named: HashSet<_> = states.flat_map(|state| state.runs().cloned().collect::<Vec<_>>()).collect();
    let mut orphans = Orphans { stages: store.layers().abandoned()?.len(), ..Orphans::default() };
    for id in Run::list(&store)?.into_iter().filter(|id| !named.contains(id)) {
        let alive = match Run::load(&store, &id)? {
            // A mount outlives who made it; one that is gone is forgotten by the next worker.
            Some(run) => run.record.mounted_at.is_some() || run.record.living_holder()?.is_some(),
            None => false,
        };
        // The one that ended just now is gone on the second look.
        orphans.runs += usize::from(!alive && store.runs().join(id.as_str()).exists());
    }
    Ok(orphans)
}

fn judge_store(found: &Orphans) -> Vec<Finding> {
    let Orphans { runs, stages } = found;
    let mut parts = Vec::new();
    if *runs > 0 {
        parts.push(format!("{runs} runs whose container is dead"));
    }
    if *stages > 0 {
        parts.push(format!("{stages} layers that were never finished"));
    }
    if parts.is_empty() {
        return Vec::new();
    }
    vec![Finding::warn("store content", format!("there are {}", parts.join(" and ")), "regen ring recover")]
}
