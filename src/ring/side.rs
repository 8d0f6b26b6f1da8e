//! Runs beside the main line: a container that goes on while its successor has the ring.
//!
//! ```text
//! main line   ── @4 ── @5 ─── run A ───(snapshot @6)─── run B ── @8 ──
//!                                └── A goes on, beside ──┴── @7, an entry beside the main line
//! ```
//!
//! A run [steps aside](Locked::step_aside) for a successor, which starts from a snapshot of it. What it writes from then on
//! is in no state of the successor, but is not lost: its end adds an entry beside the main line, which nothing starts from
//! unless it is named. If it changed nothing after the snapshot, there is none.
//!
//! A successor that does not come up [gives the ring back](Locked::take_back): the old run is the main line's again, and what
//! the successor left stands beside it. If nobody came at all, nothing has to be given back: the end of the old run is an
//! entry of the main line as ever.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Locked;
use super::diff::differs_from_snapshot;
use super::fold;
use super::seal;
use super::state::RingState;
use crate::error::{Error, Kind, Result};
use crate::ids::LayerId;
use crate::store::Run;

/// A run that stepped aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The run.
    pub run: LayerId,
    /// The snapshot from which its successor starts; `None` if it had changed nothing by then.
    pub snapshot: Option<u64>,
    /// Where the next run starts if it takes the ring back.
    pub next: Option<u64>,
    /// The newest number when it stepped aside: what is above is its successor's, or its own.
    pub last_seq: u64,
    /// The first run that took the ring after it.
    pub successor: Option<LayerId>,
}

/// Which line of a ring a run makes an entry of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// It has the ring, or nobody had it since.
    Main,
    /// Somebody else has, or had, the ring since.
    Side,
}

impl RingState {
    /// The line of a run; `None` if the ring does not know it.
    #[must_use]
    pub fn line_of(&self, run: &LayerId) -> Option<Line> {
        if self.run.as_ref() == Some(run) {
            return Some(Line::Main);
        }
        let side = self.sides.iter().find(|side| side.run == *run)?;
        Some(if side.successor.is_some() { Line::Side } else { Line::Main })
    }

    /// The run is over, or never came to be.
    pub(super) fn forget_run(&mut self, run: &LayerId) {
        self.run.take_if(|own| own == run);
        self.sides.retain(|side| side.run != *run);
    }

    /// The ring gets a run; those that stepped aside for somebody have their successor.
    pub(super) fn give_to(&mut self, run: &LayerId) {
        self.run = Some(run.clone());
        for side in self.sides.iter_mut().filter(|side| side.successor.is_none()) {
            side.successor = Some(run.clone());
        }
    }

    /// A run that was given the ring never came to be.
    pub(super) fn take_from(&mut self, run: &LayerId) {
        self.forget_run(run);
        for side in &mut self.sides {
            side.successor.take_if(|successor| successor == run);
        }
    }

    /// Makes a run that stepped aside the main line's again, wherever it is by now. Pure.
    fn take_back(&mut self, side: &Side) {
        if self.run.as_ref() == Some(&side.run) {
            return;
        }
        let was_beside = self.sides.iter().any(|other| other.run == side.run);
        self.forget_run(&side.run);
        // Whoever has the ring now is beside the main line, and has no successor to wait for.
        if let Some(candidate) = self.run.take() {
            let (next, last_seq) = (side.next, self.last_seq);
            let successor = Some(side.run.clone());
            self.sides.push(Side { run: candidate, snapshot: None, next, last_seq, successor });
        }
        let own = |layers: &[LayerId]| layers.last() == Some(&side.run);
        let mut next = side.next;
        for entry in self.entries.iter_mut().filter(|entry| entry.seq > side.last_seq) {
            entry.side = !own(&entry.layers);
            if !entry.side {
                next = Some(entry.seq);
            }
        }
        self.set_next(next);
        if was_beside {
            self.run = Some(side.run.clone());
        }
    }
}

