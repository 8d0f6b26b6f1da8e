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
pub struct Held<'a> {
    /// Where the next run starts.
    pub next: Option<u64>,
    /// Where the present runs started.
    pub in_use: &'a [u64],
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
        && !newest.side
        && !new.side
}

/// The entries that have to leave, oldest first.
///
/// Never among them: the newest entry of the main line, the newest of a good run, pinned ones, and those held. As long as
/// the newest has not reached the disk, nothing leaves. `sizes` gives the bytes on disk of each layer with its pack.
///
/// What stands beside the main line pushes nothing out of it: it is counted apart, at most as many as of the main line,
/// and where bytes are missing it leaves first.
#[must_use]
pub fn plan_eviction(entries: &[Entry], held: Held<'_>, limits: Limits, sizes: &HashMap<LayerId, u64>) -> Vec<u64> {
    let newest = newest_of(entries, Line::Main);
    if newest.is_some_and(|newest| !newest.synced) {
        return Vec::new();
    }
    let good = entries.iter().rev().find(|entry| !entry.side && entry.outcome == Outcome::Good);
    let last_side = newest_of(entries, Line::Side).filter(|entry| !entry.synced);
    let stays = |entry: &Entry| {
        let is = |other: Option<&Entry>| other.is_some_and(|other| other.seq == entry.seq);
        let held = held.next == Some(entry.seq) || held.in_use.contains(&entry.seq);
        // What is not on disk yet is all that there is of its run, and so is what was before it.
        entry.pinned || held || is(newest) || is(good) || (entry.side && last_side.is_some())
    };
    let mut kept: Vec<&Entry> = entries.iter().collect();
    let mut leaving = Vec::new();
    while let Some(index) = next_to_leave(&kept, limits, sizes, &stays) {
        leaving.push(kept.remove(index).seq);
    }
    leaving.sort_unstable();
    leaving
}

/// Which of the kept entries leaves next, if one has to and may.
fn next_to_leave(
    kept: &[&Entry],
    limits: Limits,
    sizes: &HashMap<LayerId, u64>,
    stays: &dyn Fn(&Entry) -> bool,
) -> Option<usize> {
    let oldest = |line: Line| kept.iter().position(|entry| line.has(entry) && !stays(entry));
    let oldest_too_many = |line: Line| {
        let count = kept.iter().filter(|entry| line.has(entry)).count();
        if count > limits.depth { oldest(line) } else { None }
    };
    let is_too_large = limits.max_bytes.is_some_and(|max| bytes(kept.iter().copied(), sizes) > max);
    let oldest_too_large = || if is_too_large { oldest(Line::Side).or_else(|| oldest(Line::Main)) } else { None };
    oldest_too_many(Line::Side).or_else(|| oldest_too_many(Line::Main)).or_else(oldest_too_large)
}

/// What an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// What runs made one after another.
    Main,
    /// What runs left beside that.
    Side,
}

impl Line {
    fn has(self, entry: &Entry) -> bool {
        entry.side == (self == Self::Side)
    }
}

fn newest_of(entries: &[Entry], line: Line) -> Option<&Entry> {
    entries.iter().rev().find(|entry| line.has(entry))
}

