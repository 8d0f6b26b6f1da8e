//! What the latest snapshot of a run holds, so that the next one need only hold what changed since.
//!
//! A file beside the run's upper, `snapshot.known`: one line of JSON that says which entry it is about, then what the copy
//! knew ([`LayerCopy::known`]). It is written after the entry, so it is about one that is there, and replaced by the next; it
//! is gone with the run. Without it, or with one that does not fit, a snapshot is a whole copy.

use std::fs;

use serde::{Deserialize, Serialize};

use super::Ring;
use super::entry::{Entry, Reason};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::pack::LayerCopy;
use crate::store::Run;
use crate::sys::fs::{Durability, read_capped, replace_file};

const NAME: &str = "snapshot.known";
const CAP: u64 = 1 << 30;

/// So many snapshots of a run lie over each other at most: the kernel stacks 500 layers, and a long chain is slow to mount.
const OVER_EACH_OTHER: usize = 64;

/// A snapshot of a run that still runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Former {
    version: u32,
    /// The entry's tag, which no other entry has.
    id: String,
    /// The entry's number.
    pub(super) seq: u64,
}

impl Former {
    /// The latest snapshot of a run and what is known of it, if something can be put over that.
    ///
    /// # Errors
    /// Those of reading the ring.
    pub(super) fn find(ring: &Ring, run: &Run) -> Result<Option<(Self, Vec<u8>)>> {
        let (former, known) = match read(run) {
            Ok(found) => found,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => {
                tracing::debug!(ring = %ring.name(), "{error}");
                return Ok(None);
            }
        };
        let state = ring.read()?;
        let layers = ring.store().layers();
        let fits = |entry: &&Entry| {
            let own = entry.layers.len().saturating_sub(run.record.layers.len());
            former.is(entry) && own < OVER_EACH_OTHER && entry.layers.iter().all(|layer| layers.has(layer))
        };
        Ok(state.entries.iter().find(fits).is_some().then_some((former, known)))
    }

    /// Whether it is this entry.
    pub(super) fn is(&self, entry: &Entry) -> bool {
        entry.id == self.id && entry.seq == self.seq && entry.reason == Reason::Snapshot
    }

    /// Notes what a copy that became an entry holds. That it cannot be noted makes the next snapshot a whole one.
    pub(super) fn note(run: &Run, entry: &Entry, copy: &LayerCopy) {
        let write = || -> Result<()> {
            let Some(known) = copy.known()? else { return Ok(()) };
            let former = Self { version: 1, id: entry.id.clone(), seq: entry.seq };
            let mut content = serde_json::to_vec(&former).context(|| "write what a snapshot holds")?;
            content.push(b'\n');
            content.extend(known);
            // After a power cut there is no run any more that it could be about.
            replace_file(run.directory(), NAME, &content, Durability::Volatile)
        };
        if let Err(error) = write() {
            tracing::debug!(container = %run.record.container, "{error}");
            Self::forget(run);
        }
    }

    /// Makes the next snapshot a whole one.
    pub(super) fn forget(run: &Run) {
        // If it is there after all, it is still right.
        let _ = fs::remove_file(run.directory().join(NAME));
    }
}

fn read(run: &Run) -> Result<(Former, Vec<u8>)> {
    let path = run.directory().join(NAME);
    let mut content = read_capped(&path, CAP)?;
    let operation = || format!("read {}", quote(&path));
    let end = content.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| Error::new(Kind::Damaged, operation(), "it has no first line"))?;
    let known = content.split_off(end + 1);
    let former: Former = serde_json::from_slice(&content).context(operation)?;
    if former.version == 1 {
        return Ok((former, known));
    }
    Err(Error::new(Kind::Unsupported, operation(), "another regen wrote it"))
}
