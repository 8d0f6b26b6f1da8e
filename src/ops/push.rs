//! A ring, or one of its entries, goes to a registry.
//!
//! ```text
//! pack what is only sealed ── blobs, two at a time ── for each entry its manifest under its tag ── the ring's index
//! ```
//!
//! Blobs come before what names them, and the index last: a push that is cut short leaves entries that are whole, and the
//! ring as it was there before. The next one sends what is missing.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use super::transfer::{Moved, Transfer, blob_of, in_pairs, send_blob};
use super::worker::{self, Report};
use super::{Place, sent};
use crate::distribution::{Reference, Repository, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;
use crate::image::layout::{Layout, digest_of};
use crate::image::manifest::{Descriptor, MANIFEST_MAX, MANIFEST_TYPE, Manifest};
use crate::ring::Ring;
use crate::ring::entry::Entry;
use crate::ring::exchange::{RING_TAG, RING_TYPE, describe};
use crate::ring::selector::{Selected, Selector};
use crate::ring::state::RingState;
use crate::store::Transfers;

/// So often a ring may change while it is being sent.
const ATTEMPTS: u32 = 5;

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The ring: all of its entries, each under its own tag.
    Ring,
    /// One entry, under the reference's tag or its own.
    Entry(Selector),
}

/// Where it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Registry<'a> {
    /// The repository.
    pub reference: &'a Reference,
    /// Whether it has to prove who it is.
    pub trust: Trust,
}

/// Who is told how far it is.
pub struct Watch<'a> {
    /// While something is packed first.
    pub pack: &'a mut dyn FnMut(&Report),
    /// While blobs go over.
    pub transfer: &'a mut dyn FnMut(&Transfer),
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// An entry that is in the registry now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its number.
    pub seq: u64,
    /// The tag that it has there.
    pub tag: String,
    /// Of its manifest.
    pub digest: Digest,
    /// What it stands on, which is not in the registry.
    pub base: String,
}

/// What a push did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pushed {
    /// The entries, oldest first.
    pub entries: Vec<Sent>,
    /// The blobs.
    pub moved: Moved,
    /// The digest of the ring's index there, if all of it was sent.
    pub index: Option<Digest>,
}

/// Sends a ring or an entry.
///
/// # Errors
/// [`Kind::NotFound`] for the selector, [`Kind::Usage`] if a whole ring is to go under one tag; those of packing and of
/// talking to the registry.
pub fn push(
    place: &Place,
    ring: &Ring,
    selection: &Selection,
    to: Registry<'_>,
    watch: &mut Watch<'_>,
) -> Result<Pushed> {
    let operation = || format!("push ring '{}' to '{}'", ring.name(), to.reference);
    if *selection == Selection::Ring && ring.read()?.entries.is_empty() {
        return Err(Error::new(Kind::State, operation(), "it has no entries yet"));
    }
    send(place, ring, selection, to, watch).context(operation)
}

/// Sends a whole ring, whether it has entries or not, and gives the digest of its index.
pub(super) fn push_all(place: &Place, ring: &Ring, to: Registry<'_>, watch: &mut Watch<'_>) -> Result<Digest> {
    let pushed = send(place, ring, &Selection::Ring, to, watch)?;
    pushed.index.ok_or_else(|| Error::new(Kind::State, format!("push ring '{}'", ring.name()), "it was not all sent"))
}

/// What was evicted meanwhile cannot be sent any more, and need not be: then it begins anew.
fn send(place: &Place, ring: &Ring, selection: &Selection, to: Registry<'_>, watch: &mut Watch<'_>) -> Result<Pushed> {
    let mut attempts = ATTEMPTS;
    loop {
        let before = ring.read()?.entries;
        match send_as_it_is(place, ring, selection, to, watch) {
            Err(error) if error.kind() == Kind::NotFound && attempts > 0 && ring.read()?.entries != before => {
                attempts -= 1;
            }
            done => return done,
        }
    }
}

fn send_as_it_is(
    place: &Place,
    ring: &Ring,
    selection: &Selection,
    to: Registry<'_>,
    watch: &mut Watch<'_>,
) -> Result<Pushed> {
    let state = packed_state(place, ring, watch)?;
    let wanted = select(&state, selection, to.reference)?;
    let mut repository = Repository::open(to.reference, to.trust)?;
    for relative in sent::relatives(ring.store(), &state.entries) {
        repository.may_take_from(&relative);
    }
    let layout = Layout::open(ring.directory())?;
    let what = format!("pushing {}", ring.name());
    let (there, moved, transfers) = (HashSet::new(), Moved::default(), ring.store().transfers());
    let mut sender = Sender { repository, layout, transfers, there, moved, what };
    let mut pushed = Pushed { entries: sender.send_entries(&wanted, watch.transfer)?, ..Pushed::default() };
    if *selection == Selection::Ring {
        pushed.index = Some(sender.send_index(ring, &state)?);
    }
    pushed.moved = sender.moved;
    Ok(pushed)
}

/// A ring whose entries are all packed; what is only sealed is packed first.
pub(super) fn packed_state(place: &Place, ring: &Ring, watch: &mut Watch<'_>) -> Result<RingState> {
    if ring.read()?.entries.iter().any(|entry| entry.manifest.is_none()) {
        worker::pack_now(place, ring.store(), Some(ring.name()), watch.pack)?;
    }
    ring.read()
}

