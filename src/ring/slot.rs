//! The policy of the ring: what a new entry does to the others, and which must go. Pure.

use std::collections::{HashMap, HashSet};

use super::entry::{Entry, Outcome};
use super::keep::{Keep, kept};
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
/// and where bytes are missing it leaves first. What a rule of `keep` keeps leaves for bytes only, and after all others; where
/// there are such rules, the depth is how many of the newest are kept beside.
#[must_use]
pub fn plan_eviction(
    entries: &[Entry],
    held: Held<'_>,
    limits: Limits,
    keep: Keep,
    sizes: &HashMap<LayerId, u64>,
) -> Vec<u64> {
    let Some(policy) = Policy::new(entries, held, keep) else { return Vec::new() };
    let mut kept: Vec<&Entry> = entries.iter().collect();
    let mut leaving = Vec::new();
    while let Some(index) = policy.next_to_leave(&kept, limits, sizes) {
        leaving.push(kept.remove(index).seq);
    }
    leaving.sort_unstable();
    leaving
}

/// An entry that may leave for the sake of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Departure {
    /// Its number.
    pub(super) seq: u64,
    /// The layer at which no entry of the ring that stays longer ends; `None` if there is one.
    pub(super) layer: Option<LayerId>,
    /// The most bytes that are free once nobody stands on that any more either.
    pub(super) bytes: u64,
    /// Those that are free at once: its processes.
    pub(super) memory: u64,
}

/// All entries that may leave where bytes are missing, in the order in which they do.
pub(super) fn plan_departures(
    entries: &[Entry],
    held: Held<'_>,
    keep: Keep,
    sizes: &HashMap<LayerId, u64>,
) -> Vec<Departure> {
    let Some(policy) = Policy::new(entries, held, keep) else { return Vec::new() };
    let mut kept: Vec<&Entry> = entries.iter().collect();
    let mut departures = Vec::new();
    while let Some(index) = policy.next_for_bytes(&kept) {
        let entry = kept.remove(index);
        let own = entry.layers.last().filter(|layer| !kept.iter().any(|other| other.layers.last() == Some(layer)));
        let bytes = own.and_then(|layer| sizes.get(layer)).copied().unwrap_or_default();
        let memory = entry.memory_bytes.unwrap_or(0);
        departures.push(Departure { seq: entry.seq, layer: own.cloned(), bytes, memory });
    }
    departures
}

/// Which entries of a ring stay whatever is missing, and which by a rule.
struct Policy {
    stays: HashSet<u64>,
    ruled: HashSet<u64>,
    keep: Keep,
}

impl Policy {
    /// `None` as long as nothing may leave.
    fn new(entries: &[Entry], held: Held<'_>, keep: Keep) -> Option<Self> {
        let newest = newest_of(entries, Line::Main);
        if newest.is_some_and(|newest| !newest.synced) {
            return None;
        }
        let good = entries.iter().rev().find(|entry| !entry.side && entry.outcome == Outcome::Good);
        let last_side = newest_of(entries, Line::Side).filter(|entry| !entry.synced);
        let stays = |entry: &&Entry| {
            let is = |other: Option<&Entry>| other.is_some_and(|other| other.seq == entry.seq);
            let held = held.next == Some(entry.seq) || held.in_use.contains(&entry.seq);
            // What is not on disk yet is all that there is of its run, and so is what was before it.
            entry.pinned || held || is(newest) || is(good) || (entry.side && last_side.is_some())
        };
        let stays = entries.iter().filter(stays).map(|entry| entry.seq).collect();
        Some(Self { stays, ruled: kept(entries, keep), keep })
    }

    /// The oldest of a line that may leave.
    fn oldest(&self, kept: &[&Entry], line: Line, ruled: &HashSet<u64>) -> Option<usize> {
        let may = |entry: &&Entry| line.has(entry) && !self.stays.contains(&entry.seq) && !ruled.contains(&entry.seq);
        kept.iter().position(may)
    }

