//! `ring.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::elsewhere::Elsewhere;
use super::entry::{Entry, Reason};
use super::keep::Keep;
use super::selector::{Selected, Selector, select};
use super::side::Side;
use super::slot::{self, Held, Limits};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{ContainerId, Digest, LayerId};
use crate::store::format::{ELSEWHERE, Format, KEEP, MEMORY, SIDES, VOLUMES};
use crate::sys::fs::{Durability, read_capped, replace_file};

pub(super) const NAME: &str = "ring.json";
/// Ten thousand entries with chains of a hundred layers are a fraction of this.
const CAP: u64 = 256 * 1024 * 1024;

/// All that is known of a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    #[serde(flatten)]
    format: Format,
    /// The most entries.
    pub depth: usize,
    /// The most bytes on disk of what only this ring needs.
    pub max_bytes: Option<u64>,
    /// Which entries are kept whatever the depth.
    #[serde(default, skip_serializing_if = "Keep::is_nothing")]
    pub keep: Keep,
    /// The number of the newest entry that there ever was.
    pub last_seq: u64,
    /// Where the next run starts; `None` for the bare base.
    pub next: Option<u64>,
    /// Whether the next run brings back the processes that this entry was saved with.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revive: bool,
    /// The run that holds the ring.
    pub run: Option<LayerId>,
    /// Runs that gave the ring to a successor and are not over yet, in the order in which they did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sides: Vec<Side>,
    /// A run whose container stands still, for as long as whoever has the ring's lock lives: it goes on then at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<LayerId>,
    /// Why no run may start from it here; `None` if one may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
    /// The container for which it was made as a fork; `None` for a ring that somebody made for its own sake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<ContainerId>,
    /// How often it went from one node to another.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub moves: u64,
    /// When the newest run ended, also if it changed nothing.
    pub last_exit: Option<DateTime<Utc>>,
    /// The boot in which files beside this one were made that nobody has flushed since; `None` if all of them are on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unflushed: Option<String>,
    /// A seal that has begun; it is finished by whoever locks the ring next.
    pub journal: Option<Journal>,
    /// The entries by number.
    pub entries: Vec<Entry>,
    /// Where the bases of its entries were last seen, by fingerprint; uppermost directory first.
    pub bases: BTreeMap<String, Vec<PathBuf>>,
    /// What is known of packed layers.
    pub layers: BTreeMap<LayerId, LayerRecord>,
    /// What took the place of packs that manifests of entries still list, in the order in which it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repacked: Vec<Repacked>,
}

/// A seal between its first and its last step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The entry that the run's upper becomes; its last layer has the run's id. A snapshot's run is one that nobody ever
    /// ran on: its upper is the copy.
    pub entry: Entry,
}

/// A layer that has been packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Bytes on disk of its directory.
    pub disk_bytes: u64,
    /// The blobs from which it can be rebuilt, lowest first; several if it was folded.
    pub packs: Vec<PackRecord>,
    /// The layers that were merged into this one, for runs that still stand on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folded_from: Vec<LayerId>,
    /// Bytes on disk of what the packs hold, one beside the other; `None` if that is what the directory takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfolded_bytes: Option<u64>,
    /// What it hides of layers below it that could be merged with it; `None` if nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hides: Option<Hides>,
}

/// A pack of a layer, and those from which it was rebuilt before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repacked {
    /// Of the new blob.
    pub digest: Digest,
    /// The old ones, lowest first.
    pub replaces: Vec<PackRecord>,
}

/// How much of other layers never shows because of one above them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hides {
    /// The lowest layer that was looked at.
    pub down_to: LayerId,
    /// Bytes on disk, of each layer of which it hides any.
    pub bytes: BTreeMap<LayerId, u64>,
}

/// A blob in the ring's layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRecord {
    /// Of the blob.
    pub digest: Digest,
    /// Of the tar stream in it.
    pub diff_id: Digest,
    /// The blob's size, bytes.
    pub bytes: u64,
    /// The OCI media type, which names the compression.
    pub media_type: String,
}

