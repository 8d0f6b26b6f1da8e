//! The end of a ring. Nothing that crashes left is finished for it, and nothing is made an entry that goes with it: so a ring
//! can be removed where the disk is full.

use std::collections::HashSet;

use super::claim::{in_use, not_final};
use super::seal::{find_holders, remove_cgroup};
use super::state::RingState;
use super::{Locked, Ring, snapshot};
use crate::error::{Kind, Result};
use crate::ids::LayerId;
use crate::store::Run;
use crate::sys::fs::disk_usage;

/// A ring that nobody else changes, and that may only go: what it says of itself may be in the middle of a change.
#[derive(Debug)]
pub struct Removal(Locked);

impl Ring {
    /// Keeps everybody else from the ring, to remove it.
    ///
    /// # Errors
    /// As [`Ring::lock`], without those of finishing anything.
    pub fn removal(&self) -> Result<Removal> {
        let lock = self.wait_lock()?;
        let mut locked = Locked { ring: self.clone(), state: self.read()?, lock };
        match snapshot::thaw_left(&mut locked) {
            // The container goes on; who locks the ring next lets it go on once more.
            Err(error) if error.kind() != Kind::NoSpace => Err(error),
            Ok(()) | Err(_) => Ok(Removal(locked)),
        }
    }

    /// Removes the ring and all its entries.
    ///
    /// # Errors
    /// As [`Ring::removal`] and [`Removal::carry_out`].
    pub fn remove(&self) -> Result<()> {
        self.removal()?.carry_out()
    }
}

impl From<Locked> for Removal {
    fn from(locked: Locked) -> Self {
        Self(locked)
    }
}

impl Removal {
    /// What the ring says.
    #[must_use]
    pub fn state(&self) -> &RingState {
        &self.0.state
    }

    /// Bytes on disk of all entries, also of those that are not packed.
    ///
    /// # Errors
    /// Those of looking at the layers.
    pub fn bytes(&self) -> Result<u64> {
        let RingState { entries, layers, .. } = &self.0.state;
        let sealed: HashSet<&LayerId> =
            entries.iter().flat_map(|entry| &entry.layers).filter(|id| !layers.contains_key(*id)).collect();
        let mut bytes = self.0.state.bytes();
        for content in sealed.into_iter().map(|id| self.0.ring.store.layers().content(id)) {
            // One that is lost takes nothing.
            bytes += if content.is_dir() { disk_usage(&content)? } else { 0 };
        }
        Ok(bytes)
    }

    /// Refuses to remove what a container still writes into, or may.
    ///
    /// # Errors
    /// [`Kind::Busy`], naming it; those of reading the runs and /proc.
    pub fn check(&self) -> Result<()> {
        self.dead_runs().map(drop)
    }

    /// Removes the ring; its layers, and what dead containers left, go with the next collection.
    ///
    /// # Errors
    /// As [`Removal::check`]; those of rename and unlink.
    pub fn carry_out(self) -> Result<()> {
        for run in self.dead_runs()? {
            run.record.cgroups.iter().for_each(|directory| remove_cgroup(directory));
        }
        self.0.ring.discard()
    }

    /// The runs that it names: nobody can write into their uppers any more.
    fn dead_runs(&self) -> Result<Vec<Run>> {
        let operation = || format!("remove ring '{}'", self.0.ring.name());
        let mut dead = Vec::new();
        for id in self.0.state.runs() {
            let Some(run) = Run::load(&self.0.ring.store, id)? else { continue };
            if let Some(busy) = in_use(&run, &operation())? {
                return Err(busy);
            }
            // Its upper may be a layer already.
            if !run.is_over()
                && let Some(holders) = find_holders(&run)?
            {
                return Err(not_final(&run, operation(), &holders));
            }
            dead.push(run);
        }
        Ok(dead)
    }
}
