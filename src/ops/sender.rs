//! The sender: a process of its own that brings new entries to the registry that the configuration names, so that nobody
//! waits for a line that is slow or down: no exit, no packing, and no worker.
//!
//! ```text
//! worker ends ── is anything behind? ── sender: each such ring is pushed ── push.json: what is there now
//!                                         │  ^          │ failure
//!                                  rung   │  │          └── push.json: not again before …
//!                                  or due └──┘
//! ```
//!
//! One sender works per store. As long as something is behind it stays, and sleeps until the next ring is due; who comes
//! later rings and goes. `push.json` in a ring's directory is no part of the ring: without it the ring is compared with the
//! registry again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};

use super::push::{Registry, Selection, Watch, push};
use super::sent::Note;
use super::{Place, worker};
use crate::config::{self, Config};
use crate::distribution::{Reference, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{Digest, RingName};
use crate::image::layout::digest_of;
use crate::ring::Ring;
use crate::ring::exchange::describe;
use crate::ring::state::RingState;
use crate::store::Store;
use crate::sys::detach::spawn_self;
use crate::sys::doorbell::Doorbell;
use crate::sys::lock::{Lock, Sharing};

/// The verb that a sender process is started with.
pub const VERB: &str = "sender";
/// How long a ring rests after its first failure, and at most, seconds.
const FIRST_PAUSE: i64 = 30;
const LONGEST_PAUSE: i64 = 3600;

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
    let Note { reference, last_seq, error, .. } = Note::read(ring, &reference);
    let entries = state.entries.iter().filter(|entry| entry.seq > last_seq).count();
    Ok(Some(Behind { entries, reference, error }))
}

/// Starts a sender if anything is behind and nobody waits for its time already, and returns at once.
///
/// # Errors
/// Those of reading rings, and of fork and exec.
pub(super) fn start_if_due(place: &Place, store: &Store) -> Result<()> {
    if place.config.ring.auto_push.is_none() {
        return Ok(());
    }
    let now = Utc::now();
    // A ring that cannot be read keeps no other one back.
    let due = |ring: Ring| due(&ring, &place.config.ring, now).ok().flatten();
    let soonest = Ring::list(store)?.into_iter().filter_map(due).map(|due| due.at).min();
    let waits = || Lock::try_take(&lock_file(store), Sharing::Shared).map(|lock| lock.is_none());
    match soonest {
        None => Ok(()),
        Some(at) if at > now && waits()? => Ok(()),
        Some(_) => spawn_self(&worker::arguments(place, VERB)),
    }
}

/// What the sender process does.
///
/// # Errors
/// The last failure; the other rings are sent all the same.
pub fn work(place: &Place) -> Result<()> {
    let may_stay = worker::leave_cgroups();
    let Some(store) = Store::open_existing(&place.store)? else { return Ok(()) };
    let bell_file = store.directory().join("sender.bell");
    let mut result = Ok(());
    loop {
        let lock = match Lock::try_take(&lock_file(&store), Sharing::Exclusive)? {
            Some(lock) => lock,
            None => {
                Doorbell::ring(&bell_file)?;
                // Whoever was at it may have listened for the last time.
                let Some(lock) = Lock::try_take(&lock_file(&store), Sharing::Exclusive)? else { return Ok(()) };
                lock
            }
        };
        let bell = Doorbell::new(&bell_file)?;
        let mut round = Round { place: place.clone(), failure: None };
        while let Some(at) = round.send_all()? {
            let wait = (at - Utc::now()).to_std().unwrap_or_default();
            if !may_stay {
                break;
            }
            // It goes with the store.
            if bell.wait(wait)? && !bell_file.exists() {
                return Ok(());
            }
        }
        if let Some(error) = round.failure {
            result = Err(error);
        }
        drop(lock);
        // Who rang until now has gone.
        if !bell.wait(Duration::ZERO)? {
            return result;
        }
    }
}

fn lock_file(store: &Store) -> PathBuf {
    store.directory().join("sender.lock")
}

/// What one sender does again and again.
struct Round {
    place: Place,
    /// The last failure since all was well.
    failure: Option<Error>,
}

impl Round {
    /// Sends everything that is due, and says when the next is, if anything is behind then.
    fn send_all(&mut self) -> Result<Option<DateTime<Utc>>> {
        // It may have been changed while nothing was due. One that is being edited is read the next time.
        if let Ok(config) = Config::load(self.place.config_file.as_deref()) {
            self.place.config = config;
        }
        self.failure = None;
        let Some(store) = Store::open_existing(&self.place.store)? else { return Ok(None) };
        // Also where it could not be noted that they are to rest.
        let mut rest: HashMap<RingName, DateTime<Utc>> = HashMap::new();
        loop {
            let (mut sent, mut soonest) = (false, None);
            for ring in Ring::list(&store)? {
                let Ok(Some(due)) = due(&ring, &self.place.config.ring, Utc::now()) else { continue };
                let at = rest.get(ring.name()).map_or(due.at, |at| due.at.max(*at));
                if at > Utc::now() {
                    soonest = Some(soonest.map_or(at, |soonest: DateTime<Utc>| soonest.min(at)));
                    continue;
                }
                sent = true;
                if let Some(Err(error)) = ring.unless_gone(|ring| send(&self.place, ring, &due.reference)) {
                    rest.insert(ring.name().clone(), Utc::now() + pause(1));
                    self.failure.get_or_insert(error);
                }
            }
            if !sent {
                return Ok(soonest);
            }
        }
    }
}

/// A ring that is to be sent.
struct Due {
    reference: Reference,
    /// Not before.
    at: DateTime<Utc>,
}

/// Where a ring is to be sent, and when, if it is.
fn due(ring: &Ring, config: &config::Ring, now: DateTime<Utc>) -> Result<Option<Due>> {
    let Some(reference) = reference_for(ring.name(), config)? else { return Ok(None) };
    let (state, note) = (ring.read()?, Note::read(ring, &reference));
    let packed = state.entries.iter().all(|entry| entry.manifest.is_some());
    if state.entries.is_empty() || state.elsewhere.is_some() || !packed {
        return Ok(None);
    }
    let index = digest_of(&describe(ring, &state)?.to_json()?);
    // A clock that was set back makes no pause longer than the longest.
    let longest = TimeDelta::seconds(LONGEST_PAUSE);
    let at = note.not_before.filter(|at| *at > now && *at - now <= longest).unwrap_or(now);
    Ok(Some(Due { reference, at }).filter(|_| note.index.as_ref() != Some(&index)))
}

fn send(place: &Place, ring: &Ring, reference: &Reference) -> Result<()> {
    let note = Note::read(ring, reference);
    let trust = if place.config.ring.auto_push_tls_verify { Trust::Verified } else { Trust::Anyone };
    let mut watch = Watch { pack: &mut |_| {}, transfer: &mut |_| {} };
    let pushed = push(place, ring, &Selection::Ring, Registry { reference, trust }, &mut watch);
    match pushed {
        Ok(pushed) => {
            let last_seq = pushed.entries.last().map_or(0, |entry| entry.seq);
            let (reference, index) = (reference.to_string(), pushed.index);
            Note { reference, last_seq, index, ..Note::default() }.write(ring)
        }
        Err(error) => {
            let failures = note.failures.saturating_add(1);
            let not_before = Some(Utc::now() + pause(failures));
            Note { failures, not_before, error: Some(error.to_string()), ..note }.write(ring)?;
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