impl RingState {
    /// An empty ring.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            format: Format::default(),
            depth: limits.depth,
            max_bytes: limits.max_bytes,
            keep: Keep::default(),
            last_seq: 0,
            next: None,
            revive: false,
            run: None,
            sides: Vec::new(),
            frozen: None,
            elsewhere: None,
            made_for: None,
            moves: 0,
            last_exit: None,
            unflushed: None,
            journal: None,
            entries: Vec::new(),
            bases: BTreeMap::new(),
            layers: BTreeMap::new(),
            repacked: Vec::new(),
        }
    }

    pub(super) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        let operation = || format!("read {}", quote(&path));
        let content = read_capped(&path, CAP)?;
        // The version first: a newer format may not have the same fields.
        let format: Format = serde_json::from_slice(&content).map_err(|error| damaged(&path, &error))?;
        format.check(&operation())?;
        let state: Self = serde_json::from_slice(&content).map_err(|error| damaged(&path, &error))?;
        state.check().map_err(|cause| Error::new(Kind::Damaged, operation(), cause))?;
        Ok(state)
    }

    pub(super) fn write(&mut self, directory: &Path, durability: Durability) -> Result<()> {
        replace_file(directory, NAME, &self.text()?, durability)
    }

    /// What is written: with the features that whoever reads it has to know.
    pub(super) fn text(&mut self) -> Result<Vec<u8>> {
        let entries = self.entries.iter().chain(self.journal.as_ref().map(|journal| &journal.entry));
        let beside = |entry: &Entry| entry.side;
        // Who does not know snapshots would take the ring from the run that lives when it finishes one.
        let cut_short = |journal: &Journal| journal.entry.reason == Reason::Snapshot;
        if !self.sides.is_empty() || entries.into_iter().any(beside) || self.journal.as_ref().is_some_and(cut_short) {
            self.format.require(SIDES);
        } else {
            self.format.release(SIDES);
        }
        if self.keep.is_nothing() {
            self.format.release(KEEP);
        } else {
            self.format.require(KEEP);
        }
        let entries = self.entries.iter().chain(self.journal.as_ref().map(|journal| &journal.entry));
        if entries.into_iter().any(|entry| !entry.volumes.is_empty()) {
            self.format.require(VOLUMES);
        } else {
            self.format.release(VOLUMES);
        }
        let entries = self.entries.iter().chain(self.journal.as_ref().map(|journal| &journal.entry));
        if entries.into_iter().any(|entry| entry.memory_bytes.is_some()) {
            self.format.require(MEMORY);
        } else {
            self.format.release(MEMORY);
        }
        match self.elsewhere {
            Some(_) => self.format.require(ELSEWHERE),
            None => self.format.release(ELSEWHERE),
        }
        serde_json::to_vec(self).context(|| "write ring.json")
    }

    /// What must hold between the fields, whoever wrote them.
    fn check(&self) -> std::result::Result<(), String> {
        if self.depth == 0 {
            return Err("depth is 0".into());
        }
        if !self.entries.is_sorted_by(|a, b| a.seq < b.seq) {
            return Err("its entries are out of order".into());
        }
        if self.entries.last().is_some_and(|newest| newest.seq > self.last_seq) {
            return Err("last_seq is lower than the newest entry".into());
        }
        if self.entries.iter().any(|entry| entry.layers.is_empty()) {
            return Err("an entry has no layers".into());
        }
        let mut runs: Vec<_> = self.sides.iter().map(|side| &side.run).chain(&self.run).collect();
        runs.sort_unstable();
        if runs.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("it names a run twice".into());
        }
        match self.next {
            Some(next) if self.entry(next).is_none() => Err(format!("next points to @{next}, which is not there")),
            _ => Ok(()),
        }
    }

    /// Lets the next run start there, with its program.
    pub(super) fn set_next(&mut self, next: Option<u64>) {
        (self.next, self.revive) = (next, false);
    }

    /// The entry whose processes the next run brings back.
    #[must_use]
    pub fn revived_next(&self) -> Option<&Entry> {
        let entry = self.next.and_then(|seq| self.entry(seq)).filter(|_| self.revive);
        entry.filter(|entry| entry.memory_bytes.is_some())
    }

    /// Has entries only, and none of the processes that they were saved with.
    pub(super) fn forget_memory(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.memory_bytes = None);
        self.revive = false;
    }

    /// The limits that eviction keeps.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { depth: self.depth, max_bytes: self.max_bytes }
    }

    /// The entry with a number.
    #[must_use]
    pub fn entry(&self, seq: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.seq == seq)
    }

    /// The newest entry of the main line.
    #[must_use]
    pub fn newest(&self) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| !entry.side)
    }

    /// Whether a worker has nothing to do for its entries: all are packed and known to be on disk.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.entries.iter().all(|entry| entry.synced && entry.manifest.is_some())
    }

    /// The runs that it names, with the ring or beside its main line.
    pub fn runs(&self) -> impl Iterator<Item = &LayerId> {
        self.run.iter().chain(self.sides.iter().map(|side| &side.run))
    }

    pub(super) fn entry_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.seq == seq)
    }

    /// Where a run starts that says `selector`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such entry.
    pub fn select_start(&self, selector: &Selector) -> Result<Selected<'_>> {
        select(&self.entries, selector, self.next, Utc::now())
    }

    /// What a look at `selector` means; where nothing is said, the newest entry.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such entry.
    pub fn select_view(&self, selector: &Selector) -> Result<Selected<'_>> {
        let newest = self.newest().map(|entry| entry.seq);
        select(&self.entries, selector, newest, Utc::now())
    }

    /// All packs that are on disk, also those that only manifests need; one that has been replaced twice comes twice.
    pub(super) fn packs(&self) -> impl Iterator<Item = &PackRecord> {
        let replaced = self.repacked.iter().flat_map(|note| &note.replaces);
        self.layers.values().flat_map(|layer| &layer.packs).chain(replaced)
    }

    /// Bytes on disk of each packed layer with its packs, also those that only manifests need.
    #[must_use]
    pub fn sizes(&self) -> HashMap<LayerId, u64> {
        let size = |layer: &LayerRecord| layer.total_bytes() + self.replaced_bytes(layer);
        self.layers.iter().map(|(id, layer)| (id.clone(), size(layer))).collect()
    }

    fn replaced_bytes(&self, layer: &LayerRecord) -> u64 {
        let mut seen: HashSet<&Digest> = layer.packs.iter().map(|pack| &pack.digest).collect();
        let mut bytes = 0;
        // The newest first: what was replaced may have replaced others.
        for note in self.repacked.iter().rev() {
            if seen.contains(&note.digest) {
                let old = note.replaces.iter().filter(|pack| seen.insert(&pack.digest));
                bytes += old.map(|pack| pack.bytes).sum::<u64>();
            }
        }
        bytes
    }

    /// Bytes on disk of all that is packed, and of processes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        slot::bytes(self.entries.iter(), &self.sizes())
    }

    /// What `entry` added, and what its whole chain takes, bytes on disk; `None` while it is only sealed.
    #[must_use]
    pub fn bytes_of(&self, entry: &Entry) -> Option<(u64, u64)> {
        entry.manifest.as_ref()?;
        let sizes = self.sizes();
        let added = entry.layers.last().and_then(|layer| sizes.get(layer)).copied().unwrap_or_default();
        let added = added + entry.memory_bytes.unwrap_or(0);
        Some((added, slot::bytes(std::iter::once(entry), &sizes)))
    }

    /// Where its entries have volumes, below the root.
    pub(super) fn volumes(&self) -> Vec<PathBuf> {
        let places: BTreeSet<_> = self.entries.iter().flat_map(|entry| entry.volumes.keys()).collect();
        places.into_iter().map(|place| place.strip_prefix("/").unwrap_or(place).to_owned()).collect()
    }

    /// The directories of a base, if all of them are still there.
    #[must_use]
    pub fn base_directories(&self, fingerprint: &str) -> Option<Vec<PathBuf>> {
        let directories = self.bases.get(fingerprint)?;
        let present = !directories.is_empty() && directories.iter().all(|directory| directory.is_dir());
        present.then(|| directories.clone())
    }

    pub(super) fn plan_eviction(&self, in_use: &[u64]) -> Vec<u64> {
        let held = Held { next: self.next, in_use };
        slot::plan_eviction(&self.entries, held, self.limits(), self.keep, &self.sizes())
    }

    /// Forgets layers that no entry has any more.
    pub(super) fn forget_unused_layers(&mut self) {
        let used: HashSet<_> = self.entries.iter().flat_map(|entry| &entry.layers).collect();
        self.layers.retain(|id, _| used.contains(id));
        let bases: HashSet<_> = self.entries.iter().map(|entry| &entry.base).collect();
        self.bases.retain(|base, _| bases.contains(base));
    }
}

