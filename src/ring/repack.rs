//! The repack: a layer that was made of others gets one pack of its own, where those that it has are too many, or hold
//! much that it does not show.
//!
//! Packs and manifests of entries stay as they are, so that digests that were pushed stay true: the new pack is for the
//! manifests of entries to come, and the old ones leave with the last entry whose manifest lists them. As layers are
//! folded by size, so are they repacked by size: a large layer that was left alone keeps its pack.

use super::entry::Entry;
use super::pack::PackOptions;
use super::state::{LayerRecord, PackRecord, Repacked, RingState};
use super::{Locked, Ring, index};
use crate::error::{Context, Kind, Result};
use crate::ids::{Digest, LayerId};
use crate::image::layout::Layout;
use crate::pack::Effort;

/// A layer may have so many packs, and one more for each of its first mebibytes: a push sends the new one.
const FEW: usize = 4;

/// So many at most.
const MANY: usize = 32;

const MIB: u64 = 1 << 20;

/// A chain with more packs is one that other tools refuse: some take no image of more than 127 layers.
const CROWD: usize = 64;

/// Bytes on disk below which nobody asks what a pack holds too much.
const SMALL: u64 = 256 << 10;

impl Ring {
    /// Repacks the layers for which it is worth it. One that does not fit on the disk stays as it is.
    ///
    /// Only one process does this at a time in a store: the one that has its worker lock.
    ///
    /// # Errors
    /// Those of reading the layers and of writing; each layer is repacked in one step.
    pub fn repack(&self, options: &mut PackOptions<'_>) -> Result<()> {
        for layer in plan_repack(&self.read()?) {
            let operation = || format!("repack layer {layer} of ring '{}'", self.name());
            match self.repack_layer(&layer, options).context(operation) {
                // All that there was is still there, and more room may come.
                Err(error) if error.kind() == Kind::NoSpace => tracing::warn!("{error}"),
                other => other?,
            }
        }
        Ok(())
    }

    fn repack_layer(&self, layer: &LayerId, options: &mut PackOptions<'_>) -> Result<()> {
        if !self.store().layers().has(layer) {
            return Ok(());
        }
        let layout = Layout::open(self.directory())?;
        let seq = self.read()?.last_seq;
        let made = self.pack_layer(&layout, (seq, Effort::Lasting), layer, options)?;
        let mut locked = self.lock()?;
        replace_packs(&mut locked.state, layer, made);
        locked.commit()?;
        locked.drop_replaced()
    }
}

impl Locked {
    /// Deletes packs that nothing needs any more, and forgets what replaced them.
    pub(super) fn drop_replaced(&mut self) -> Result<()> {
        index::collect_blobs(self)?;
        let layout = Layout::open(self.ring().directory())?;
        let repacked = self.state.repacked.clone();
        forget_gone(&mut self.state.repacked, &|digest| layout.has_blob(digest));
        if self.state.repacked == repacked { Ok(()) } else { self.commit() }
    }
}

/// The layers that are worth a pack of their own. What a pinned entry lists is on the disk for as long as that likes, so
/// there only the number counts. Pure.
fn plan_repack(state: &RingState) -> Vec<LayerId> {
    let is_pinned = |layer: &LayerId| state.entries.iter().any(|entry| entry.pinned && entry.layers.contains(layer));
    let is_worth_it = |layer: &LayerId, record: &LayerRecord| {
        let unfolded = record.unfolded_bytes.unwrap_or(record.disk_bytes);
        let bulky = unfolded > record.disk_bytes + (record.disk_bytes / 4).max(SMALL);
        record.packs.len() > 1 && (bulky || record.packs.len() > fitting(record.disk_bytes)) && !is_pinned(layer)
    };
    let worth_it = state.layers.iter().filter(|(layer, record)| is_worth_it(layer, record));
    let mut plan: Vec<_> = worth_it.map(|(layer, _)| layer.clone()).collect();
    for entry in &state.entries {
        thin_out(state, entry, &mut plan);
    }
    plan
}

/// How many packs a layer may have that takes so much on disk.
fn fitting(disk_bytes: u64) -> usize {
    usize::try_from(disk_bytes / MIB).map_or(MANY, |more| FEW.saturating_add(more).min(MANY))
}

