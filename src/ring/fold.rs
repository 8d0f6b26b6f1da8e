//! The fold: layers at which no kept entry ends are merged, so that a chain stays short and holds little that nobody sees,
//! however many runs a ring has seen. Directories only: packs and manifests stay as they are ([`super::repack`]).
//!
//! Neighbouring layers that always stand together are a *group*. Of a group only the upper part is merged, down to the
//! lowest layer that is less than twice as large as all above it: what a layer holds is linked anew only when it comes
//! into one half as large again, so as often as the logarithm of what the ring holds. A layer of gigabytes stays what it
//! is below any number of small ones.
//!
//! The old directories stay as long as a running container is mounted on them; when its upper is sealed, its chain is
//! rewritten to the merged ones.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use super::entry::Entry;
use super::merge::{Below, merge};
use super::state::{Hides, LayerRecord, RingState};
use super::view::View;
use super::waste::hidden_by;
use super::{Locked, Ring};
use crate::error::{Context, Result};
use crate::ids::LayerId;
use crate::store::Run;
use crate::sys::fs::{disk_usage, random_id, sync_file_system};

/// More layers of a group than this are worth a fold: its fixed cost is then shared by as many runs.
const LOOSE: usize = 8;

/// Layers smaller than this, in bytes, cost the same to merge.
const SMALL: u64 = 256 << 10;

