//! One element of a ring.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, LayerId};
use crate::sys::xattr::OverlayClass;

/// A run shorter than this that failed by itself was a broken start, seconds.
const BROKEN_START: i64 = 60;

/// A saved state: where it stands in the ring, and which layers give its file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the ring, counted from 1 and never used twice.
    pub seq: u64,
    /// The tag in the ring's OCI layout.
    pub id: String,
    /// The entry that the run started from; `None` for the bare base.
    pub parent: Option<u64>,
    /// When it was sealed; never earlier than the entry before it.
    pub created: DateTime<Utc>,
    /// Why there is an entry.
    pub reason: Reason,
    /// What the container's first process ended with, where it is known.
    pub exit_code: Option<i32>,
    /// How the run is judged when entries have to go.
    pub outcome: Outcome,
    /// Whether its content is known to have reached the disk.
    pub synced: bool,
    /// The boot in which it was sealed.
    pub boot_id: String,
    /// The fingerprint of what its layers stand on.
    pub base: String,
    /// How overlay attributes are spelled in its layers.
    pub class: OverlayClass,
    /// How ids inside the container are those in its layers; `None` if they are the same.
    #[serde(default)]
    pub id_map: Option<String>,
    /// Its layers, lowest first; the last one is what the run itself left.
    pub layers: Vec<LayerId>,
    /// Whether eviction passes over it.
    pub pinned: bool,
    /// Whether it stands beside the main line: what a run left that had given the ring to a successor by then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub side: bool,
    /// The entry of another ring that the ring began with as its fork, `root/alice@42`; `None` for every other entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<String>,
    /// Volumes whose changes are in its layers: where the container saw them, and the fingerprints of what they stand on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<PathBuf, String>,
    /// Bytes on disk of the processes that it was saved with; `None` if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The manifest in the ring's OCI layout; `None` while only sealed.
    pub manifest: Option<Digest>,
}

/// Why there is an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The container ended.
    Exit,
    /// It was asked for while the container ran.
    Snapshot,
    /// Container and runtime died together; the upper was found.
    Recovered,
    /// It stands for a rollback.
    Rollback,
    /// It came from somewhere else.
    Import,
    /// The ring began with it as the fork of another.
    Fork,
}

/// How a run ended, as far as keeping its state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Ended with 0, was stopped on request, or lived long enough: the newest such entry is never evicted.
    Good,
    /// Failed by itself soon after its start: several in a row are kept as one.
    Failed,
    /// Nobody saw how it ended.
    Unknown,
}

/// What is known of the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The exit status, 128 + n for a signal.
    pub exit_code: Option<i32>,
    /// Whether somebody asked for the end by a signal through the runtime.
    pub requested: bool,
}

impl Outcome {
    /// Judges a run that began at `started`, of which nothing is known but this.
    #[must_use]
    pub fn of(ending: Ending, started: DateTime<Utc>, ended: DateTime<Utc>) -> Self {
        if ending.requested || ending.exit_code == Some(0) || (ended - started).num_seconds() >= BROKEN_START {
            return Self::Good;
        }
        match ending.exit_code {
            Some(_) => Self::Failed,
            None => Self::Unknown,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Exit => "exit",
            Self::Snapshot => "snapshot",
            Self::Recovered => "recovered",
            Self::Rollback => "rollback",
            Self::Import => "import",
            Self::Fork => "fork",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        })
    }
}

/// The tag of an entry: sorts by time, then by number, and is valid in every registry.
#[must_use]
pub fn tag(created: DateTime<Utc>, seq: u64) -> String {
    format!("{}-{seq:06}", created.format("%Y%m%dT%H%M%SZ"))
}

/// Whether [`tag`] could have given this for the entry of that number.
#[must_use]
pub fn is_tag_of(text: &str, seq: u64) -> bool {
    text.split_once('-').is_some_and(|(time, number)| {
        number == format!("{seq:06}") && NaiveDateTime::parse_from_str(time, "%Y%m%dT%H%M%SZ").is_ok()
    })
}

/// RFC 3339 with nanoseconds, as all times are written.
#[must_use]
pub fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use chrono::TimeDelta;

    pub fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + second, 0).unwrap()
    }

    /// An entry that stands on all earlier ones.
    pub fn entry(seq: u64, outcome: Outcome) -> Entry {
        let layer = |n: u64| format!("{n:032x}").parse().unwrap();
        Entry {
            seq,
            id: tag(at(i64::try_from(seq).unwrap()), seq),
            parent: seq.checked_sub(1).filter(|parent| *parent > 0),
            created: at(i64::try_from(seq).unwrap()),
            reason: Reason::Exit,
            exit_code: Some(i32::from(outcome == Outcome::Failed)),
            outcome,
            synced: true,
            boot_id: "boot".into(),
            base: "base".into(),
            class: OverlayClass::Trusted,
            id_map: None,
            layers: (1..=seq).map(layer).collect(),
            pinned: false,
            side: false,
            forked_from: None,
            volumes: BTreeMap::new(),
            memory_bytes: None,
            manifest: None,
        }
    }

    /// The same beside the main line.
    pub fn side(seq: u64, outcome: Outcome) -> Entry {
        Entry { side: true, ..entry(seq, outcome) }
    }

    #[test]
    fn a_run_is_judged_by_code_request_and_age() {
        let start = at(0);
        let soon = start + TimeDelta::seconds(59);
        let late = start + TimeDelta::seconds(60);
        let ending = |exit_code, requested| Ending { exit_code, requested };
        assert_eq!(Outcome::of(ending(Some(0), false), start, soon), Outcome::Good);
        assert_eq!(Outcome::of(ending(Some(1), false), start, soon), Outcome::Failed);
        assert_eq!(Outcome::of(ending(Some(143), true), start, soon), Outcome::Good);
        assert_eq!(Outcome::of(ending(Some(1), false), start, late), Outcome::Good);
        assert_eq!(Outcome::of(ending(None, false), start, soon), Outcome::Unknown);
    }

    #[test]
    fn a_tag_is_valid_and_sorts() {
        assert_eq!(tag(at(0), 42), "20260921T141320Z-000042");
        assert!(tag(at(0), 9) < tag(at(0), 10));
        assert!(is_tag_of(&tag(at(0), 42), 42));
        assert!(!is_tag_of(&tag(at(0), 42), 43) && !is_tag_of("kept-000042", 42));
    }
}
