//! What of a ring was sent where the configuration says: `push.json` beside it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::distribution::Reference;
use crate::error::{Context, Result};
use crate::ids::{Digest, RingName};
use crate::ring::Ring;
use crate::ring::entry::Entry;
use crate::store::Store;
use crate::sys::fs::{Durability, read_capped, replace_file};

const NOTE: &str = "push.json";
const NOTE_CAP: u64 = 64 * 1024;

/// What is known of a ring in the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    /// Where it was sent.
    pub reference: String,
    /// The number of the newest entry that is there.
    pub last_seq: u64,
    /// The digest of the ring's index there.
    pub index: Option<Digest>,
    /// How often in a row it failed since.
    pub failures: u32,
    /// Not to be tried before.
    pub not_before: Option<DateTime<Utc>>,
    /// Why it failed last.
    pub error: Option<String>,
}

impl Note {
    /// What is known, if it is of this place.
    pub(super) fn read(ring: &Ring, reference: &Reference) -> Self {
        let note = Self::read_any(ring);
        if note.reference == reference.to_string() {
            return note;
        }
        Self { reference: reference.to_string(), ..Self::default() }
    }

    fn read_any(ring: &Ring) -> Self {
        let text = read_capped(&ring.directory().join(NOTE), NOTE_CAP).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Notes it.
    ///
    /// # Errors
    /// Those of writing a file.
    pub(super) fn write(&self, ring: &Ring) -> Result<()> {
        let text = serde_json::to_vec(self).context(|| format!("write what was sent of ring '{}'", ring.name()))?;
        replace_file(ring.directory(), NOTE, &text, Durability::Whole)
    }
}

/// Where blobs of these entries may lie already: the repositories of the rings that they were forked from.
pub(super) fn relatives(store: &Store, entries: &[Entry]) -> Vec<Reference> {
    let mut found: Vec<Reference> = Vec::new();
    for from in entries.iter().filter_map(|entry| entry.forked_from.as_deref()) {
        let Some((owner, name)) = from.split('@').next().and_then(|name| name.split_once('/')) else { continue };
        let (Ok(owner), Ok(name)) = (owner.parse(), name.parse()) else { continue };
        let Ok(ring) = Ring::open(store, &RingName { owner, name }) else { continue };
        let note = Note::read_any(&ring);
        let reference = note.index.and_then(|_| note.reference.parse().ok());
        found.extend(reference.filter(|reference| !found.contains(reference)));
    }
    found
}