impl LayerRecord {
    /// A layer that takes `disk_bytes` and can be rebuilt from `packs`, lowest first.
    #[must_use]
    pub fn new(disk_bytes: u64, packs: Vec<PackRecord>) -> Self {
        Self { disk_bytes, packs, folded_from: Vec::new(), unfolded_bytes: None, hides: None }
    }

    /// Bytes on disk of directory and packs.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.disk_bytes + self.packs.iter().map(|pack| pack.bytes).sum::<u64>()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn damaged(path: &Path, error: &serde_json::Error) -> Error {
    Error::new(Kind::Damaged, format!("read {}", quote(path)), error.to_string())
        .next("put the file back from a backup; the entries' packs beside it are untouched")
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::{entry, side};
    use super::*;

    fn state() -> RingState {
        let mut state = RingState::new(Limits { depth: 8, max_bytes: None });
        state.entries = vec![entry(1, Outcome::Good), entry(2, Outcome::Good)];
        state.last_seq = 2;
        state.next = Some(2);
        state
    }

    fn read_back(change: impl FnOnce(&mut RingState)) -> Result<RingState> {
        let directory = tempfile::tempdir().unwrap();
        let mut state = state();
        change(&mut state);
        state.write(directory.path(), Durability::Whole).unwrap();
        RingState::read(directory.path())
    }

