//! The sender: a process of its own that brings new entries to the registry that the configuration names, so that nobody
//! waits for a line that is slow or down: no exit, no packing, and no worker.
//!
//! ```text
//! worker ends ── is anything behind, and due? ── sender: each such ring is pushed ── push.json: what is there now
//!                                                        │ failure
//!                                                        └── push.json: not again before …
//! ```
//!
//! One sender works per store. What fails is tried again by the sender of a later worker, the later the more often it has
//! failed. `push.json` in a ring's directory is no part of the ring: without it the ring is compared with the registry again.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::push::{Registry, Selection, Watch, push};
use super::{Place, worker};
use crate::config;
use crate::distribution::{Reference, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{Digest, RingName};
use crate::image::layout::digest_of;
use crate::ring::Ring;
use crate::ring::exchange::describe;
use crate::ring::state::RingState;
use crate::store::Store;
use crate::sys::detach::spawn_self;
use crate::sys::fs::{Durability, read_capped, replace_file};
use crate::sys::lock::{Lock, Sharing};

/// The verb that a sender process is started with.
pub const VERB: &str = "sender";
const NOTE: &str = "push.json";
const NOTE_CAP: u64 = 64 * 1024;
/// How long a ring rests after its first failure, and at most, seconds.
const FIRST_PAUSE: i64 = 30;
const LONGEST_PAUSE: i64 = 3600;

/// What is known of a ring in the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Note {
    /// Where it was sent.
    reference: String,
    /// The number of the newest entry that is there.
    last_seq: u64,
    /// The digest of the ring's index there.
    index: Option<Digest>,
    /// How often in a row it failed since.
    failures: u32,
    /// Not to be tried before.
    not_before: Option<DateTime<Utc>>,
    /// Why it failed last.
    error: Option<String>,
}

/// What of a ring is not in the registry yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// So many entries.
    pub entries: usize,
    /// Where they are to go.
    pub reference: String,
    /// Why that failed last, if it did since it last succeeded.
    pub error: Option<String>,
}

/// What of a ring is not in the registry yet; `None` if nothing is to go there.
///
/// # Errors
/// [`Kind::Invalid`] if the configuration's prefix is none of a repository.
pub fn behind(ring: &Ring, state: &RingState, config: &config::Ring) -> Result<Option<Behind>> {
    let Some(reference) = reference_for(ring.name(), config)? else { return Ok(None) };
    let Note { reference, last_seq, error, .. } = read(ring, &reference);
    let entries = state.entries.iter().filter(|entry| entry.seq > last_seq).count();
    Ok(Some(Behind { entries, reference, error }))
}

/// Starts a sender, if there is anything for it to do, and returns at once.
///
/// # Errors
/// Those of reading rings, and of fork and exec.
pub(super) fn start_if_due(place: &Place, store: &Store) -> Result<()> {
    if place.config.ring.auto_push.is_none() {
        return Ok(());
    }
    for ring in Ring::list(store)? {
        // A ring that cannot be read keeps no other one back.
        if due(&ring, &place.config.ring, Utc::now()).unwrap_or_default().is_some() {
            return spawn_self(&worker::arguments(place, VERB));
        }
    }
    Ok(())
}

/// What the sender process does.
///
/// # Errors
/// The first failure; the other rings are sent all the same.
pub fn work(place: &Place) -> Result<()> {
    worker::leave_cgroups();
    let Some(store) = Store::open_existing(&place.store)? else { return Ok(()) };
    let (mut failed, mut first_failure) = (HashSet::new(), None);
    // Whoever is at it looks again before it ends, so nothing is forgotten if this one goes.
    while let Some(_lock) = Lock::try_take(&store.directory().join("sender.lock"), Sharing::Exclusive)? {
        let mut found = false;
        for ring in Ring::list(&store)? {
            let Ok(Some(reference)) = due(&ring, &place.config.ring, Utc::now()) else { continue };
            // Also where it could not be noted that it is to rest.
            if failed.contains(ring.name()) {
                continue;
            }
            found = true;
            if let Err(error) = send(place, &ring, &reference) {
                failed.insert(ring.name().clone());
                first_failure.get_or_insert(error);
            }
        }
        if !found {
            break;
        }
    }
    first_failure.map_or(Ok(()), Err)
}

/// Where a ring is to be sent now, if it is.
fn due(ring: &Ring, config: &config::Ring, now: DateTime<Utc>) -> Result<Option<Reference>> {
    let Some(reference) = reference_for(ring.name(), config)? else { return Ok(None) };
    let (state, note) = (ring.read()?, read(ring, &reference));
    let packed = state.entries.iter().all(|entry| entry.manifest.is_some());
    let rests = note.not_before.is_some_and(|time| now < time);
    if state.entries.is_empty() || state.elsewhere.is_some() || !packed || rests {
        return Ok(None);
    }
    let index = digest_of(&describe(ring, &state)?.to_json()?);
    Ok(Some(reference).filter(|_| note.index.as_ref() != Some(&index)))
}