/// Of what a group takes, at most one part in so many is hidden.
const WASTE_SHARE: u64 = 16;

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
        self.measure_waste()?;
        let state = self.read()?;
        for group in groups(&state) {
            let Some(start) = plan_start(&weigh(&state, &group)) else { continue };
            let part = &group[start..];
            self.fold_group(part).context(|| format!("fold {} layers of ring '{}'", part.len(), self.name()))?;
        }
        Ok(())
    }

    /// Notes of each layer of a group what it hides of the others, once.
    fn measure_waste(&self) -> Result<()> {
        let state = self.read()?;
        let layers = self.store().layers();
        let mut measured = Vec::new();
        for group in groups(&state).iter().filter(|group| group.iter().all(|id| layers.has(id))) {
            let directories: Vec<PathBuf> = group.iter().map(|id| layers.content(id)).collect();
            for (index, layer) in group.iter().enumerate().skip(1) {
                if known_waste(&state, group, layer).is_none() {
                    let hidden = hidden_by(&directories[index], &directories[..index], self.store().class());
                    let hidden = hidden.context(|| format!("look what layer {layer} hides"))?;
                    let bytes = group.iter().cloned().zip(hidden).filter(|(_, bytes)| *bytes > 0).collect();
                    measured.push((layer.clone(), Hides { down_to: group[0].clone(), bytes }));
                }
            }
        }
        if measured.is_empty() {
            return Ok(());
        }
        let mut locked = self.lock()?;
        for (layer, hides) in measured {
            if let Some(record) = locked.state.layers.get_mut(&layer) {
                record.hides = Some(hides);
            }
        }
        locked.commit()
    }

    fn fold_group(&self, group: &[LayerId]) -> Result<()> {
        let layers = self.store().layers();
        if !group.iter().all(|id| layers.has(id)) {
            return Ok(());
        }
        // Only what lies below says which whiteouts are still needed; without that, a chain that grows is the worse evil.
        let locked = self.lock()?;
        let (view, volumes) = (locked.below(group)?, locked.state.volumes());
        drop(locked);
        if view.is_none() && group.len() < LONG {
            return Ok(());
        }
        let below = view.as_ref().map_or(Below::Unknown, |view| Below::Directory(view.root()));
        let below = below.but_for(volumes);
        let directories: Vec<_> = group.iter().map(|id| layers.content(id)).collect();
        let stage = merge(&layers, &directories, self.store().class(), &below)?;
        // A power cut may lose it, which the packs make good; one that was torn would be used.
        sync_file_system(stage.directory())?;
        let disk_bytes = disk_usage(stage.directory())?;
        let mut locked = self.lock()?;
        // An eviction meanwhile has made more mergeable: the next call does it.
        if !groups(&locked.state).iter().any(|planned| planned.windows(group.len()).any(|part| part == group)) {
            return Ok(());
        }
        let merged = LayerId::from_random(random_id()?);
        let record = merge_records(&locked.state, group, disk_bytes);
        layers.adopt(&merged, stage.directory())?;
        locked.state.layers.insert(merged.clone(), record);
        for entry in &mut locked.state.entries {
            replace_group(&mut entry.layers, group, &merged);
        }
        let stood_on = locked.stood_on()?;
        for record in locked.state.layers.values_mut() {
            record.folded_from.retain(|part| stood_on.contains(part));
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

    /// The layers that the ring's containers are mounted on: only of these has anybody to know what they became.
    fn stood_on(&self) -> Result<HashSet<LayerId>> {
        let mut layers = HashSet::new();
        for id in self.state.runs() {
            layers.extend(Run::load(&self.ring().store, id)?.into_iter().flat_map(|run| run.record.layers));
        }
        Ok(layers)
    }
}

/// What is known of a layer that is made of a group.
fn merge_records(state: &RingState, group: &[LayerId], disk_bytes: u64) -> LayerRecord {
    let records: Vec<_> = group.iter().filter_map(|id| state.layers.get(id)).collect();
    let packs = records.iter().flat_map(|record| record.packs.clone()).collect();
    let folded = records.iter().flat_map(|record| record.folded_from.clone()).chain(group.iter().cloned());
    let unfolded = records.iter().map(|record| record.unfolded_bytes.unwrap_or(record.disk_bytes)).sum();
    LayerRecord {
        folded_from: folded.collect(),
        unfolded_bytes: Some(unfolded),
        hides: merge_hides(&records, group),
        ..LayerRecord::new(disk_bytes, packs)
    }
}

/// What all of a group hide of what is below the group; `None` if that is not known of each.
fn merge_hides(records: &[&LayerRecord], group: &[LayerId]) -> Option<Hides> {
    let parts: Vec<_> = records.iter().map(|record| record.hides.as_ref()).collect::<Option<_>>()?;
    let down_to = parts.first()?.down_to.clone();
    let mut bytes = BTreeMap::new();
    for (layer, hidden) in parts.iter().flat_map(|part| &part.bytes).filter(|(layer, _)| !group.contains(layer)) {
        *bytes.entry(layer.clone()).or_insert(0) += hidden;
    }
    parts.iter().all(|part| part.down_to == down_to).then_some(Hides { down_to, bytes })
}

/// What a layer hides of the other layers of its group, if somebody has looked.
fn known_waste<'a>(state: &'a RingState, group: &Group, layer: &LayerId) -> Option<&'a Hides> {
    let hides = state.layers.get(layer)?.hides.as_ref()?;
    (group.first() == Some(&hides.down_to)).then_some(hides)
}

/// What has to be known of a layer to decide about a fold, bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Weight {
    /// All of it.
    bytes: u64,
    /// What other layers of its group hide.
    hidden: u64,
}

impl Weight {
    fn shows(self) -> u64 {
        self.bytes.saturating_sub(self.hidden).max(SMALL)
    }
}

fn weigh(state: &RingState, group: &Group) -> Vec<Weight> {
    let mut hidden: HashMap<&LayerId, u64> = HashMap::new();
    for (layer, bytes) in group.iter().filter_map(|id| known_waste(state, group, id)).flat_map(|hides| &hides.bytes) {
        *hidden.entry(layer).or_default() += bytes;
    }
    let weight = |id: &LayerId| Weight {
        bytes: state.layers.get(id).map_or(0, |record| record.disk_bytes),
        hidden: hidden.get(id).copied().unwrap_or_default(),
    };
    group.iter().map(weight).collect()
}

