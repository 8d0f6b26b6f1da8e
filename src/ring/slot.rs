//! The policy of the ring: what a new entry does to the others, and which must go. Pure.

use std::collections::{HashMap, HashSet};

use super::entry::{Entry, Outcome};
use crate::ids::LayerId;

/// How much a ring may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub depth: usize,
    /// Bytes on disk of what only this ring needs; `None` for no limit.
    pub max_bytes: Option<u64>,
}

/// Entries that something outside the list holds on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Where the next run starts.
    pub next: Option<u64>,
    /// Where the present run started.
    pub in_use: Option<u64>,
}

/// Whether a new entry takes the place of the newest one: consecutive runs that failed are kept as one, the latest,
/// so that a container that cannot start does not push good states out of its ring.
///
/// The replaced entry's layer stays as long as the new one stands on it.
#[must_use]
pub fn replaces(newest: &Entry, new: &Entry) -> bool {
    newest.outcome == Outcome::Failed
        && new.outcome == Outcome::Failed
        && new.parent == Some(newest.seq)
        && !newest.pinned
}

/// The entries that have to leave, oldest first.
///
/// Never among them: the newest entry, the newest of a good run, pinned ones, and those held. As long as the newest
/// has not reached the disk, nothing leaves. `sizes` gives the bytes on disk of each layer with its pack.
#[must_use]
pub fn plan_eviction(entries: &[Entry], held: Held, limits: Limits, sizes: &HashMap<LayerId, u64>) -> Vec<u64> {
    let Some(newest) = entries.last().filter(|entry| entry.synced) else { return Vec::new() };
    let newest_good = entries.iter().rev().find(|entry| entry.outcome == Outcome::Good).map(|entry| entry.seq);
    let stays = |entry: &Entry| {
        let seq = Some(entry.seq);
        entry.pinned || entry.seq == newest.seq || seq == newest_good || seq == held.next || seq == held.in_use
    };
    let mut kept: Vec<&Entry> = entries.iter().collect();
    let mut leaving = Vec::new();
    while exceeds(&kept, limits, sizes) {
        let Some(oldest) = kept.iter().position(|entry| !stays(entry)) else { break };
        leaving.push(kept.remove(oldest).seq);
    }
    leaving
}

fn exceeds(kept: &[&Entry], limits: Limits, sizes: &HashMap<LayerId, u64>) -> bool {
    kept.len() > limits.depth || limits.max_bytes.is_some_and(|max| bytes(kept.iter().copied(), sizes) > max)
}

/// The bytes on disk of all layers of some entries, each counted once.
pub fn bytes<'a>(entries: impl Iterator<Item = &'a Entry>, sizes: &HashMap<LayerId, u64>) -> u64 {
    let layers: HashSet<&LayerId> = entries.flat_map(|entry| &entry.layers).collect();
    layers.into_iter().filter_map(|layer| sizes.get(layer)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    const DEPTH_2: Limits = Limits { depth: 2, max_bytes: None };

    fn ring(outcomes: &[Outcome]) -> Vec<Entry> {
        outcomes.iter().zip(1..).map(|(outcome, seq)| entry(seq, *outcome)).collect()
    }

    fn evict(entries: &[Entry], held: Held, limits: Limits) -> Vec<u64> {
        plan_eviction(entries, held, limits, &HashMap::new())
    }

    #[test]
    fn the_oldest_entries_over_the_depth_leave() {
        assert_eq!(evict(&ring(&[Outcome::Good; 4]), Held::default(), DEPTH_2), [1, 2]);
        assert!(evict(&ring(&[Outcome::Good; 2]), Held::default(), DEPTH_2).is_empty());
    }

    #[test]
    fn evict_skips_pinned_entries_and_those_held() {
        let mut entries = ring(&[Outcome::Good; 5]);
        entries[0].pinned = true;
        let held = Held { next: Some(2), in_use: Some(3) };
        assert_eq!(evict(&entries, held, DEPTH_2), [4]);
    }

    #[test]
    fn the_last_good_state_outlives_any_number_of_unknown_ends() {
        let mut outcomes = vec![Outcome::Good, Outcome::Good];
        outcomes.extend([Outcome::Unknown; 40]);
        let leaving = evict(&ring(&outcomes), Held::default(), DEPTH_2);
        assert!(!leaving.contains(&2) && leaving.contains(&1) && leaving.len() == 40);
    }

    #[test]
    fn nothing_leaves_before_the_newest_is_on_disk() {
        let mut entries = ring(&[Outcome::Good; 4]);
        entries[3].synced = false;
        assert!(evict(&entries, Held::default(), DEPTH_2).is_empty());
    }

    #[test]
    fn bytes_evict_but_never_the_newest() {
        // Chains share their layers, so evicting an older entry frees bytes only once nobody stands on it.
        let mut entries = ring(&[Outcome::Good; 3]);
        for entry in &mut entries {
            entry.layers = vec![entry.layers.last().unwrap().clone()];
        }
        let sizes = entries.iter().map(|entry| (entry.layers[0].clone(), 10)).collect();
        let limits = |max| Limits { depth: 8, max_bytes: Some(max) };
        assert!(plan_eviction(&entries, Held::default(), limits(30), &sizes).is_empty());
        assert_eq!(plan_eviction(&entries, Held::default(), limits(29), &sizes), [1]);
        assert_eq!(plan_eviction(&entries, Held::default(), limits(1), &sizes), [1, 2]);
    }

    #[test]
    fn failed_runs_in_a_row_are_kept_as_one() {
        let entries = ring(&[Outcome::Good, Outcome::Failed, Outcome::Failed]);
        assert!(replaces(&entries[1], &entries[2]));
        assert!(!replaces(&entries[0], &entries[1]));
        let mut pinned = entries[1].clone();
        pinned.pinned = true;
        assert!(!replaces(&pinned, &entries[2]));
        // A run that began elsewhere stands on other layers: both are kept.
        let mut elsewhere = entries[2].clone();
        elsewhere.parent = Some(1);
        assert!(!replaces(&entries[1], &elsewhere));
    }
}
