//! A ring in a registry: what it says of itself there, and what is taken from there.
//!
//! Each entry is its manifest under its own tag. Beside them lies an index under [`RING_TAG`]: it lists the entries that the
//! ring has now, because a registry keeps tags of evicted ones, and says what no manifest can, because it may change: pins,
//! limits, where the next run starts. Without it, as where other tools copied the entries, every tag of an entry counts.
//!
//! A registry is foreign: what is read here is checked for everything that the rest of regen takes for granted of its own.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use super::Ring;
use super::elsewhere::Elsewhere;
use super::entry::{Entry, is_tag_of, timestamp};
use super::index::OURS;
use super::keep::Keep;
use super::offer::{Offer, parse_time};
use super::state::{LayerRecord, PackRecord, RingState};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{Digest, LayerId, RingName};
use crate::image::layout::Layout;
use crate::image::manifest::{Descriptor, INDEX_TYPE, Index, MANIFEST_TYPE, REF_NAME};

/// The tag of a ring's index in a registry.
pub const RING_TAG: &str = "regen-ring";
/// The media type of that index.
pub const RING_TYPE: &str = INDEX_TYPE;
/// Where the next run starts, if that is no entry.
const BASE: &str = "base";
const PINNED: &str = "run.regen.entry.pinned";
/// The most entries of a ring that is fetched, and the most depth that it may ask for.
const ENTRIES_MAX: usize = 10_000;
/// No ring gets there in its life; one more can always be counted.
const SEQ_MAX: u64 = 1 << 48;

/// An entry that a registry lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub seq: u64,
    /// Its tag.
    pub id: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Whether eviction passes over it.
    pub pinned: bool,
}

/// What a ring says of itself in its index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// The most entries.
    pub depth: Option<usize>,
    /// The most bytes.
    pub max_bytes: Option<u64>,
    /// Which entries are kept whatever the depth.
    pub keep: Keep,
    /// Where the next run starts.
    pub next: Next,
    /// The number of the newest entry that there ever was.
    pub last_seq: u64,
    /// When its newest run ended.
    pub last_exit: Option<DateTime<Utc>>,
    /// How often it went from one node to another.
    pub moves: u64,
}

/// Where the next run on a ring starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Next {
    /// Nobody says: from the newest entry.
    #[default]
    Unsaid,
    /// From the bare base.
    Base,
    /// From an entry.
    Entry(u64),
}

/// What is added to a ring.
#[derive(Debug, Default)]
pub struct Delivery {
    /// All entries of the ring there.
    pub listed: Vec<Listed>,
    /// The new entries, oldest first.
    pub offers: Vec<Offer>,
    /// What was unpacked for them: for a pack's digest its layer, and the bytes that this takes on disk.
    pub layers: HashMap<Digest, (LayerId, u64)>,
    /// The directories of bases that came along, by fingerprint; uppermost first.
    pub bases: BTreeMap<String, Vec<PathBuf>>,
    /// What the ring says of itself.
    pub terms: Terms,
}

/// For whom a ring is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A copy: limits of a ring that was here stay.
    Copy,
    /// The ring itself: from now on it is at home here.
    Home,
}

/// A part of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The ring has it.
    Layer(LayerId),
    /// It has to be unpacked.
    Pack(PackRecord),
}