/// Adds layers to the plan until an entry has no more packs than others take; those first that cost the least for each
/// pack that goes.
fn thin_out(state: &RingState, entry: &Entry, plan: &mut Vec<LayerId>) {
    let records = entry.layers.iter().filter_map(|layer| Some((layer, state.layers.get(layer)?)));
    let count = |(layer, record): (&LayerId, &LayerRecord)| if plan.contains(layer) { 1 } else { record.packs.len() };
    let mut left: usize = records.clone().map(count).sum();
    let mut several: Vec<_> =
        records.filter(|(layer, record)| record.packs.len() > 1 && !plan.contains(layer)).collect();
    several.sort_by_key(|(_, record)| record.disk_bytes / (record.packs.len() as u64 - 1));
    for (layer, record) in several {
        if left <= CROWD {
            break;
        }
        left -= record.packs.len() - 1;
        plan.push(layer.clone());
    }
}

/// Notes that a layer has the packs of `made` from now on. One that is not there any more needs none.
fn replace_packs(state: &mut RingState, layer: &LayerId, made: LayerRecord) {
    let new = made.packs.first().map(|pack| pack.digest.clone());
    let replaces = match state.layers.get_mut(layer) {
        Some(record) => {
            record.unfolded_bytes = None;
            std::mem::replace(&mut record.packs, made.packs)
        }
        // What was made for nothing is forgotten with the note, and its blob with it.
        None => made.packs,
    };
    if let Some(digest) = new {
        state.repacked.push(Repacked { digest, replaces });
    }
}

/// The packs of a manifest with those that took their place since. Pure.
pub(super) fn bring_up_to_date(repacked: &[Repacked], packs: &mut Vec<Digest>) {
    let find = |packs: &[Digest], note: &Repacked| {
        let old: Vec<_> = note.replaces.iter().map(|pack| &pack.digest).collect();
        let length = Some(old.len()).filter(|length| *length > 1)?;
        let start = packs.windows(length).position(|window| window.iter().eq(old.iter().copied()))?;
        Some((start..start + length, note.digest.clone()))
    };
    // Each makes the list shorter.
    while let Some((range, new)) = repacked.iter().find_map(|note| find(packs, note)) {
        packs.splice(range, [new]);
    }
}