fn send(place: &Place, ring: &Ring, reference: &Reference) -> Result<()> {
    let note = read(ring, reference);
    let trust = if place.config.ring.auto_push_tls_verify { Trust::Verified } else { Trust::Anyone };
    let mut watch = Watch { pack: &mut |_| {}, transfer: &mut |_| {} };
    let pushed = push(place, ring, &Selection::Ring, Registry { reference, trust }, &mut watch);
    match pushed {
        Ok(pushed) => {
            let last_seq = pushed.entries.last().map_or(0, |entry| entry.seq);
            let (reference, index) = (reference.to_string(), pushed.index);
            write(ring, &Note { reference, last_seq, index, ..Note::default() })
        }
        Err(error) => {
            let failures = note.failures.saturating_add(1);
            let not_before = Some(Utc::now() + pause(failures));
            write(ring, &Note { failures, not_before, error: Some(error.to_string()), ..note })?;
            Err(error)
        }
    }
}

/// How long a ring rests that has failed so often in a row. Pure.
fn pause(failures: u32) -> TimeDelta {
    let seconds = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    TimeDelta::seconds(seconds.min(LONGEST_PAUSE))
}

/// The repository of a ring: PREFIX/OWNER/NAME. Pure.
///
/// # Errors
/// [`Kind::Invalid`] if the prefix is none of a repository.
fn reference_for(name: &RingName, config: &config::Ring) -> Result<Option<Reference>> {
    let Some(prefix) = &config.auto_push else { return Ok(None) };
    let (owner, name) = (component(name.owner.as_str()), component(name.name.as_str()));
    let reference = format!("{prefix}/{owner}/{name}").parse::<Reference>();
    let reference = reference.context(|| "read 'ring.auto-push' of the configuration")?;
    if reference.tag().is_some() {
        let cause = "it has a tag, but each entry gets its own";
        return Err(Error::new(Kind::Invalid, "read 'ring.auto-push' of the configuration", cause));
    }
    Ok(Some(reference))
}

/// A name as a part of a repository's: as it is, if a registry takes it; else what of it a registry takes, and something that
/// is another one for every other name.
fn component(name: &str) -> String {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let parts = |text: &str| text.split(|c| !is_inner(c)).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let single = name.split(['.', '_', '-']).all(|part| !part.is_empty() && part.chars().all(is_inner));
    if single {
        return name.to_owned();
    }
    let hash = Digest::from_bytes(Sha256::digest(name).into()).hex();
    let plain = parts(&name.to_ascii_lowercase());
    if plain.is_empty() { hash[..16].to_owned() } else { format!("{plain}-{}", &hash[..16]) }
}

/// What is known, if it is of this place.
fn read(ring: &Ring, reference: &Reference) -> Note {
    let text = read_capped(&ring.directory().join(NOTE), NOTE_CAP).unwrap_or_default();
    let note: Note = serde_json::from_slice(&text).unwrap_or_default();
    if note.reference == reference.to_string() {
        return note;
    }
    Note { reference: reference.to_string(), ..Note::default() }
}

fn write(ring: &Ring, note: &Note) -> Result<()> {
    let text = serde_json::to_vec(note).context(|| format!("write what was sent of ring '{}'", ring.name()))?;
    replace_file(ring.directory(), NOTE, &text, Durability::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str, prefix: &str) -> Result<String> {
        let config = config::Ring { auto_push: Some(prefix.into()), ..config::Ring::default() };
        let name = RingName::parse(name, &"root".parse().unwrap()).unwrap();
        Ok(reference_for(&name, &config)?.unwrap().to_string())
    }

    #[test]
    fn every_ring_has_a_repository_of_its_own() {
        let of = |name: &str| reference(name, "docker://r.example:5000/team/rings").unwrap();
        assert_eq!(of("alice"), "docker://r.example:5000/team/rings/root/alice");
        assert_eq!(of("k8s.default/web-app_1.2"), "docker://r.example:5000/team/rings/k8s.default/web-app_1.2");
        let odd = ["A", "a", "a..b", "a.b", "a--b", "a-", "_", "__", "Ab", "aB"];
        let all: std::collections::BTreeSet<_> = odd.iter().map(|name| of(name)).collect();
        assert_eq!(all.len(), odd.len(), "{all:?}");
        assert!(reference("a", "docker://r.example/x:tag").is_err());
        assert!(reference("a", "docker://alpine/x").is_err());
    }

    #[test]
    fn what_fails_again_and_again_is_tried_ever_more_seldom() {
        let pauses: Vec<_> = [1, 2, 3, 7, 8, 100, u32::MAX].map(|failures| pause(failures).num_seconds()).to_vec();
        assert_eq!(pauses, [30, 60, 120, 1920, 3600, 3600, 3600]);
    }
}
