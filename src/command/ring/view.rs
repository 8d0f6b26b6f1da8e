//! Entries as they are shown. The names of the JSON fields are fixed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::human_bytes;
use crate::ids::{Digest, LayerId};
use crate::ring::entry::{Entry, Reason, timestamp};
use crate::ring::state::RingState;

/// Whether an entry has become blobs yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Sealed,
    Packed,
}

/// One entry.
#[derive(Debug, Serialize)]
pub(super) struct EntryView {
    pub seq: u64,
    pub id: String,
    pub parent: Option<u64>,
    pub created: String,
    pub reason: Reason,
    pub exit_code: Option<i32>,
    pub state: State,
    pub synced: bool,
    pub base: String,
    /// Whether what it stands on is still where it was.
    pub base_present: bool,
    pub digest: Option<Digest>,
    pub added_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub layers: Vec<LayerId>,
    /// The entry of another ring that this one is the fork of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<String>,
    /// Volumes whose changes it has, and what they stand on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<PathBuf, String>,
    /// Bytes on disk of the processes that it was saved with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    pub pinned: bool,
    /// Whether the next run starts here.
    pub next: bool,
    /// Whether that run brings its processes back; absent if not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub revived: bool,
    /// Whether it stands beside the main line: only its number or tag finds it.
    pub side: bool,
}

impl EntryView {
    pub(super) fn new(ring: &RingState, entry: &Entry) -> Self {
        let bytes = ring.bytes_of(entry);
        Self {
            seq: entry.seq,
            id: entry.id.clone(),
            parent: entry.parent,
            created: timestamp(entry.created),
            reason: entry.reason,
            exit_code: entry.exit_code,
            state: if entry.manifest.is_some() { State::Packed } else { State::Sealed },
            synced: entry.synced,
            base: entry.base.clone(),
            base_present: ring.base_directories(&entry.base).is_some(),
            digest: entry.manifest.clone(),
            added_bytes: bytes.map(|(added, _)| added),
            total_bytes: bytes.map(|(_, total)| total),
            layers: entry.layers.clone(),
            forked_from: entry.forked_from.clone(),
            volumes: entry.volumes.clone(),
            memory_bytes: entry.memory_bytes,
            pinned: entry.pinned,
            next: ring.next == Some(entry.seq),
            revived: ring.revived_next().is_some_and(|next| next.seq == entry.seq),
            side: entry.side,
        }
    }

    /// What there is to say beside the columns.
    pub(super) fn notes(&self) -> String {
        let notes = [
            (self.next && !self.revived, "next"),
            (self.revived, "next with its processes"),
            (self.memory_bytes.is_some() && !self.revived, "with processes"),
            (self.side, "side"),
            (self.pinned, "pinned"),
            (!self.base_present, "base gone"),
            (self.state == State::Packed && !self.synced, "maybe torn"),
        ];
        let plain = notes.iter().filter(|(holds, _)| *holds).map(|(_, note)| (*note).to_owned());
        let fork = self.forked_from.iter().map(|from| format!("of {from}"));
        plain.chain(fork).collect::<Vec<_>>().join(", ")
    }
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Packed => "packed",
        }
    }
}

/// A size for people; `-` while it is not known.
pub(super) fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), human_bytes)
}
