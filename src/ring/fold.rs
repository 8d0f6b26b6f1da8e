//! The fold: layers at which no kept entry ends are merged into the one above, so that a chain stays short however
//! many runs a ring has seen. Directories only: packs and manifests stay as they are.
//!
//! The old directories stay as long as a running container is mounted on them; when its upper is sealed, its chain is
//! rewritten to the merged ones.

use super::entry::Entry;
use super::merge::merge;
use super::state::{LayerRecord, RingState};
use super::view::View;
use super::{Locked, Ring};
use crate::error::{Context, Result};
use crate::ids::LayerId;
use crate::sys::fs::{disk_usage, random_id, sync_file_system};
use std::collections::HashMap;

/// So many layers have to be mergeable before it is done: the cost is then shared by as many runs.
const WORTHWHILE: usize = 8;

/// So many are merged even where nobody knows what they stand on: the kernel stacks 500.
const LONG: usize = 200;

/// Neighbouring layers that can be one, lowest first.
type Group = Vec<LayerId>;

impl Ring {
    /// Merges what can be merged, if it is worth it.
    ///
    /// # Errors
    /// Those of reading and linking; nothing refers to what was made until all of it is there.
    pub fn fold(&self) -> Result<()> {
        for group in plan_fold(&self.read()?) {
            self.fold_group(&group).context(|| format!("fold {} layers of ring '{}'", group.len(), self.name()))?;
        }
        Ok(())
    }

    fn fold_group(&self, group: &[LayerId]) -> Result<()> {
        let layers = self.store().layers();
        if !group.iter().all(|id| layers.has(id)) {
            return Ok(());
        }
        // Only what lies below says which whiteouts are still needed; without that, a chain that grows is the worse evil.
        let below = self.lock()?.below(group)?;
        if below.is_none() && group.len() < LONG {
            return Ok(());
        }
        let below = below.as_ref().map(View::root);
        let directories: Vec<_> = group.iter().map(|id| layers.content(id)).collect();
        let stage = merge(&layers, &directories, self.store().class(), below.as_deref())?;
        // A power cut may lose it, which the packs make good; one that was torn would be used.
        sync_file_system(stage.directory())?;
        let disk_bytes = disk_usage(stage.directory())?;
        let mut locked = self.lock()?;
        // An eviction meanwhile has made more mergeable: the next call does it.
        if !plan_fold(&locked.state).iter().any(|planned| planned == group) {
            return Ok(());
        }
        let merged = LayerId::from_random(random_id()?);
        let records: Vec<_> = group.iter().filter_map(|id| locked.state.layers.get(id)).collect();
        let packs = records.iter().flat_map(|record| record.packs.clone()).collect();
        let folded = records.iter().flat_map(|record| record.folded_from.clone()).chain(group.iter().cloned());
        let record = LayerRecord { disk_bytes, packs, folded_from: folded.collect() };
        layers.adopt(&merged, stage.directory())?;
        if locked.state.runs().next().is_none() {
            // Nobody stands on older ones any more.
            locked.state.layers.values_mut().for_each(|record| record.folded_from.clear());
        }
        locked.state.layers.insert(merged.clone(), record);
        for entry in &mut locked.state.entries {
            replace_group(&mut entry.layers, group, &merged);
        }
        locked.state.forget_unused_layers();
        locked.commit()
    }
}

impl Locked {
    /// What a group of layers stands on; `None` if it is not the same everywhere, or not all there.
    pub(super) fn below(&self, group: &[LayerId]) -> Result<Option<View>> {
        let chain_below = |entry: &Entry| {
            let start = entry.layers.iter().position(|layer| group.first() == Some(layer))?;
            Some((entry.layers[..start].to_vec(), entry.base.clone()))
        };
        let mut places = self.state.entries.iter().filter_map(chain_below);
        let Some((chain, base)) = places.next() else { return Ok(None) };
        if places.any(|other| other != (chain.clone(), base.clone())) {
            return Ok(None);
        }
        let Some(base) = self.state.base_directories(&base) else { return Ok(None) };
        let layers = self.ring().store().layers();
        if !chain.iter().all(|id| layers.has(id)) {
            return Ok(None);
        }
        self.stack(&chain, base, "what is folded").map(Some)
    }
}