/// The entries that go, and the tag that each gets.
fn select(state: &RingState, selection: &Selection, to: &Reference) -> Result<Vec<(Entry, String)>> {
    match (selection, to.tag()) {
        (Selection::Ring, Some(tag)) => {
            Err(Error::new(Kind::Usage, format!("use tag '{tag}'"), "it is for one entry, not for a whole ring")
                .next("leave the tag out, or say which entry: RING@SEL"))
        }
        (_, Some(RING_TAG)) => {
            Err(Error::new(Kind::Usage, format!("use tag '{RING_TAG}'"), "it is for the ring itself"))
        }
        (Selection::Ring, None) => Ok(state.entries.iter().map(|entry| (entry.clone(), entry.id.clone())).collect()),
        (Selection::Entry(selector), tag) => match state.select_view(selector)? {
            Selected::Entry(entry) => Ok(vec![(entry.clone(), tag.unwrap_or(&entry.id).to_owned())]),
            Selected::Base => Err(Error::new(Kind::Usage, "find entry '@base'", "the base is no entry of the ring")),
        },
    }
}

/// A push under way.
struct Sender {
    repository: Repository,
    layout: Layout,
    transfers: Transfers,
    /// Blobs that are known to be in the registry, or about to be.
    there: HashSet<Digest>,
    moved: Moved,
    what: String,
}

/// An entry that is to be in the registry.
struct Parcel {
    sent: Sent,
    /// Its manifest, if that is not there yet.
    manifest: Option<Vec<u8>>,
}

impl Sender {
    /// All blobs first, two at a time, then the manifests, the oldest first.
    fn send_entries(&mut self, wanted: &[(Entry, String)], tell: &mut dyn FnMut(&Transfer)) -> Result<Vec<Sent>> {
        let mut missing = Vec::new();
        let mut parcels = Vec::new();
        for (entry, tag) in wanted {
            parcels.push(self.look_for(entry, tag, &mut missing)?);
        }
        let total = missing.iter().map(|descriptor| descriptor.size).sum();
        let (what, layout) = (self.what.clone(), &self.layout);
        let (transfers, bytes, taken) = (&self.transfers, AtomicU64::new(0), AtomicU64::new(0));
        let send = |repository: &mut Repository, descriptor: &Descriptor, told: &dyn Fn(u64)| {
            let (blob, file) = (blob_of(descriptor)?, layout.open_blob(descriptor)?);
            let sent = send_blob(repository, transfers, (&blob, &file), told)?;
            // The registry had it in another repository.
            taken.fetch_add(u64::from(sent == 0), Ordering::Relaxed);
            bytes.fetch_add(sent, Ordering::Relaxed);
            Ok(())
        };
        in_pairs(&self.repository, &missing, send, &mut |done| tell(&Transfer { what: what.clone(), done, total }))?;
        let taken = taken.into_inner();
        self.moved.blobs += missing.len() as u64 - taken;
        self.moved.present += taken;
        self.moved.bytes += bytes.into_inner();
        for Parcel { sent, manifest } in &parcels {
            if let Some(manifest) = manifest {
                self.repository.send_manifest(&sent.tag, MANIFEST_TYPE, manifest)?;
            }
        }
        Ok(parcels.into_iter().map(|parcel| parcel.sent).collect())
    }

    /// Finds out what of an entry is there, and notes the blobs that are not.
    fn look_for(&mut self, entry: &Entry, tag: &str, missing: &mut Vec<Descriptor>) -> Result<Parcel> {
        let unpacked =
            || Error::new(Kind::Busy, format!("read entry @{}", entry.seq), "it is not packed yet").next("try again");
        let digest = entry.manifest.clone().ok_or_else(unpacked)?;
        let text = self.layout.read_blob(&digest, MANIFEST_MAX)?;
        let manifest = Manifest::parse(&text)?;
        let there = self.repository.manifest_digest(tag)?.as_ref() == Some(&digest);
        for descriptor in manifest.layers.iter().chain([&manifest.config]) {
            let digest = descriptor.digest()?;
            // A registry takes a manifest only once it has the blobs that it names.
            if there {
                self.note_present(digest);
            } else if !self.there.contains(&digest) {
                if self.repository.has_blob(&digest)? {
                    self.note_present(digest);
                } else {
                    self.there.insert(digest);
                    missing.push(descriptor.clone());
                }
            }
        }
        let sent = Sent { seq: entry.seq, tag: tag.to_owned(), digest, base: entry.base.clone() };
        Ok(Parcel { sent, manifest: Some(text).filter(|_| !there) })
    }

    fn note_present(&mut self, digest: Digest) {
        self.moved.present += u64::from(self.there.insert(digest));
    }

    fn send_index(&mut self, ring: &Ring, state: &RingState) -> Result<Digest> {
        let text = describe(ring, state)?.to_json()?;
        let digest = digest_of(&text);
        if self.repository.manifest_digest(RING_TAG)?.as_ref() != Some(&digest) {
            self.repository.send_manifest(RING_TAG, RING_TYPE, &text)?;
        }
        Ok(digest)
    }
}
