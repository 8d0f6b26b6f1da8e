//! Changes that an operator asks for: each is one replacement of `ring.json`.

use super::entry::Entry;
use super::keep::KeepChange;
use super::selector::{Selected, Selector};
use super::state::RingState;
use super::{Locked, index};
use crate::error::{Error, Kind, Result};

/// Whether eviction passes over an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// It stays until it is unpinned.
    Pinned,
    /// It may go.
    Unpinned,
}

/// Whether the next run brings back the processes that an entry was saved with, if it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revival {
    /// It does.
    Wanted,
    /// It begins with its program.
    Unwanted,
}

/// What is to be changed about the limits of a ring: what is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitChange {
    /// The most entries.
    pub depth: Option<usize>,
    /// The most bytes, or that there is no such limit.
    pub max_bytes: Option<Option<u64>>,
    /// Which entries are kept whatever the depth.
    pub keep: KeepChange,
}

impl LimitChange {
    /// Whether nothing is to be changed.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn apply(self, state: &mut RingState) {
        state.depth = self.depth.unwrap_or(state.depth);
        state.max_bytes = self.max_bytes.unwrap_or(state.max_bytes);
        state.keep = state.keep.changed(self.keep);
    }
}

impl Locked {
    /// Makes the next run start from another entry; `None` for the bare base. All entries stay. The processes of one that was
    /// saved with them are brought back by that run, and by none after it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such entry, [`Kind::Busy`] while a container runs on the ring.
    pub fn rollback(&mut self, to: &Selector, revival: Revival) -> Result<Option<Entry>> {
        self.check_here("roll back")?;
        self.settle("roll back")?;
        let entry = match self.state.select_view(to)? {
            Selected::Base => None,
            Selected::Entry(entry) => Some(entry.clone()),
        };
        self.state.set_next(entry.as_ref().map(|entry| entry.seq));
        let has_memory = entry.as_ref().is_some_and(|entry| entry.memory_bytes.is_some());
        self.state.revive = revival == Revival::Wanted && has_memory;
        self.commit()?;
        Ok(entry)
    }

    /// Pins or unpins an entry, and gives it as it is then.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such entry.
    pub fn pin(&mut self, selector: &Selector, pin: Pin) -> Result<Entry> {
        self.check_here("pin an entry of")?;
        let seq = match self.state.select_view(selector)? {
            Selected::Entry(entry) => entry.seq,
            Selected::Base => {
                let operation = format!("pin '{}@base'", self.ring().name());
                return Err(Error::new(Kind::Invalid, operation, "the base is no entry: nothing evicts it"));
            }
        };
        let missing = || Error::new(Kind::NotFound, format!("pin @{seq}"), "no such entry");
        let entry = self.state.entry_mut(seq).ok_or_else(missing)?;
        entry.pinned = pin == Pin::Pinned;
        let entry = entry.clone();
        self.commit()?;
        Ok(entry)
    }

    /// Sets limits, evicts what is over them, and gives the numbers of what left.
    ///
    /// # Errors
    /// Those of writing and removing.
    pub fn set_limits(&mut self, change: LimitChange) -> Result<Vec<u64>> {
        self.check_here("limit")?;
        change.apply(&mut self.state);
        self.commit()?;
        self.evict()
    }

    /// The numbers of the entries that [`Locked::set_limits`] would evict.
    ///
    /// # Errors
    /// Those of reading the present run.
    pub fn would_evict(&self, change: LimitChange) -> Result<Vec<u64>> {
        let mut state = self.state.clone();
        change.apply(&mut state);
        Ok(state.plan_eviction(&self.in_use()?))
    }

    /// Writes `index.json` anew from what the ring knows.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn repair_index(&self) -> Result<()> {
        index::repair(self)
    }
}