/// The index that stands for a ring in a registry. All its entries are packed.
///
/// # Errors
/// [`Kind::State`] if one is not packed; those of looking at manifests.
pub fn describe(ring: &Ring, state: &RingState) -> Result<Index> {
    let layout = Layout::open(ring.directory())?;
    let mut index = Index::default();
    for entry in &state.entries {
        let unpacked = || Error::new(Kind::State, format!("describe entry @{}", entry.seq), "it is not packed yet");
        let manifest = entry.manifest.as_ref().ok_or_else(unpacked)?;
        let path = layout.blob_path(manifest);
        let size = std::fs::metadata(&path).context(|| format!("look at {}", quote(&path)))?.len();
        let mut descriptor = Descriptor::new(MANIFEST_TYPE, manifest, size);
        descriptor.annotations.insert(REF_NAME.to_owned(), entry.id.clone());
        descriptor.annotations.insert(OURS.to_owned(), entry.seq.to_string());
        if entry.pinned {
            descriptor.annotations.insert(PINNED.to_owned(), "true".to_owned());
        }
        index.manifests.push(descriptor);
    }
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            index.annotate(&format!("run.regen.ring{name}"), &value);
        }
    };
    say("", Some(ring.name().to_string()));
    say(".depth", Some(state.depth.to_string()));
    say(".max-bytes", state.max_bytes.map(|bytes| bytes.to_string()));
    let keep = serde_json::to_string(&state.keep).context(|| "write the ring's rules")?;
    say(".keep", Some(keep).filter(|_| !state.keep.is_nothing()));
    say(".next", Some(state.next.map_or_else(|| BASE.to_owned(), |seq| seq.to_string())));
    say(".last-seq", Some(state.last_seq.to_string()));
    say(".last-exit", state.last_exit.map(timestamp));
    say(".moves", Some(state.moves).filter(|moves| *moves > 0).map(|moves| moves.to_string()));
    Ok(index)
}

/// Reads a ring's index.
///
/// # Errors
/// [`Kind::Invalid`] if it is none, or one that contradicts itself.
pub fn read_index(bytes: &[u8]) -> Result<(Vec<Listed>, Terms)> {
    let operation = || "read the ring's index";
    let refuse = |cause: String| Error::new(Kind::Invalid, operation(), cause);
    let index = Index::parse(bytes).context(operation)?;
    let mut listed = Vec::new();
    for descriptor in &index.manifests {
        let seq = descriptor.annotations.get(OURS).and_then(|seq| seq.parse().ok());
        let tag = descriptor.tag().unwrap_or_default();
        let seq = seq.filter(|seq| is_tag_of(tag, *seq)).ok_or_else(|| refuse("it lists what is no entry".into()))?;
        let pinned = descriptor.annotations.contains_key(PINNED);
        listed.push(Listed { seq, id: tag.to_owned(), manifest: descriptor.digest()?, pinned });
    }
    check_list(&listed)?;
    let number = |name: &str| match index.annotation(&format!("run.regen.ring{name}")) {
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| refuse(format!("its '{name}' is no number"))),
        None => Ok(None),
    };
    let last_exit = index.annotation("run.regen.ring.last-exit").map(parse_time).transpose()?;
    let depth =
        number(".depth")?.and_then(|depth| usize::try_from(depth).ok()).map(|depth| depth.clamp(1, ENTRIES_MAX));
    let next = match index.annotation("run.regen.ring.next") {
        Some(BASE) => Next::Base,
        Some(_) => number(".next")?.map_or(Next::Unsaid, Next::Entry),
        None => Next::Unsaid,
    };
    let newest = listed.last().map_or(0, |entry| entry.seq);
    let last_seq = number(".last-seq")?.unwrap_or(0).clamp(newest, SEQ_MAX);
    let (max_bytes, moves) = (number(".max-bytes")?, number(".moves")?.unwrap_or(0).min(SEQ_MAX));
    let keep = index.annotation("run.regen.ring.keep").map(serde_json::from_str).transpose();
    let keep = keep.map_err(|error| refuse(format!("its rules make no sense: {error}")))?.unwrap_or_default();
    Ok((listed, Terms { depth, max_bytes, keep, next, last_seq, last_exit, moves }))
}

/// What a ring that has no index says of itself: the newest entry is where the next run starts.
#[must_use]
pub fn terms_without_index(listed: &[Listed]) -> Terms {
    let last_seq = listed.last().map_or(0, |entry| entry.seq);
    Terms { last_seq, ..Terms::default() }
}

/// The tag in a ring's layout of a base that came along with an entry, by its fingerprint.
#[must_use]
pub fn base_tag(fingerprint: &str) -> String {
    format!("base-{}", fingerprint.trim_start_matches("image:"))
}

/// The number of an entry with this tag; `None` for every other tag.
#[must_use]
pub fn seq_of_tag(tag: &str) -> Option<u64> {
    let seq = tag.split_once('-')?.1.parse().ok()?;
    is_tag_of(tag, seq).then_some(seq)
}