/// Forgets of what replaced packs all that only packs need which are gone: no manifest lists them. Pure but for `is_there`.
fn forget_gone(repacked: &mut Vec<Repacked>, is_there: &dyn Fn(&Digest) -> bool) {
    let mut kept: Vec<Repacked> = Vec::new();
    // What replaces something is noted later than that.
    for mut note in std::mem::take(repacked) {
        let origin = |pack: PackRecord| {
            let earlier = kept.iter().find(|earlier| earlier.digest == pack.digest && !is_there(&pack.digest));
            earlier.map_or_else(|| vec![pack], |earlier| earlier.replaces.clone())
        };
        note.replaces = note.replaces.into_iter().flat_map(origin).collect();
        kept.push(note);
    }
    kept.retain(|note| {
        let is_old = |pack: &PackRecord| pack.digest != note.digest && is_there(&pack.digest);
        is_there(&note.digest) && note.replaces.iter().any(is_old)
    });
    *repacked = kept;
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::super::slot::Limits;
    use super::*;
    use crate::image::layout::digest_of;

    fn digest(name: &str) -> Digest {
        digest_of(name.as_bytes())
    }

    fn digests(names: &str) -> Vec<Digest> {
        names.split_whitespace().map(digest).collect()
    }

    fn packs(names: &str) -> Vec<PackRecord> {
        let pack = |digest: Digest| PackRecord { diff_id: digest.clone(), digest, bytes: 1, media_type: String::new() };
        digests(names).into_iter().map(pack).collect()
    }

    fn note(new: &str, old: &str) -> Repacked {
        Repacked { digest: digest(new), replaces: packs(old) }
    }

    /// A ring of one entry whose lowest layer has such packs.
    fn ring(record: LayerRecord) -> (RingState, LayerId) {
        let mut state = RingState::new(Limits { depth: 2, max_bytes: None });
        state.entries = vec![entry(3, Outcome::Good)];
        let layer = state.entries[0].layers[0].clone();
        state.layers.insert(layer.clone(), record);
        (state, layer)
    }

    #[test]
    fn many_packs_become_one_and_a_few_only_if_they_hold_too_much() {
        let plan = |packs, bytes| {
            let unfolded_bytes = Some(bytes);
            plan_repack(&ring(LayerRecord { unfolded_bytes, ..LayerRecord::new(4 << 20, packs) }).0).len()
        };
        assert_eq!(plan(packs("a b c d e f g h"), 5 << 20), 0);
        assert_eq!(plan(packs("a b c d e f g h i"), 4 << 20), 1);
        assert_eq!(plan(packs("a b"), 6 << 20), 1);
        assert_eq!(plan(packs("a"), 6 << 20), 0);
    }

    #[test]
    fn what_a_pinned_entry_lists_is_repacked_only_where_it_is_too_much_for_others() {
        let names = |count: usize| (0..count).map(|name| format!("{name} ")).collect::<String>();
        let (mut state, layer) = ring(LayerRecord::new(1, packs(&names(CROWD))));
        assert_eq!(plan_repack(&state), std::slice::from_ref(&layer));
        state.entries[0].pinned = true;
        assert!(plan_repack(&state).is_empty());
        state.layers.insert(layer.clone(), LayerRecord::new(1, packs(&names(CROWD + 1))));
        assert_eq!(plan_repack(&state), [layer]);
    }

    #[test]
    fn a_chain_of_too_many_packs_is_thinned_out_where_that_is_cheap() {
        let (mut state, _) = ring(LayerRecord::new(1, packs("a")));
        let layers = state.entries[0].layers.clone();
        let many = |of: &str, count: usize| packs(&(0..count).map(|name| format!("{of}{name} ")).collect::<String>());
        state.layers.insert(layers[0].clone(), LayerRecord::new(2000 << 20, many("a", MANY)));
        state.layers.insert(layers[1].clone(), LayerRecord::new(30 << 20, many("b", 20)));
        state.layers.insert(layers[2].clone(), LayerRecord::new(20 << 20, many("c", CROWD - MANY - 20)));
        assert!(plan_repack(&state).is_empty());
        state.layers.insert(layers[2].clone(), LayerRecord::new(20 << 20, many("c", CROWD - MANY - 19)));
        assert_eq!(plan_repack(&state), [layers[1].clone()], "the large one is left alone");
    }

    #[test]
    fn a_manifest_from_before_any_repack_is_brought_up_to_date() {
        let notes = [note("q", "a b"), note("s", "c d"), note("r", "q s")];
        for before in ["a b c d e", "q c d e", "q s e", "a b s e", "r e"] {
            let mut packs = digests(before);
            bring_up_to_date(&notes, &mut packs);
            assert_eq!(packs, digests("r e"), "{before}");
        }
        let mut other = digests("a x c d");
        bring_up_to_date(&notes, &mut other);
        assert_eq!(other, digests("a x s"));
    }

    #[test]
    fn a_pack_that_came_out_as_one_of_those_it_replaces_is_no_riddle() {
        let notes = [note("a", "a b")];
        for before in ["a b c", "a c"] {
            let mut packs = digests(before);
            bring_up_to_date(&notes, &mut packs);
            assert_eq!(packs, digests("a c"), "{before}");
        }
        let mut kept = notes.to_vec();
        forget_gone(&mut kept, &|digest| digests("a b").contains(digest));
        assert_eq!(kept, notes);
        forget_gone(&mut kept, &|digest| digests("a").contains(digest));
        assert_eq!(kept, []);
    }

    #[test]
    fn what_was_replaced_is_known_as_long_as_any_of_it_is_there() {
        let forget = |there: &str| {
            let mut notes = vec![note("q", "a b"), note("r", "q c")];
            forget_gone(&mut notes, &|digest| digests(there).contains(digest));
            notes
        };
        assert_eq!(forget("a b c q r"), [note("q", "a b"), note("r", "q c")]);
        assert_eq!(forget("a b c r"), [note("r", "a b c")]);
        assert_eq!(forget("q c r"), [note("r", "q c")]);
        assert_eq!(forget("r"), []);
    }

    #[test]
    fn a_layer_that_left_meanwhile_needs_no_pack() {
        let (mut state, layer) = ring(LayerRecord::new(1, packs("a b")));
        state.layers.clear();
        replace_packs(&mut state, &layer, LayerRecord::new(1, packs("q")));
        assert!(state.layers.is_empty() && state.repacked == [note("q", "q")]);
        forget_gone(&mut state.repacked, &|_| true);
        assert_eq!(state.repacked, []);
    }
}