/// Groups of layers that always stand together and at whose inner ends no entry ends.
fn plan_fold(state: &RingState) -> Vec<Group> {
    let mut after: HashMap<&LayerId, Option<&LayerId>> = HashMap::new();
    let mut before: HashMap<&LayerId, Option<&LayerId>> = HashMap::new();
    let mut branching = std::collections::HashSet::new();
    for Entry { layers, .. } in &state.entries {
        for (index, layer) in layers.iter().enumerate() {
            let next = layers.get(index + 1);
            let previous = index.checked_sub(1).and_then(|index| layers.get(index));
            if *after.entry(layer).or_insert(next) != next {
                branching.insert(("after", layer));
            }
            if *before.entry(layer).or_insert(previous) != previous {
                branching.insert(("before", layer));
            }
        }
    }
    let packed = |layer: &LayerId| state.layers.contains_key(layer);
    let joins = |lower: &LayerId, upper: &LayerId| {
        let branches = branching
            .iter()
            .any(|(side, layer)| (*side == "after" && *layer == lower) || (*side == "before" && *layer == upper));
        !branches && packed(lower) && packed(upper)
    };
    let mut groups: Vec<Group> = Vec::new();
    for Entry { layers, .. } in &state.entries {
        let mut group: Group = Vec::new();
        for layer in layers {
            match group.last() {
                Some(last) if joins(last, layer) => group.push(layer.clone()),
                _ => finish_group(&mut groups, std::mem::replace(&mut group, vec![layer.clone()])),
            }
        }
        finish_group(&mut groups, group);
    }
    groups
}

fn finish_group(groups: &mut Vec<Group>, group: Group) {
    if group.len() > WORTHWHILE && !groups.contains(&group) {
        groups.push(group);
    }
}

/// Puts `merged` where `group` stands in a chain.
fn replace_group(chain: &mut Vec<LayerId>, group: &[LayerId], merged: &LayerId) {
    if let Some(start) = chain.windows(group.len()).position(|window| window == group) {
        chain.splice(start..start + group.len(), [merged.clone()]);
    }
}

/// A chain as it was when a run began, with what was folded meanwhile.
pub(super) fn rewrite_chain(state: &RingState, chain: &mut Vec<LayerId>) {
    let mut merged: Vec<_> = state.layers.iter().filter(|(_, record)| !record.folded_from.is_empty()).collect();
    // The longest first: a fold of folds lists what both were made from.
    merged.sort_by_key(|(_, record)| std::cmp::Reverse(record.folded_from.len()));
    for (id, record) in merged {
        let part_of = |layer: &LayerId| record.folded_from.contains(layer);
        let Some(start) = chain.iter().position(part_of) else { continue };
        let length = chain[start..].iter().take_while(|layer| part_of(layer)).count();
        chain.splice(start..start + length, [id.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::super::slot::Limits;
    use super::*;

    fn packed(state: &mut RingState) {
        for layer in state.entries.iter().flat_map(|entry| entry.layers.clone()).collect::<Vec<_>>() {
            state.layers.insert(layer, LayerRecord { disk_bytes: 1, packs: Vec::new(), folded_from: Vec::new() });
        }
    }

    #[test]
    fn layers_below_the_oldest_entry_are_one_group_with_its_own() {
        let mut state = RingState::new(Limits { depth: 2, max_bytes: None });
        state.entries = vec![entry(20, Outcome::Good), entry(21, Outcome::Good)];
        assert!(plan_fold(&state).is_empty(), "sealed layers are not folded");
        packed(&mut state);
        let groups = plan_fold(&state);
        assert_eq!(groups, [state.entries[0].layers.clone()]);
    }

    #[test]
    fn a_chain_from_before_the_fold_is_rewritten() {
        let mut state = RingState::new(Limits { depth: 2, max_bytes: None });
        let old = entry(20, Outcome::Good).layers;
        let merged: LayerId = "ab".repeat(16).parse().unwrap();
        let record = LayerRecord { disk_bytes: 1, packs: Vec::new(), folded_from: old[..19].to_vec() };
        state.layers.insert(merged.clone(), record);
        let mut chain = old.clone();
        rewrite_chain(&state, &mut chain);
        assert_eq!(chain, [merged, old[19].clone()]);
    }
}