/// What must hold of a list of entries.
///
/// # Errors
/// [`Kind::Invalid`].
pub fn check_list(listed: &[Listed]) -> Result<()> {
    let refuse = |cause: &str| Err(Error::new(Kind::Invalid, "read the list of entries", cause));
    if listed.len() > ENTRIES_MAX {
        return refuse("it has too many entries");
    }
    if !listed.is_sorted_by(|a, b| a.seq < b.seq) {
        return refuse("its entries are out of order");
    }
    if listed.iter().any(|entry| entry.seq == 0 || entry.seq > SEQ_MAX) {
        return refuse("an entry has a number that no ring gives");
    }
    Ok(())
}

/// Which of the listed entries a ring lacks. It must have come from the same line: what both have is the same, and what
/// is new follows the newest that is here. One that comes home replaces what stayed behind when it went. Pure.
///
/// # Errors
/// [`Kind::State`] if they have diverged, naming the entry.
pub fn missing<'a>(name: &RingName, state: &RingState, listed: &'a [Listed], role: Role) -> Result<Vec<&'a Listed>> {
    if replaces(state, role) {
        return Ok(listed.iter().filter(|other| !state.entries.iter().any(|entry| is_same(entry, other))).collect());
    }
    let refuse = |cause: String| {
        Err(Error::new(Kind::State, format!("pull into ring '{name}'"), cause)
            .next("pull into a ring of another name, or remove this one first"))
    };
    for entry in &state.entries {
        let Some(other) = listed.iter().find(|other| other.seq == entry.seq) else { continue };
        if !is_same(entry, other) {
            return refuse(format!("the two have diverged: @{} is another entry there", entry.seq));
        }
    }
    let new: Vec<_> = listed.iter().filter(|entry| entry.seq > state.last_seq).collect();
    let newest = state.entries.last().map(|entry| entry.seq);
    let follows = newest.is_some_and(|newest| listed.iter().any(|entry| entry.seq == newest));
    if !new.is_empty() && state.last_seq > 0 && !follows {
        let last = newest.unwrap_or(state.last_seq);
        return refuse(format!("what is there does not follow its newest entry, @{last}"));
    }
    Ok(new)
}

/// Whether what is here is a copy that stayed behind when the ring went to another node, and gives way to it.
pub(super) fn replaces(state: &RingState, role: Role) -> bool {
    role == Role::Home && matches!(state.elsewhere, Some(Elsewhere::Away { .. }))
}

pub(super) fn is_same(entry: &Entry, listed: &Listed) -> bool {
    (entry.seq, &entry.id, entry.manifest.as_ref()) == (listed.seq, &listed.id, Some(&listed.manifest))
}