    /// Which of the kept entries leaves next, if one has to and may.
    fn next_to_leave(&self, kept: &[&Entry], limits: Limits, sizes: &HashMap<LayerId, u64>) -> Option<usize> {
        let is_too_large = limits.max_bytes.is_some_and(|max| bytes(kept.iter().copied(), sizes) > max);
        let for_bytes = || if is_too_large { self.next_for_bytes(kept) } else { None };
        self.next_for_depth(kept, Line::Side, limits.depth)
            .or_else(|| self.next_for_depth(kept, Line::Main, limits.depth))
            .or_else(for_bytes)
    }

    fn next_for_depth(&self, kept: &[&Entry], line: Line, depth: usize) -> Option<usize> {
        let own: Vec<usize> = (0..kept.len()).filter(|index| line.has(kept[*index])).collect();
        let too_many = own.len().checked_sub(depth).filter(|count| *count > 0)?;
        if line == Line::Side || self.keep.is_nothing() {
            return self.oldest(kept, line, &self.ruled);
        }
        // Entries that a rule keeps are no reason for others to leave.
        let may = |index: &&usize| {
            let seq = kept[**index].seq;
            !self.stays.contains(&seq) && !self.ruled.contains(&seq)
        };
        own[..too_many].iter().find(may).copied()
    }