impl Locked {
    /// Lets the run that has the ring go on beside the main line. The next run starts from the snapshot of it that was just
    /// made, or, if it has changed nothing, where it started itself.
    ///
    /// # Errors
    /// [`Kind::State`] if another run has the ring, else those of writing; the ring is then as it was.
    pub fn step_aside(&mut self, run: &Run, snapshot: Option<u64>) -> Result<Side> {
        self.check_owner(run.id())?;
        let state = &mut self.state;
        let side =
            Side { run: run.id().clone(), snapshot, next: state.next, last_seq: state.last_seq, successor: None };
        let start = snapshot.or(run.record.parent).filter(|seq| state.entry(*seq).is_some());
        state.set_next(start);
        state.run = None;
        state.sides.push(side.clone());
        self.commit()?;
        Ok(side)
    }

    /// Gives the ring back to a run that stepped aside. What its successors left since, or will leave, stands beside the main
    /// line. If the run has ended meanwhile, what it left is the newest entry of the main line.
    ///
    /// # Errors
    /// Those of writing; the ring is then as it was.
    pub fn take_back(&mut self, side: &Side) -> Result<()> {
        self.state.take_back(side);
        self.commit()
    }

    /// Makes sure that a run has the ring.
    pub(super) fn check_owner(&self, run: &LayerId) -> Result<()> {
        if self.state.run.as_ref() == Some(run) {
            return Ok(());
        }
        let operation = format!("look at who has ring '{}'", self.ring().name());
        Err(Error::new(Kind::State, operation, "another container has it now, or none").next("try again"))
    }

    /// Makes entries of what runs beside the main line left that are dead. What somebody can still write into stays.
    ///
    /// # Errors
    /// Those of looking and of sealing.
    pub fn settle_sides(&mut self) -> Result<()> {
        for side in self.state.sides.clone() {
            match Run::load(&self.ring().store, &side.run)? {
                None => {
                    self.state.forget_run(&side.run);
                    self.commit_claim()?;
                }
                Some(run) if run.record.living_holder()?.is_some() => {}
                Some(run) => drop(seal::recover(self, &run)?),
            }
        }
        Ok(())
    }
}