/// Where the part of a group begins that is to be merged, if any. Pure.
fn plan_start(group: &[Weight]) -> Option<usize> {
    let (bytes, hidden) = group.iter().fold((0, 0), |sum, one| (sum.0 + one.bytes, sum.1 + one.hidden));
    let tolerated = (bytes / WASTE_SHARE).max(SMALL);
    if group.len() <= LOOSE && hidden <= tolerated {
        return None;
    }
    let (mut start, mut above) = (group.len(), 0);
    for (index, weight) in group.iter().enumerate().rev() {
        if weight.shows() < 2 * above {
            start = index;
        }
        above += weight.shows();
    }
    if hidden > tolerated {
        // Half of it may stay, so that the next little more is no reason for another fold.
        let mut left = 0;
        let passes = |weight: &Weight| {
            left += weight.hidden;
            left > tolerated / 2
        };
        start = group.iter().position(passes).unwrap_or(start).min(start);
    }
    (start + 1 < group.len()).then_some(start)
}

/// Layers that always stand together and at whose inner ends no entry ends, and are packed; each group once.
fn groups(state: &RingState) -> Vec<Group> {
    let (mut after, mut before) = (HashMap::new(), HashMap::new());
    let mut branching: (HashSet<&LayerId>, HashSet<&LayerId>) = Default::default();
    for Entry { layers, .. } in &state.entries {
        for (index, layer) in layers.iter().enumerate() {
            let next = layers.get(index + 1);
            let previous = index.checked_sub(1).and_then(|index| layers.get(index));
            if *after.entry(layer).or_insert(next) != next {
                branching.0.insert(layer);
            }
            if *before.entry(layer).or_insert(previous) != previous {
                branching.1.insert(layer);
            }
        }
    }
    let packed = |layer: &LayerId| state.layers.contains_key(layer);
    let joins = |lower: &LayerId, upper: &LayerId| {
        !branching.0.contains(lower) && !branching.1.contains(upper) && packed(lower) && packed(upper)
    };
    let (mut groups, mut seen): (Vec<Group>, HashSet<&LayerId>) = Default::default();
    for Entry { layers, .. } in &state.entries {
        for (index, layer) in layers.iter().enumerate().filter(|(_, layer)| seen.insert(layer)) {
            let previous = index.checked_sub(1).map(|index| &layers[index]);
            match groups.last_mut() {
                // A layer that was not seen before joins only one that was not seen before this entry either.
                Some(group) if previous.is_some_and(|last| group.last() == Some(last) && joins(last, layer)) => {
                    group.push(layer.clone());
                }
                _ => groups.push(vec![layer.clone()]),
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
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
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn packed(state: &mut RingState) {
        for layer in state.entries.iter().flat_map(|entry| entry.layers.clone()).collect::<Vec<_>>() {
            state.layers.insert(layer, LayerRecord::new(1, Vec::new()));
        }
    }

    fn plain(mebibytes: &[u64]) -> Vec<Weight> {
        mebibytes.iter().map(|size| Weight { bytes: size * MIB, hidden: 0 }).collect()
    }

    #[test]
    fn layers_below_the_oldest_entry_are_one_group_with_its_own() {
        let mut state = RingState::new(Limits { depth: 2, max_bytes: None });
        state.entries = vec![entry(20, Outcome::Good), entry(21, Outcome::Good)];
        assert!(groups(&state).is_empty(), "sealed layers are not folded");
        packed(&mut state);
        assert_eq!(groups(&state), [state.entries[0].layers.clone()]);
    }

    #[test]
    fn a_layer_on_which_chains_part_is_the_last_of_its_group() {
        let mut state = RingState::new(Limits { depth: 8, max_bytes: None });
        let (mut left, mut right) = (entry(9, Outcome::Good), entry(9, Outcome::Good));
        left.layers.extend(["a", "b"].map(|name| name.repeat(32).parse().unwrap()));
        right.layers.extend(["c", "d"].map(|name| name.repeat(32).parse().unwrap()));
        (left.seq, right.seq) = (11, 12);
        state.entries = vec![left.clone(), right.clone()];
        packed(&mut state);
        assert_eq!(groups(&state), [&left.layers[..9], &left.layers[9..], &right.layers[9..]]);
    }

    #[test]
    fn few_layers_wait_for_more() {
        assert_eq!(plan_start(&plain(&[1; 8])), None);
        assert_eq!(plan_start(&plain(&[1; 9])), Some(0));
    }

    #[test]
    fn a_large_layer_is_left_alone_until_half_as_much_stands_on_it() {
        assert_eq!(plan_start(&plain(&[2048, 10, 10, 10, 10, 10, 10, 10, 10])), Some(1));
        assert_eq!(plan_start(&plain(&[2048, 90, 10, 10, 10, 10, 10, 10, 10])), Some(1));
        assert_eq!(plan_start(&plain(&[2048, 900, 1, 1, 1, 1, 1, 1, 20])), Some(2));
        assert_eq!(plan_start(&plain(&[2048, 900, 1, 1, 1, 1, 1, 20, 1])), Some(2));
        assert_eq!(plan_start(&plain(&[2048, 900, 30, 1, 1, 1, 1, 1, 1])), Some(3));
    }

    #[test]
    fn what_nobody_sees_goes_however_few_layers_there_are() {
        let mut group = plain(&[100, 10, 10]);
        group[1].hidden = 5 * MIB;
        assert_eq!(plan_start(&group), None, "that is little");
        group[0].hidden = 5 * MIB;
        assert_eq!(plan_start(&group), Some(0));
        let mut group = plain(&[100, 40, 40, 1]);
        (group[1].hidden, group[2].hidden) = (40 * MIB, 10 * MIB);
        assert_eq!(plan_start(&group), Some(1), "the lowest layer has no part in it");
    }

    #[test]
    fn a_chain_from_before_the_fold_is_rewritten() {
        let mut state = RingState::new(Limits { depth: 2, max_bytes: None });
        let old = entry(20, Outcome::Good).layers;
        let merged: LayerId = "ab".repeat(16).parse().unwrap();
        let record = LayerRecord { folded_from: old[..19].to_vec(), ..LayerRecord::new(1, Vec::new()) };
        state.layers.insert(merged.clone(), record);
        let mut chain = old.clone();
        rewrite_chain(&state, &mut chain);
        assert_eq!(chain, [merged, old[19].clone()]);
    }

    /// What a ring's lowest group is after runs that each left so many bytes, and how many bytes were merged in all.
    fn fold_all(runs: &[u64]) -> (Vec<u64>, u64) {
        let (mut group, mut merged) = (Vec::new(), 0);
        for run in runs {
            group.push(*run);
            let weights: Vec<_> = group.iter().map(|bytes| Weight { bytes: *bytes, hidden: 0 }).collect();
            if let Some(start) = plan_start(&weights) {
                let sum = group.drain(start..).sum();
                merged += sum;
                group.push(sum);
            }
        }
        (group, merged)
    }

    proptest! {
        #[test]
        fn a_group_stays_short_and_each_byte_is_merged_as_often_as_the_logarithm_says(
            runs in prop::collection::vec(prop_oneof![9 => 4096..MIB, 1 => MIB..4096 * MIB], 1..2000)
        ) {
            let (group, merged) = fold_all(&runs);
            let total: u64 = runs.iter().sum();
            let doublings = u64::from((total / SMALL).max(1).ilog2()) + 1;
            prop_assert!(group.len() as u64 <= LOOSE as u64 + doublings, "{} layers", group.len());
            // What grows by half each time has grown twofold after two times; those smaller than the smallest count as it.
            let counted = total + runs.len() as u64 * SMALL;
            prop_assert!(merged <= counted * (2 * doublings + 2), "{merged} of {total}");
        }
    }
}