/// The bytes on disk of all layers of some entries, each counted once.
pub fn bytes<'a>(entries: impl Iterator<Item = &'a Entry>, sizes: &HashMap<LayerId, u64>) -> u64 {
    let layers: HashSet<&LayerId> = entries.flat_map(|entry| &entry.layers).collect();
    layers.into_iter().filter_map(|layer| sizes.get(layer)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::{entry, side};
    use super::*;
    use proptest::prelude::*;

    const DEPTH_2: Limits = Limits { depth: 2, max_bytes: None };

    fn ring(outcomes: &[Outcome]) -> Vec<Entry> {
        outcomes.iter().zip(1..).map(|(outcome, seq)| entry(seq, *outcome)).collect()
    }

    fn evict(entries: &[Entry], held: Held<'_>, limits: Limits) -> Vec<u64> {
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
        let held = Held { next: Some(2), in_use: &[3] };
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

    /// Entries of which each has a layer of its own.
    fn apart(entries: Vec<Entry>) -> Vec<Entry> {
        let own = |entry: Entry| Entry { layers: entry.layers[entry.layers.len() - 1..].to_vec(), ..entry };
        entries.into_iter().map(own).collect()
    }

    #[test]
    fn what_stands_beside_the_main_line_is_counted_apart() {
        let entries = [1, 2].map(|seq| entry(seq, Outcome::Good));
        let sides = [3, 4, 5].map(|seq| side(seq, Outcome::Good));
        let all = [&entries[..], &sides[..]].concat();
        assert_eq!(evict(&all, Held::default(), DEPTH_2), [3]);
        // A new entry of the main line pushes out the oldest of it, and nothing else.
        let more = [&all[1..], &[entry(6, Outcome::Good), entry(7, Outcome::Good)]].concat();
        assert_eq!(evict(&more, Held::default(), DEPTH_2), [2, 3]);
    }

    #[test]
    fn what_stands_beside_the_main_line_leaves_first_where_bytes_are_missing() {
        let entries = apart(vec![entry(1, Outcome::Good), entry(2, Outcome::Good), side(3, Outcome::Good)]);
        let sizes = entries.iter().map(|entry| (entry.layers[0].clone(), 10)).collect();
        let limits = |max| Limits { depth: 8, max_bytes: Some(max) };
        assert_eq!(plan_eviction(&entries, Held::default(), limits(20), &sizes), [3]);
        assert_eq!(plan_eviction(&entries, Held::default(), limits(10), &sizes), [1, 3]);
    }

    #[test]
    fn what_is_not_on_disk_yet_keeps_its_own_line_only() {
        let mut entries = vec![entry(1, Outcome::Good), side(2, Outcome::Good), entry(3, Outcome::Good)];
        entries.extend([entry(4, Outcome::Good), side(5, Outcome::Good), side(6, Outcome::Good)]);
        entries[5].synced = false;
        assert_eq!(evict(&entries, Held::default(), DEPTH_2), [1]);
        entries[3].synced = false;
        assert!(evict(&entries, Held::default(), DEPTH_2).is_empty());
    }

    #[test]
    fn a_failed_run_beside_the_main_line_replaces_nothing_and_is_not_replaced() {
        let [first, second] = [4, 5].map(|seq| entry(seq, Outcome::Failed));
        assert!(replaces(&first, &second));
        assert!(!replaces(&first, &side(5, Outcome::Failed)));
        assert!(!replaces(&side(4, Outcome::Failed), &second));
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![Just(Outcome::Good), Just(Outcome::Failed), Just(Outcome::Unknown)]
    }

    prop_compose! {
        /// A ring as any history may have left it: outcome, beside or not, pinned, synced and bytes of each entry.
        fn rings()(drawn in prop::collection::vec(
            (outcomes(), any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.9), 0..100_u64), 0..24
        )) -> (Vec<Entry>, HashMap<LayerId, u64>) {
            let made = drawn.iter().zip(1..).map(|((outcome, side, pinned, synced, _), seq)| {
                Entry { side: *side, pinned: *pinned, synced: *synced, ..entry(seq, *outcome) }
            });
            let entries = apart(made.collect());
            let sizes = entries.iter().zip(&drawn).map(|(entry, drawn)| (entry.layers[0].clone(), drawn.4)).collect();
            (entries, sizes)
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_beside_it_the_main_line_keeps_what_it_would_keep_alone(
            (entries, sizes) in rings(), depth in 1..6_usize, next in 0..24_u64, used in 0..24_u64
        ) {
            let limits = Limits { depth, max_bytes: None };
            let held = Held { next: Some(next), in_use: &[used] };
            let main: Vec<_> = entries.iter().filter(|entry| !entry.side).cloned().collect();
            let mut leaving = plan_eviction(&entries, held, limits, &sizes);
            prop_assert!(leaving.is_sorted());
            leaving.retain(|seq| main.iter().any(|entry| entry.seq == *seq));
            prop_assert_eq!(leaving, plan_eviction(&main, held, limits, &sizes));
        }

        #[test]
        fn bytes_push_nothing_out_of_the_main_line_as_long_as_something_beside_it_can_go(
            (entries, sizes) in rings(), depth in 1..6_usize, max in 0..1000_u64
        ) {
            let limits = Limits { depth, max_bytes: Some(max) };
            let leaving = plan_eviction(&entries, Held::default(), limits, &sizes);
            let kept: Vec<_> = entries.iter().filter(|entry| !leaving.contains(&entry.seq)).cloned().collect();
            let left_for_bytes = |entry: &&Entry| !entry.side && leaving.contains(&entry.seq);
            let by_depth = plan_eviction(&entries, Held::default(), Limits { depth, max_bytes: None }, &sizes);
            let for_bytes = entries.iter().filter(left_for_bytes).any(|entry| !by_depth.contains(&entry.seq));
            let last_side_is_safe = entries.iter().rev().find(|entry| entry.side).is_none_or(|entry| entry.synced);
            if for_bytes && last_side_is_safe {
                prop_assert!(kept.iter().all(|entry| !entry.side || entry.pinned));
            }
        }

        #[test]
        fn eviction_is_done_at_once_and_never_takes_what_is_held(
            (entries, sizes) in rings(), depth in 1..6_usize, max in 0..1000_u64, held in 0..24_u64
        ) {
            let limits = Limits { depth, max_bytes: Some(max) };
            let in_use = [held];
            let held = Held { next: None, in_use: &in_use };
            let leaving = plan_eviction(&entries, held, limits, &sizes);
            prop_assert!(!leaving.contains(&in_use[0]));
            let main = |entry: &&Entry| !entry.side;
            let newest = entries.iter().rev().find(main);
            let good = entries.iter().rev().filter(main).find(|entry| entry.outcome == Outcome::Good);
            for kept in newest.into_iter().chain(good).chain(entries.iter().filter(|entry| entry.pinned)) {
                prop_assert!(!leaving.contains(&kept.seq), "@{} left", kept.seq);
            }
            let rest: Vec<_> = entries.iter().filter(|entry| !leaving.contains(&entry.seq)).cloned().collect();
            prop_assert!(plan_eviction(&rest, held, limits, &sizes).is_empty());
        }
    }
}