/// Which layers of the ring stand for a chain of packs, and which packs have none. A layer that was folded stands for
/// several. Pure.
#[must_use]
pub fn resolve(state: &RingState, packs: &[PackRecord]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = packs;
    while let Some(first) = rest.first() {
        let fits = |record: &LayerRecord| {
            let (own, there) = (&record.packs, rest.get(..record.packs.len()));
            there.is_some_and(|there| !own.is_empty() && own.iter().zip(there).all(|(a, b)| a.digest == b.digest))
        };
        let known = state.layers.iter().filter(|(_, record)| fits(record));
        match known.max_by_key(|(_, record)| record.packs.len()) {
            Some((id, record)) => {
                parts.push(Part::Layer(id.clone()));
                rest = &rest[record.packs.len()..];
            }
            None => {
                parts.push(Part::Pack(first.clone()));
                rest = &rest[1..];
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::super::slot::Limits;
    use super::*;
    use crate::image::layout::digest_of;

    fn listed(seq: u64) -> Listed {
        let id = entry(seq, Outcome::Good).id;
        Listed { seq, manifest: digest_of(id.as_bytes()), id, pinned: false }
    }

    fn ring(seqs: &[u64]) -> RingState {
        let mut state = RingState::new(Limits { depth: 8, max_bytes: None });
        for seq in seqs {
            let manifest = Some(listed(*seq).manifest);
            state.entries.push(Entry { manifest, ..entry(*seq, Outcome::Good) });
            state.last_seq = *seq;
        }
        state
    }

    fn lacks(state: &RingState, there: &[Listed]) -> Result<Vec<u64>> {
        let name = RingName::parse("root/a", &"root".parse().unwrap()).unwrap();
        Ok(missing(&name, state, there, Role::Copy)?.iter().map(|entry| entry.seq).collect())
    }

    #[test]
    fn a_ring_takes_what_follows_its_newest_entry() {
        let there: Vec<_> = (2..=4).map(listed).collect();
        assert_eq!(lacks(&ring(&[]), &there).unwrap(), [2, 3, 4]);
        assert_eq!(lacks(&ring(&[1, 2, 3]), &there).unwrap(), [4]);
        assert_eq!(lacks(&ring(&[1, 2, 3, 4]), &there).unwrap(), [0; 0]);
        // It evicted what it does not have.
        assert_eq!(lacks(&ring(&[3]), &there).unwrap(), [4]);
        // It is ahead of what is there.
        assert_eq!(lacks(&ring(&[3, 4, 5]), &there).unwrap(), [0; 0]);
    }

    #[test]
    fn a_ring_that_has_diverged_takes_nothing() {
        let mut there: Vec<_> = (2..=4).map(listed).collect();
        assert!(lacks(&ring(&[1]), &there).is_err(), "nobody knows whether @2 followed this @1");
        there[1].manifest = digest_of(b"other");
        let line = lacks(&ring(&[1, 2, 3]), &there).unwrap_err().to_string();
        assert!(line.contains("diverged: @3") && !line.contains('\n'), "{line}");
        let mut sealed = ring(&[1, 2, 3]);
        sealed.entries[2].manifest = None;
        assert!(lacks(&sealed, &(2..=4).map(listed).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn a_ring_that_comes_home_replaces_what_stayed_behind() {
        let mut stayed = ring(&[1, 2, 3]);
        let name = RingName::parse("root/a", &"root".parse().unwrap()).unwrap();
        let there: Vec<_> = (3..=5).map(listed).collect();
        let lacks = |state: &RingState, role| missing(&name, state, &there, role).map(|new| new.len());
        assert_eq!(lacks(&stayed, Role::Home).unwrap(), 2);
        stayed.entries[2].manifest = Some(digest_of(b"other"));
        assert!(lacks(&stayed, Role::Home).is_err(), "it was never given away");
        let since = stayed.entries[0].created;
        stayed.elsewhere = Some(Elsewhere::Away { to: "n".into(), reference: String::new(), since });
        assert_eq!(lacks(&stayed, Role::Home).unwrap(), 3);
        assert!(lacks(&stayed, Role::Copy).is_err());
    }

    #[test]
    fn folded_layers_stand_for_their_packs() {
        let pack = |n: u8| PackRecord {
            digest: digest_of(&[n]),
            diff_id: digest_of(&[n, n]),
            bytes: 1,
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into(),
        };
        let mut state = ring(&[]);
        let layer = |n: u64| -> LayerId { format!("{n:032x}").parse().unwrap() };
        let record = |packs: Vec<PackRecord>| LayerRecord::new(1, packs);
        state.layers.insert(layer(1), record(vec![pack(1)]));
        state.layers.insert(layer(2), record(vec![pack(1), pack(2)]));
        let parts = resolve(&state, &[pack(1), pack(2), pack(3)]);
        assert_eq!(parts, [Part::Layer(layer(2)), Part::Pack(pack(3))]);
        assert_eq!(resolve(&state, &[pack(1), pack(3)]), [Part::Layer(layer(1)), Part::Pack(pack(3))]);
    }

    #[test]
    fn tags_that_are_no_entries_are_told_from_those_that_are() {
        assert_eq!(seq_of_tag("20261122T152448Z-000042"), Some(42));
        for odd in ["latest", "", "-", "20261122T152448Z-42", "x-000042", "../20261122T152448Z-000042", RING_TAG] {
            assert_eq!(seq_of_tag(odd), None, "{odd}");
        }
    }
}