    fn next_for_bytes(&self, kept: &[&Entry]) -> Option<usize> {
        self.oldest(kept, Line::Side, &self.ruled)
            .or_else(|| self.oldest(kept, Line::Main, &self.ruled))
            .or_else(|| self.oldest(kept, Line::Main, &HashSet::new()))
    }
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

/// The bytes on disk of all layers of some entries, each counted once, and of their processes.
pub fn bytes<'a>(entries: impl Iterator<Item = &'a Entry>, sizes: &HashMap<LayerId, u64>) -> u64 {
    let mut memory = 0;
    let mut layers: HashSet<&LayerId> = HashSet::new();
    for entry in entries {
        memory += entry.memory_bytes.unwrap_or(0);
        layers.extend(&entry.layers);
    }
    memory + layers.into_iter().filter_map(|layer| sizes.get(layer)).sum::<u64>()
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
        plan_eviction(entries, held, limits, Keep::default(), &HashMap::new())
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
        assert!(plan_eviction(&entries, Held::default(), limits(30), Keep::default(), &sizes).is_empty());
        assert_eq!(plan_eviction(&entries, Held::default(), limits(29), Keep::default(), &sizes), [1]);
        assert_eq!(plan_eviction(&entries, Held::default(), limits(1), Keep::default(), &sizes), [1, 2]);
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
        assert_eq!(plan_eviction(&entries, Held::default(), limits(20), Keep::default(), &sizes), [3]);
        assert_eq!(plan_eviction(&entries, Held::default(), limits(10), Keep::default(), &sizes), [1, 3]);
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
            let mut leaving = plan_eviction(&entries, held, limits, Keep::default(), &sizes);
            prop_assert!(leaving.is_sorted());
            leaving.retain(|seq| main.iter().any(|entry| entry.seq == *seq));
            prop_assert_eq!(leaving, plan_eviction(&main, held, limits, Keep::default(), &sizes));
        }

        #[test]
        fn bytes_push_nothing_out_of_the_main_line_as_long_as_something_beside_it_can_go(
            (entries, sizes) in rings(), depth in 1..6_usize, max in 0..1000_u64
        ) {
            let limits = Limits { depth, max_bytes: Some(max) };
            let leaving = plan_eviction(&entries, Held::default(), limits, Keep::default(), &sizes);
            let kept: Vec<_> = entries.iter().filter(|entry| !leaving.contains(&entry.seq)).cloned().collect();
            let left_for_bytes = |entry: &&Entry| !entry.side && leaving.contains(&entry.seq);
            let by_depth = plan_eviction(&entries, Held::default(), Limits { depth, max_bytes: None }, Keep::default(), &sizes);
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
            let leaving = plan_eviction(&entries, held, limits, Keep::default(), &sizes);
            prop_assert!(!leaving.contains(&in_use[0]));
            let main = |entry: &&Entry| !entry.side;
            let newest = entries.iter().rev().find(main);
            let good = entries.iter().rev().filter(main).find(|entry| entry.outcome == Outcome::Good);
            for kept in newest.into_iter().chain(good).chain(entries.iter().filter(|entry| entry.pinned)) {
                prop_assert!(!leaving.contains(&kept.seq), "@{} left", kept.seq);
            }
            let rest: Vec<_> = entries.iter().filter(|entry| !leaving.contains(&entry.seq)).cloned().collect();
            prop_assert!(plan_eviction(&rest, held, limits, Keep::default(), &sizes).is_empty());
        }

        #[test]
        fn rules_only_keep_more_and_the_rest_is_as_deep_as_it_is_to_be(
            (entries, sizes) in rings(), depth in 1..6_usize, last in 0..8_u32, daily in 0..4_u32, max in 0..1000_u64
        ) {
            let keep = Keep { last, daily, ..Keep::default() };
            let by_depth = Limits { depth, max_bytes: None };
            let leaving = plan_eviction(&entries, Held::default(), by_depth, keep, &sizes);
            let ruled = kept(&entries, keep);
            prop_assert!(leaving.iter().all(|seq| !ruled.contains(seq)));
            let newest: Vec<_> = entries.iter().rev().filter(|entry| !entry.side).take(depth).collect();
            prop_assert!(keep.is_nothing() || newest.iter().all(|entry| !leaving.contains(&entry.seq)));
            let rest: Vec<_> = entries.iter().filter(|entry| !leaving.contains(&entry.seq)).cloned().collect();
            prop_assert!(plan_eviction(&rest, Held::default(), by_depth, keep, &sizes).is_empty());
            // Bytes go before rules, but not before what never leaves.
            let limits = Limits { depth, max_bytes: Some(max) };
            let leaving = plan_eviction(&entries, Held::default(), limits, keep, &sizes);
            prop_assert!(entries.iter().filter(|entry| entry.pinned).all(|entry| !leaving.contains(&entry.seq)));
            let departures = plan_departures(&entries, Held::default(), keep, &sizes);
            prop_assert!(leaving.iter().all(|seq| departures.iter().any(|departure| departure.seq == *seq)));
        }
    }

    #[test]
    fn what_a_rule_keeps_is_no_reason_for_others_to_leave() {
        let keep = Keep { last: 0, hourly: 0, daily: 3, weekly: 0 };
        let day = |entry: Entry, days: i64| {
            let created = entry.created - chrono::TimeDelta::days(days);
            Entry { created, ..entry }
        };
        let mut entries = ring(&[Outcome::Good; 6]);
        for (entry, days) in entries.iter_mut().zip([2, 2, 1, 0, 0, 0]) {
            *entry = day(entry.clone(), days);
        }
        let leaving = |keep, limits| plan_eviction(&entries, Held::default(), limits, keep, &HashMap::new());
        assert_eq!(leaving(keep, DEPTH_2), [1, 4]);
        assert_eq!(leaving(Keep::default(), DEPTH_2), [1, 2, 3, 4]);
        let entries = apart(entries.clone());
        let sizes = entries.iter().map(|entry| (entry.layers[0].clone(), 10)).collect();
        let limits = |max| Limits { depth: 2, max_bytes: Some(max) };
        let leaving = |max| plan_eviction(&entries, Held::default(), limits(max), keep, &sizes);
        assert_eq!(leaving(30), [1, 4, 5], "those that no rule keeps leave first");
        assert_eq!(leaving(20), [1, 2, 4, 5]);
    }
}
