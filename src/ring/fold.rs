//! The fold: layers at which no kept entry ends are merged into the one above, so that a chain stays short however
//! many runs a ring has seen. Directories only: packs and manifests stay as they are.
//!
//! Files are not copied but linked, so that it costs time per file and no bytes. The old directories stay as long as
//! a running container is mounted on them; when its upper is sealed, its chain is rewritten to the merged ones.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::Ring;
use super::entry::Entry;
use super::state::{LayerRecord, RingState};
use crate::error::{Context, Result, quote};
use crate::ids::LayerId;
use crate::store::{Layers, Stage};
use crate::sys::fs::{disk_usage, random_id};
use crate::sys::xattr::OverlayClass;

/// So many layers have to be mergeable before it is done: the cost is then shared by as many runs.
const WORTHWHILE: usize = 8;

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
        let merged = LayerId::from_random(random_id()?);
        let directories: Vec<_> = group.iter().map(|id| layers.content(id)).collect();
        let stage = merge(&layers, &directories, self.store().class())?;
        let disk_bytes = disk_usage(stage.directory())?;
        let mut locked = self.lock()?;
        // An eviction meanwhile has made more mergeable: the next call does it.
        if !plan_fold(&locked.state).iter().any(|planned| planned == group) {
            return Ok(());
        }
        let records: Vec<_> = group.iter().filter_map(|id| locked.state.layers.get(id)).collect();
        let packs = records.iter().flat_map(|record| record.packs.clone()).collect();
        let folded = records.iter().flat_map(|record| record.folded_from.clone()).chain(group.iter().cloned());
        let record = LayerRecord { disk_bytes, packs, folded_from: folded.collect() };
        layers.adopt(&merged, stage.directory())?;
        locked.state.layers.insert(merged.clone(), record);
        if locked.state.run.is_none() {
            // Nobody stands on the old ones any more.
            locked.state.layers.values_mut().for_each(|record| record.folded_from.clear());
        }
        for entry in &mut locked.state.entries {
            replace_group(&mut entry.layers, group, &merged);
        }
        locked.state.forget_unused_layers();
        locked.commit()
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

/// Merges unpacked stages, lowest first, and makes the result a layer.
pub(super) fn merge_stages(layers: &Layers, id: &LayerId, stages: Vec<Stage>, class: OverlayClass) -> Result<()> {
    if let [only] = stages.as_slice() {
        return layers.adopt(id, only.directory());
    }
    let directories: Vec<_> = stages.iter().map(|stage| stage.directory().to_owned()).collect();
    let merged = merge(layers, &directories, class)?;
    layers.adopt(id, merged.directory())
}

/// A stage that shows what `directories` (lowest first) show when they are stacked, in overlay format.
fn merge(layers: &Layers, directories: &[PathBuf], class: OverlayClass) -> Result<Stage> {
    let merger = Merger { class };
    let stage = layers.stage()?;
    let [lowest, others @ ..] = directories else { return Ok(stage) };
    merger.copy_tree(lowest, stage.directory())?;
    let mut result = stage;
    for upper in others {
        let next = layers.stage()?;
        merger.merge_directory(result.directory(), upper, next.directory())?;
        result = next;
    }
    Ok(result)
}

struct Merger {
    class: OverlayClass,
}

impl Merger {
    /// Makes `target`, an empty directory, show `upper` over `lower`.
    fn merge_directory(&self, lower: &Path, upper: &Path, target: &Path) -> Result<()> {
        let opaque = self.is_opaque(upper)?;
        for name in names(upper)? {
            let (from, to) = (upper.join(&name), target.join(&name));
            let below = lower.join(&name);
            if opaque { self.copy(&from, &to)? } else { self.merge_child(&below, &from, &to)? }
        }
        if !opaque {
            for name in names(lower)? {
                if fs::symlink_metadata(upper.join(&name)).is_err() {
                    self.copy(&lower.join(&name), &target.join(&name))?;
                }
            }
        }
        self.copy_attributes(upper, target)?;
        if self.is_opaque(lower)? { self.make_opaque(target) } else { Ok(()) }
    }

    fn merge_child(&self, below: &Path, from: &Path, to: &Path) -> Result<()> {
        let metadata = fs::symlink_metadata(below).ok();
        match metadata {
            Some(metadata) if is_directory(from)? && metadata.is_dir() => {
                make_directory(to)?;
                self.merge_directory(below, from, to)
            }
            // Whatever else was there hid what lies further down, and has to go on doing so.
            Some(_) if is_directory(from)? => {
                self.copy(from, to)?;
                self.make_opaque(to)
            }
            Some(_) | None => self.copy(from, to),
        }
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        if is_directory(from)? {
            make_directory(to)?;
            return self.copy_tree(from, to);
        }
        fs::hard_link(from, to).context(|| format!("link {} to {}", quote(from), quote(to)))
    }

    fn copy_tree(&self, from: &Path, to: &Path) -> Result<()> {
        for name in names(from)? {
            self.copy(&from.join(&name), &to.join(&name))?;
        }
        self.copy_attributes(from, to)
    }

    /// Mode, owner, attributes and, last, times of a directory.
    fn copy_attributes(&self, from: &Path, to: &Path) -> Result<()> {
        let operation = || format!("copy the attributes of {}", quote(from));
        let metadata = fs::metadata(from).context(operation)?;
        chown(to, Some(metadata.uid()), Some(metadata.gid())).context(operation)?;
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777)).context(operation)?;
        for name in xattr::list(from).context(operation)? {
            // Of the kernel's own notes only this one says something about content.
            if name.to_string_lossy().starts_with(self.class.prefix()) && name != self.class.opaque() {
                continue;
            }
            if let Some(value) = xattr::get(from, &name).context(operation)? {
                xattr::set(to, &name, &value).context(operation)?;
            }
        }
        let times = fs::FileTimes::new()
            .set_accessed(metadata.accessed().context(operation)?)
            .set_modified(metadata.modified().context(operation)?);
        fs::File::open(to).and_then(|directory| directory.set_times(times)).context(operation)
    }

    fn is_opaque(&self, directory: &Path) -> Result<bool> {
        let value = xattr::get(directory, self.class.opaque()).context(|| format!("read {}", quote(directory)))?;
        Ok(value.as_deref() == Some(b"y"))
    }

    fn make_opaque(&self, directory: &Path) -> Result<()> {
        xattr::set(directory, self.class.opaque(), b"y").context(|| format!("mark {} opaque", quote(directory)))
    }
}

fn is_directory(path: &Path) -> Result<bool> {
    Ok(fs::symlink_metadata(path).context(|| format!("look at {}", quote(path)))?.is_dir())
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir(path).context(|| format!("create {}", quote(path)))
}

fn names(directory: &Path) -> Result<Vec<OsString>> {
    let operation = || format!("list {}", quote(directory));
    fs::read_dir(directory).context(operation)?.map(|entry| Ok(entry.context(operation)?.file_name())).collect()
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