    #[test]
    fn a_state_survives_the_disk() {
        assert_eq!(read_back(|_| {}).unwrap(), state());
    }

    #[test]
    fn a_state_that_contradicts_itself_is_damaged() {
        assert_eq!(read_back(|state| state.next = Some(7)).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(read_back(|state| state.entries.reverse()).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(read_back(|state| state.last_seq = 1).unwrap_err().kind(), Kind::Damaged);
        let run: LayerId = "ab".repeat(16).parse().unwrap();
        let side = Side { run: run.clone(), snapshot: None, next: None, last_seq: 2, successor: None };
        let twice = |state: &mut RingState| (state.run, state.sides) = (Some(run), vec![side]);
        assert_eq!(read_back(twice).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_ring_with_anything_beside_its_main_line_is_refused_by_those_who_do_not_know_that() {
        let written = |change: &dyn Fn(&mut RingState)| {
            let directory = tempfile::tempdir().unwrap();
            let mut state = state();
            change(&mut state);
            state.write(directory.path(), Durability::Whole).unwrap();
            std::fs::read_to_string(directory.path().join(NAME)).unwrap()
        };
        let required = r#""incompatible":["sides"]"#;
        let run: LayerId = "ab".repeat(16).parse().unwrap();
        let beside = Side { run, snapshot: None, next: None, last_seq: 2, successor: None };
        assert!(written(&|state| state.entries[1].side = true).contains(required));
        assert!(written(&|state| state.sides.push(beside.clone())).contains(required));
        let snapshot = Entry { reason: Reason::Snapshot, ..entry(3, Outcome::Good) };
        assert!(written(&|state| state.journal = Some(Journal { entry: snapshot.clone() })).contains(required));
        let plain = written(&|state| state.entries.push(Entry { reason: Reason::Snapshot, ..entry(2, Outcome::Good) }));
        assert!(!plain.contains("sides") && !plain.contains("side") && !plain.contains("frozen"), "{plain}");
        let mut state = state();
        state.format.require(SIDES);
        let directory = tempfile::tempdir().unwrap();
        state.write(directory.path(), Durability::Whole).unwrap();
        assert_eq!(RingState::read(directory.path()).unwrap().format, Format::default(), "it is let go of again");
    }

    #[test]
    fn the_newest_entry_is_one_of_the_main_line() {
        let mut state = state();
        state.entries.push(side(3, Outcome::Good));
        assert_eq!(state.newest().map(|entry| entry.seq), Some(2));
        assert!(matches!(state.select_view(&Selector::Unsaid), Ok(Selected::Entry(entry)) if entry.seq == 2));
    }

    #[test]
    fn an_unsaid_selector_is_the_next_start_for_runs_and_the_newest_for_looks() {
        let mut state = state();
        state.next = Some(1);
        assert!(matches!(state.select_start(&Selector::Unsaid), Ok(Selected::Entry(entry)) if entry.seq == 1));
        assert!(matches!(state.select_view(&Selector::Unsaid), Ok(Selected::Entry(entry)) if entry.seq == 2));
    }
}
