//! What all rings of a store may take together: which entry leaves where it is too much. The choice is pure.
//!
//! Of an entry that others stand on, nothing is freed at once: what only it shows goes when layers are merged. So of each
//! ring as much is let go as its own layers could free at most, and the next worker measures anew. That takes some runs
//! longer, and never lets go of a history for nothing. What only a fork's going would free stays as well.

use std::collections::{HashMap, HashSet};

use super::slot::{Departure, plan_departures};
use super::state::RingState;
use super::{Locked, Ring};
use crate::error::Result;
use crate::ids::{Digest, LayerId, RingName};
use crate::store::Store;

/// What a ring has, as far as the store's limit goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    /// Bytes on disk.
    bytes: u64,
    limit: Option<u64>,
    /// Those that may leave, in the order in which they would.
    departures: Vec<Departure>,
}

/// What the rings of a store take.
#[derive(Debug)]
pub struct Usage {
    /// Bytes on disk of layers and packs, each counted once.
    pub bytes: u64,
    shares: Vec<(Ring, Share)>,
}

/// What leaves: the ring's place in the list, and the entry's number.
type Leaving = (usize, u64);

/// The entries that leave for so many bytes: from the largest ring over its own limit as long as there is one, then from the
/// largest; from each in its own order.
fn plan(shares: &[Share], excess: u64) -> Vec<Leaving> {
    let mut bytes: Vec<u64> = shares.iter().map(|share| share.bytes).collect();
    let mut next = vec![0; shares.len()];
    let (mut leaving, mut freed) = (Vec::new(), 0);
    while freed < excess {
        let candidates = (0..shares.len()).filter(|index| next[*index] < shares[*index].departures.len());
        let rank = |index: &usize| (shares[*index].limit.is_some_and(|limit| bytes[*index] > limit), bytes[*index]);
        // Of equals the first, so that the same is chosen on every machine.
        let Some(index) = candidates.rev().max_by_key(rank) else { break };
        let Departure { seq, bytes: gain, memory, layer: _ } = shares[index].departures[next[index]];
        let gain = gain + memory;
        next[index] += 1;
        bytes[index] = bytes[index].saturating_sub(gain);
        freed += gain;
        leaving.push((index, seq));
    }
    leaving
}

/// Layers and packs, which rings share, each counted once.
#[derive(Debug, Default)]
struct Once {
    layers: HashMap<LayerId, u64>,
    packs: HashMap<Digest, u64>,
    /// What no ring shares.
    memory: u64,
}

impl Once {
    fn add(&mut self, state: &RingState) {
        self.layers.extend(state.layers.iter().map(|(id, record)| (id.clone(), record.disk_bytes)));
        self.packs.extend(state.packs().map(|pack| (pack.digest.clone(), pack.bytes)));
        self.memory += state.entries.iter().filter_map(|entry| entry.memory_bytes).sum::<u64>();
    }

    fn bytes(&self) -> u64 {
        self.memory + self.layers.values().chain(self.packs.values()).sum::<u64>()
    }
}

/// Bytes on disk of layers and packs of all rings that can be read, for those who only look.
///
/// # Errors
/// Those of listing the rings.
pub fn used(store: &Store) -> Result<u64> {
    let mut once = Once::default();
    Ring::list(store)?.iter().filter_map(|ring| ring.read().ok()).for_each(|state| once.add(&state));
    Ok(once.bytes())
}

impl Usage {
    /// Measures all rings. One that is not to be run here is counted, and loses nothing.
    ///
    /// # Errors
    /// If any ring cannot be read.
    pub fn measure(store: &Store) -> Result<Self> {
        let mut once = Once::default();
        let (mut shares, mut rings) = (Vec::new(), HashMap::new());
        let look = |ring: &Ring| {
            let locked = ring.lock()?;
            let departures = if locked.state.elsewhere.is_some() { Vec::new() } else { locked.departures()? };
            Ok((locked.state, departures))
        };
        for (ring, found) in Ring::each(store, look)? {
            let (state, departures) = found?;
            once.add(&state);
            let named: HashSet<&LayerId> = state.entries.iter().flat_map(|entry| &entry.layers).collect();
            named.into_iter().for_each(|layer| *rings.entry(layer.clone()).or_default() += 1);
            shares.push((ring, Share { bytes: state.bytes(), limit: state.max_bytes, departures }));
        }
        // What a fork stands on, too, takes as much without this ring's entry.
        let alone = |layer: &LayerId| rings.get(layer) == Some(&1_u32);
        for (_, share) in &mut shares {
            for departure in
                share.departures.iter_mut().filter(|departure| !departure.layer.as_ref().is_some_and(alone))
            {
                departure.bytes = 0;
            }
            share.departures.retain(|departure| departure.bytes + departure.memory > 0);
        }
        Ok(Self { bytes: once.bytes(), shares })
    }

