//! Collection: what no ring, run or image names any more.

use std::collections::HashSet;
use std::path::PathBuf;

use super::Ring;
use super::state::RingState;
use crate::error::{Kind, Result};
use crate::ids::LayerId;
use crate::store::transfer::KEPT;
use crate::store::{Run, Store};
use crate::sys::fs::remove_tree;

/// Removes runs, layers and temporary files that nothing needs. Images' layers stay: they are asked for by digest.
///
/// # Errors
/// If any ring cannot be read, nothing is collected: what it names would be taken for garbage.
pub fn collect(store: &Store) -> Result<()> {
    for directory in dead_runs(store)? {
        remove_tree(&directory)?;
    }
    for layer in unneeded_layers(store, &[], &[])? {
        store.layers().remove(&layer)?;
    }
    store.layers().sweep()?;
    store.transfers().sweep(KEPT)?;
    Ring::sweep(store)
}

/// The layers that runs left and that nothing names any more, once the runs in the directories `gone` are gone, and the rings
/// `without`.
pub(super) fn unneeded_layers(store: &Store, gone: &[PathBuf], without: &[Ring]) -> Result<Vec<LayerId>> {
    // Before the roots are read: see the store's rule.
    let mut layers: HashSet<_> = store.layers().list()?.into_iter().filter(|id| !id.is_image()).collect();
    // A fork names what its source names: whoever makes one is kept out for as long as both could be missed.
    let lock = store.lock_for_collection()?;
    let is_gone = |id: &LayerId| gone.contains(&store.runs().join(id.as_str()));
    for id in Run::list(store)?.into_iter().filter(|id| !is_gone(id)) {
        if let Some(run) = Run::load(store, &id)? {
            for layer in &run.record.layers {
                layers.remove(layer);
            }
        }
    }
    let goes = |ring: &Ring| without.iter().any(|other| other.name() == ring.name());
    let mut rings = Ring::each(store, |ring| if goes(ring) { Ok(None) } else { ring.read().map(Some) })?;
    // With thousands of forks the first few name all that there is.
    while !layers.is_empty()
        && let Some((_, state)) = rings.next()
    {
        for layer in state?.iter().flat_map(named_by) {
            layers.remove(layer);
        }
    }
    drop(lock);
    let mut layers: Vec<_> = layers.into_iter().collect();
    layers.sort_unstable();
    Ok(layers)
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

/// What a ring stands on.
fn named_by(state: &RingState) -> impl Iterator<Item = &LayerId> {
    let journal = state.journal.iter().map(|journal| &journal.entry);
    state.entries.iter().chain(journal).flat_map(|entry| &entry.layers)
}

/// The directories of runs that no ring names and that nobody lives on.
pub(super) fn dead_runs(store: &Store) -> Result<Vec<PathBuf>> {
    // Nobody claims a ring while this is held, so a run that no ring names will not be named later.
    let lock = store.lock_for_collection()?;
    let mut unnamed = Vec::new();
    for id in Run::list(store)? {
        let run = Run::load(store, &id)?;
        // One that cannot be loaded was cut short before its record was written, or while it was removed.
        let lives = match &run {
            Some(run) => !run.is_over() && run.record.living_holder()?.is_some(),
            None => false,
        };
        if !lives {
            unnamed.push((id, run));
        }
    }
    // Only where there is anything: in a store of many rings most of the time goes here.
    if !unnamed.is_empty() {
        let named = named_runs(store)?;
        unnamed.retain(|(id, _)| !named.contains(id));
    }
    let mut dead = Vec::new();
    for (id, run) in unnamed {
        let is_held = match &run {
            // Whoever sealed it had no time to clear up.
            Some(run) if run.is_over() => false,
            Some(run) => match super::seal::is_held(run) {
                // Where there is no room to ask, it waits until other things are gone.
                Err(error) if error.kind() == Kind::NoSpace => true,
                held => held?,
            },
            None => false,
        };
        if !is_held {
            dead.push(store.runs().join(id.as_str()));
        }
    }
    drop(lock);
    Ok(dead)
}

/// The runs that have a ring, are beside its main line, or are becoming an entry.
fn named_runs(store: &Store) -> Result<HashSet<LayerId>> {
    let mut named = HashSet::new();
    for (_, state) in Ring::each(store, Ring::read)? {
        let state = state?;
        named.extend(state.runs().cloned());
        named.extend(state.journal.and_then(|journal| journal.entry.layers.last().cloned()));
    }
    Ok(named)
}
