//! Which rings a worker need not look at again: it had nothing to do for them, and nothing of them has changed since.
//!
//! In a store with thousands of rings a worker would read each of them after every exit of a container. What it saw is in
//! `STORE/worker.seen`, of which nothing depends: without it every ring is looked at, as it is after an hour, for what comes with
//! time (blobs that nobody refers to) or from elsewhere (a base that is back).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::ring::Ring;
use crate::store::Store;
use crate::sys::fs::{Durability, TEMPORARY_PREFIX, read_capped, replace_file};
use crate::sys::process::boot_id;

const FILE: &str = "worker.seen";
/// Room for a hundred thousand rings.
const SIZE_MAX: u64 = 32 << 20;
/// Files that were changed this recently may be changed again without showing it: clocks of file systems are coarse.
const QUIET: Duration = Duration::from_millis(200);
/// After this a ring is looked at all the same.
const LASTS: Duration = Duration::from_secs(3600);

/// What the workers of this boot saw.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Seen {
    /// After another one some of it may not have reached the disk.
    boot: String,
    rings: BTreeMap<String, Sight>,
}

/// A ring as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sight {
    /// When, in seconds since 1970.
    at: u64,
    /// Its directory, its state and its blobs.
    files: [Stamp; 3],
}

/// What changes with a file: inode, and time of its last change in seconds and nanoseconds.
type Stamp = (u64, i64, i64);

impl Seen {
    /// Nothing is known, so all rings are looked at.
    pub(super) fn nothing() -> Result<Self> {
        Ok(Self { boot: boot_id()?, ..Self::default() })
    }

    /// What is known; nothing if that was in another boot or cannot be read.
    pub(super) fn load(store: &Store) -> Result<Self> {
        let nothing = Self::nothing()?;
        let content = read_capped(&store.directory().join(FILE), SIZE_MAX).unwrap_or_default();
        let known: Self = serde_json::from_slice(&content).unwrap_or_default();
        Ok(if known.boot == nothing.boot { known } else { nothing })
    }

    /// Whether nothing has changed since a ring was seen.
    pub(super) fn has(&self, ring: &Ring, now: &Sight) -> bool {
        let lasts = |then: &Sight| (then.at..then.at + LASTS.as_secs()).contains(&now.at);
        self.rings.get(&ring.name().to_string()).is_some_and(|then| then.files == now.files && lasts(then))
    }

    /// Notes that nothing is to be done for a ring that was `before`, if it still is.
    pub(super) fn note(&mut self, ring: &Ring, before: Option<Sight>) {
        let sight =
            before.filter(|before| before.is_quiet() && look(ring).is_some_and(|now| now.files == before.files));
        match sight {
            Some(sight) => drop(self.rings.insert(ring.name().to_string(), sight)),
            None => drop(self.rings.remove(&ring.name().to_string())),
        }
    }

    /// Writes it down, without rings that are gone.
    pub(super) fn save(mut self, store: &Store, rings: &[Ring]) -> Result<()> {
        let names: std::collections::BTreeSet<_> = rings.iter().map(|ring| ring.name().to_string()).collect();
        self.rings.retain(|name, _| names.contains(name));
        let text = serde_json::to_vec(&self).context(|| format!("write '{FILE}'"))?;
        replace_file(store.directory(), FILE, &text, Durability::Volatile)
    }
}

impl Sight {
    fn is_quiet(&self) -> bool {
        let is_old = |(_, seconds, nanoseconds): &Stamp| {
            let seconds = Duration::from_secs(u64::try_from(*seconds).unwrap_or(u64::MAX / 2));
            let changed = seconds + Duration::from_nanos(u64::try_from(*nanoseconds).unwrap_or_default());
            Duration::from_secs(self.at).checked_sub(changed).is_some_and(|age| age > QUIET)
        };
        self.files.iter().all(is_old)
    }
}

/// A ring as it is now; `None` if not all of it is there.
pub(super) fn look(ring: &Ring) -> Option<Sight> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let stamp = |path: &Path| {
        let file = fs::metadata(path).ok()?;
        Some((file.ino(), file.ctime(), file.ctime_nsec()))
    };
    let directory = ring.directory();
    let files = [stamp(directory)?, stamp(&directory.join("ring.json"))?, stamp(&directory.join("blobs/sha256"))?];
    Some(Sight { at, files })
}

/// Takes away what somebody has left who was killed while the file was replaced.
pub(super) fn sweep(store: &Store) {
    // It is replaced by the next one, if this fails.
    let _ = fs::remove_file(store.directory().join(format!("{TEMPORARY_PREFIX}{FILE}")));
}
