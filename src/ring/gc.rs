//! Collection: what no ring, run or image names any more.

use std::collections::HashSet;
use std::fs;

use super::Ring;
use super::state::RingState;
use crate::error::{Error, Kind, Result, quote};
use crate::ids::LayerId;
use crate::store::{Run, Store};

/// Removes runs, layers and temporary files that nothing needs. Images' layers stay: they are asked for by digest.
///
/// # Errors
/// If any ring cannot be read, nothing is collected: what it names would be taken for garbage.
pub fn collect(store: &Store) -> Result<()> {
    sweep_runs(store)?;
    // Before the roots are read: see the store's rule.
    let layers: Vec<_> = store.layers().list()?.into_iter().filter(|id| !id.is_image()).collect();
    let needed = roots(store)?;
    for layer in layers.iter().filter(|layer| !needed.contains(layer)) {
        store.layers().remove(layer)?;
    }
    store.layers().sweep()?;
    Ring::sweep(store)
}

/// Whether somebody died over a run that belongs to no ring. Where there are no rings, nobody else asks for a worker.
///
/// # Errors
/// Those of reading the runs and /proc.
pub fn finds_dead_scratch(store: &Store) -> Result<bool> {
    for id in Run::list(store)? {
        if let Some(run) = Run::load(store, &id)?
            && run.record.ring.is_none()
            && run.record.mounted_at.is_none()
            && run.record.living_holder()?.is_none()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every layer that something names.
fn roots(store: &Store) -> Result<HashSet<LayerId>> {
    let mut needed = HashSet::new();
    for ring in Ring::list(store)? {
        let state = ring.read()?;
        needed.extend(named_by(&state));
    }
    for id in Run::list(store)? {
        if let Some(run) = Run::load(store, &id)? {
            needed.extend(run.record.layers);
        }
    }
    Ok(needed)
}

fn named_by(state: &RingState) -> impl Iterator<Item = LayerId> {
    let journal = state.journal.iter().map(|journal| &journal.entry);
    state.entries.iter().chain(journal).flat_map(|entry| entry.layers.clone())
}

/// Removes runs that no ring names and that nobody lives on.
fn sweep_runs(store: &Store) -> Result<()> {
    // Nobody claims a ring while this is held, so a run that no ring names will not be named later.
    let lock = store.lock_for_collection()?;
    let mut named = HashSet::new();
    for ring in Ring::list(store)? {
        let state = ring.read()?;
        named.extend(state.runs().cloned());
        named.extend(state.journal.and_then(|journal| journal.entry.layers.last().cloned()));
    }
    let mut dead = Vec::new();
    for id in Run::list(store)?.into_iter().filter(|id| !named.contains(id)) {
        match Run::load(store, &id)? {
            // Cut short before its record was written, or while it was removed.
            None => dead.push(store.runs().join(id.as_str())),
            // Whoever sealed it had no time to clear up.
            Some(run) if run.is_over() => dead.push(store.runs().join(id.as_str())),
            Some(run) if run.record.living_holder()?.is_none() && !super::seal::is_held(&run)? => {
                dead.push(store.runs().join(id.as_str()));
            }
            Some(_) => {}
        }
    }
    drop(lock);
    dead.iter().try_for_each(|directory| match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new(Kind::System, format!("remove {}", quote(directory)), error.to_string()))
        }
        _ => Ok(()),
    })
}