/// Whether a run that stepped aside changed anything after the snapshot of it; `true` for every other run, and where that
/// cannot be told any more.
pub(super) fn changed_after(locked: &Locked, run: &Run) -> Result<bool> {
    let state = &locked.state;
    let side = state.sides.iter().find(|side| side.run == *run.id());
    let snapshot = side.and_then(|side| side.snapshot).and_then(|seq| state.entry(seq));
    let Some(snapshot) = snapshot else { return Ok(true) };
    let mut chain = run.record.layers.clone();
    fold::rewrite_chain(state, &mut chain);
    let layers = locked.ring().store().layers();
    // A snapshot that was folded into others can't be told from them.
    let Some(own) = snapshot.layers.strip_prefix(chain.as_slice()).filter(|own| !own.is_empty()) else {
        return Ok(true);
    };
    let present = |directories: &Vec<PathBuf>| directories.iter().all(|directory| directory.is_dir());
    let bases = [&run.record.base_lasting, &run.record.base_directories];
    let Some(base) = bases.into_iter().find(|base| !base.is_empty() && present(base)) else { return Ok(true) };
    if !snapshot.layers.iter().all(|id| layers.has(id)) {
        return Ok(true);
    }
    let before = locked.stack(&snapshot.layers, base.clone(), "a snapshot")?;
    let after = locked.stack_below(Some(run.upper()), &chain, base.clone(), "what a run left")?;
    let differing: Vec<_> = own.iter().map(|layer| layers.content(layer)).chain([run.upper()]).collect();
    differs_from_snapshot(before, after, run.record.class, &differing)
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::super::slot::Limits;
    use super::*;

    fn run(n: u64) -> LayerId {
        format!("{n:032x}").parse().unwrap()
    }

    /// A ring with two entries whose run 100 stepped aside after the second, a snapshot.
    fn ring() -> (RingState, Side) {
        let mut state = RingState::new(Limits { depth: 8, max_bytes: None });
        state.entries = vec![entry(1, Outcome::Good), entry(2, Outcome::Good)];
        (state.last_seq, state.next) = (2, Some(2));
        let side = Side { run: run(100), snapshot: Some(2), next: Some(2), last_seq: 2, successor: None };
        state.sides = vec![side.clone()];
        (state, side)
    }

    fn lines(state: &RingState) -> Vec<(u64, bool)> {
        state.entries.iter().map(|entry| (entry.seq, entry.side)).collect()
    }

    #[test]
    fn a_run_that_nobody_followed_is_still_of_the_main_line() {
        let (mut state, side) = ring();
        assert_eq!(state.line_of(&side.run), Some(Line::Main));
        state.give_to(&run(200));
        assert_eq!((state.line_of(&side.run), state.line_of(&run(200))), (Some(Line::Side), Some(Line::Main)));
        state.take_from(&run(200));
        assert_eq!((state.line_of(&side.run), state.line_of(&run(200))), (Some(Line::Main), None));
        // Who came later is not the one that it waited for.
        state.give_to(&run(200));
        state.forget_run(&run(200));
        state.give_to(&run(300));
        state.take_from(&run(300));
        assert_eq!(state.line_of(&side.run), Some(Line::Side));
    }

    #[test]
    fn a_ring_that_is_taken_back_is_as_before() {
        let (mut state, side) = ring();
        state.give_to(&run(200));
        state.take_from(&run(200));
        for _ in 0..2 {
            state.take_back(&side);
            assert_eq!((state.run.as_ref(), state.next, state.sides.len()), (Some(&side.run), Some(2), 0));
            assert_eq!(lines(&state), [(1, false), (2, false)]);
        }
    }

    #[test]
    fn what_a_successor_left_stands_beside_the_line_that_is_taken_back() {
        let (mut state, side) = ring();
        state.give_to(&run(200));
        state.forget_run(&run(200));
        state.entries.push(entry(3, Outcome::Failed));
        (state.last_seq, state.next) = (3, Some(3));
        state.take_back(&side);
        assert_eq!((state.run.as_ref(), state.next), (Some(&side.run), Some(2)));
        assert_eq!(lines(&state), [(1, false), (2, false), (3, true)]);
    }

    #[test]
    fn a_successor_that_still_lives_is_beside_the_line_that_is_taken_back() {
        let (mut state, side) = ring();
        state.give_to(&run(200));
        state.take_back(&side);
        assert_eq!((state.run.as_ref(), state.next), (Some(&side.run), Some(2)));
        assert_eq!(state.line_of(&run(200)), Some(Line::Side));
    }

    #[test]
    fn a_run_that_ended_before_its_ring_was_taken_back_has_the_newest_entry_of_the_main_line() {
        for successor_lives in [false, true] {
            let (mut state, side) = ring();
            state.give_to(&run(200));
            state.forget_run(&side.run);
            let mut own = entry(4, Outcome::Good);
            own.side = true;
            own.layers.push(side.run.clone());
            state.entries.extend([entry(3, Outcome::Failed), own]);
            state.last_seq = 4;
            if !successor_lives {
                state.forget_run(&run(200));
                state.next = Some(3);
            }
            state.take_back(&side);
            assert_eq!((state.run.as_ref(), state.next), (None, Some(4)));
            assert_eq!(lines(&state), [(1, false), (2, false), (3, true), (4, false)]);
            assert_eq!(state.sides.len(), usize::from(successor_lives));
        }
    }

    #[test]
    fn a_run_that_ended_unchanged_before_its_ring_was_taken_back_leaves_its_snapshot_as_the_newest() {
        let (mut state, side) = ring();
        state.give_to(&run(200));
        state.forget_run(&side.run);
        state.entries.push(entry(3, Outcome::Good));
        (state.last_seq, state.next) = (3, Some(3));
        state.forget_run(&run(200));
        state.take_back(&side);
        assert_eq!((state.run.as_ref(), state.next), (None, Some(2)));
        assert_eq!(state.newest().map(|entry| entry.seq), Some(2));
    }
}