    /// Lets entries go until about so many bytes are free; those of the names that it gives.
    ///
    /// # Errors
    /// Those of writing and removing.
    pub fn free(&self, excess: u64) -> Result<Vec<(RingName, Vec<u64>)>> {
        let shares: Vec<_> = self.shares.iter().map(|(_, share)| share.clone()).collect();
        let mut wanted: Vec<(usize, HashSet<u64>)> = Vec::new();
        for (index, seq) in plan(&shares, excess) {
            match wanted.iter_mut().find(|(known, _)| *known == index) {
                Some((_, seqs)) => drop(seqs.insert(seq)),
                None => wanted.push((index, HashSet::from([seq]))),
            }
        }
        let mut gone = Vec::new();
        for (index, seqs) in wanted {
            let ring = &self.shares[index].0;
            let let_go = |ring: &Ring| {
                let mut locked = ring.lock()?;
                // Somebody may have pinned it, or started from it, since it was measured.
                let may = locked.departures()?.into_iter().map(|departure| departure.seq);
                let leaving: Vec<u64> = may.filter(|seq| seqs.contains(seq)).collect();
                locked.let_go(&leaving)?;
                Ok(leaving)
            };
            if let Some(leaving) = ring.unless_gone(let_go) {
                gone.push((ring.name().clone(), leaving?));
            }
        }
        Ok(gone)
    }
}

impl Locked {
    fn departures(&self) -> Result<Vec<Departure>> {
        let in_use = self.in_use()?;
        let held = super::slot::Held { next: self.state.next, in_use: &in_use };
        Ok(plan_departures(&self.state.entries, held, self.state.keep, &self.state.sizes()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::super::slot::Limits;
    use super::super::state::{LayerRecord, PackRecord, Repacked};
    use super::*;
    use crate::image::layout::digest_of;
    use proptest::prelude::*;

    /// A ring of one entry with one layer, whose pack took the place of two that are there still.
    fn repacked() -> RingState {
        let digest = |name: &str| digest_of(name.as_bytes());
        let pack = |name: &str, bytes| PackRecord {
            digest: digest(name),
            diff_id: digest(name),
            bytes,
            media_type: String::new(),
        };
        let mut state = RingState::new(Limits { depth: 2, max_bytes: None });
        state.entries = vec![entry(1, Outcome::Good)];
        state.entries[0].layers.truncate(1);
        state.layers.insert(state.entries[0].layers[0].clone(), LayerRecord::new(1000, vec![pack("new", 100)]));
        state.repacked = vec![Repacked { digest: digest("new"), replaces: vec![pack("old", 10), pack("older", 1)] }];
        state
    }

    #[test]
    fn packs_that_only_manifests_need_count_and_what_rings_share_counts_once() {
        let (ring, mut fork) = (repacked(), repacked());
        fork.layers.values_mut().for_each(|layer| layer.packs.clear());
        let mut once = Once::default();
        once.add(&ring);
        once.add(&fork);
        assert_eq!((once.bytes(), ring.bytes()), (1111, 1111));
    }

    fn share(bytes: u64, limit: Option<u64>, gains: &[u64]) -> Share {
        let departures =
            gains.iter().zip(1..).map(|(gain, seq)| Departure { seq, layer: None, bytes: *gain, memory: 0 });
        Share { bytes, limit, departures: departures.collect() }
    }

    #[test]
    fn a_ring_over_its_own_limit_goes_before_a_larger_one() {
        let shares = [share(100, None, &[10, 10]), share(50, Some(35), &[10, 10, 10]), share(60, Some(60), &[10])];
        assert_eq!(plan(&shares, 0), []);
        assert_eq!(plan(&shares, 5), [(1, 1)]);
        assert_eq!(plan(&shares, 40), [(1, 1), (1, 2), (0, 1), (0, 2)]);
    }

    #[test]
    fn the_largest_ring_loses_until_another_one_is_the_largest() {
        let shares = [share(40, None, &[15, 15, 15]), share(50, None, &[15, 15, 15])];
        assert_eq!(plan(&shares, 60), [(1, 1), (0, 1), (1, 2), (0, 2)]);
    }

    #[test]
    fn where_nothing_may_leave_nothing_does() {
        assert_eq!(plan(&[share(100, Some(1), &[]), share(5, None, &[1])], 1000), [(1, 1)]);
        assert_eq!(plan(&[], 1000), []);
    }

    prop_compose! {
        fn shares()(drawn in prop::collection::vec((
            0..1000_u64, prop::option::of(0..1000_u64), prop::collection::vec(0..100_u64, 0..8)
        ), 0..8)) -> Vec<Share> {
            drawn.iter().map(|(bytes, limit, gains)| share(*bytes, *limit, gains)).collect()
        }
    }

    proptest! {
        #[test]
        fn no_more_leaves_than_is_needed_and_each_ring_keeps_its_order(shares in shares(), excess in 0..2000_u64) {
            let leaving = plan(&shares, excess);
            let gain = |(index, seq): &Leaving| {
                shares[*index].departures.iter().find(|departure| departure.seq == *seq).map(|found| found.bytes)
            };
            let gains: Vec<u64> = leaving.iter().map(|one| gain(one).unwrap()).collect();
            if let Some((_, before)) = gains.split_last() {
                prop_assert!(before.iter().sum::<u64>() < excess, "the last one was not needed");
            }
            let all: usize = shares.iter().map(|share| share.departures.len()).sum();
            prop_assert!(gains.iter().sum::<u64>() >= excess || leaving.len() == all);
            for (index, share) in shares.iter().enumerate() {
                let own: Vec<_> = leaving.iter().filter(|(ring, _)| *ring == index).map(|(_, seq)| *seq).collect();
                let order: Vec<_> = share.departures.iter().map(|departure| departure.seq).collect();
                prop_assert!(order.starts_with(&own));
            }
        }
    }
}
