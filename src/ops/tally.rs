//! What processes that come and go have counted: kept in `STORE/metrics.json`, to which each adds what it has, and which the
//! daemon reads. Nothing depends on it: where it cannot be written, numbers are missing and nothing else.
//!
//! It is replaced whole, so a process that is killed leaves the old numbers or the new ones. It is not synced: after a
//! power cut it may be older, or begin anew.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result, quote};
use crate::metrics::{TALLY_VERSION, Tally, drain};
use crate::store::Store;
use crate::sys::fs::{Durability, TEMPORARY_PREFIX, read_capped, replace_file};
use crate::sys::lock::{Lock, Sharing};

const FILE: &str = "metrics.json";
const LOCK: &str = "metrics.lock";
/// Room for a thousand templates.
const SIZE_MAX: u64 = 1 << 20;
/// Somebody else has the lock for a fraction of this, unless they were stopped.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Adds what this process has counted since the last time.
pub fn save(store: &Store) {
    let Some(more) = drain() else { return };
    if let Err(error) = add(store, &more) {
        tracing::debug!("{error}");
    }
}

/// What all of them have counted; nothing where that cannot be read.
#[must_use]
pub fn read(store: &Store) -> Tally {
    load(store).unwrap_or_else(|error| {
        tracing::debug!("{error}");
        Tally::default()
    })
}

/// Takes away what somebody has left who was killed while the file was replaced.
pub(super) fn sweep(store: &Store) {
    let left = store.directory().join(format!("{TEMPORARY_PREFIX}{FILE}"));
    if left.exists()
        && let Ok(_lock) = lock(store)
    {
        // It is replaced by the next one, if this fails.
        let _ = std::fs::remove_file(left);
    }
}

fn add(store: &Store, more: &Tally) -> Result<()> {
    let _lock = lock(store)?;
    // What cannot be read is begun anew.
    let mut tally = load(store).unwrap_or_default();
    tally.version = TALLY_VERSION;
    tally.add(more);
    let text = serde_json::to_vec(&tally).context(|| format!("write {}", quote(path(store))))?;
    replace_file(store.directory(), FILE, &text, Durability::Volatile)
}

fn load(store: &Store) -> Result<Tally> {
    let path = path(store);
    let content = match read_capped(&path, SIZE_MAX) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(Tally::default()),
        content => content?,
    };
    let operation = || format!("read {}", quote(&path));
    let tally: Tally = serde_json::from_slice(&content).context(operation)?;
    if tally.version != TALLY_VERSION {
        return Err(Error::new(Kind::Unsupported, operation(), format!("it is of version {}", tally.version)));
    }
    Ok(tally)
}

fn lock(store: &Store) -> Result<Lock> {
    let path = store.directory().join(LOCK);
    for _ in 0..TRIES {
        if let Some(lock) = Lock::try_take(&path, Sharing::Exclusive)? {
            return Ok(lock);
        }
        std::thread::sleep(PAUSE);
    }
    Err(Error::new(Kind::Busy, format!("lock {}", quote(&path)), "somebody else has it"))
}

fn path(store: &Store) -> PathBuf {
    store.directory().join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evicted(number: u64) -> Tally {
        Tally { evicted: number, ..Tally::default() }
    }

    #[test]
    fn what_processes_count_adds_up_and_a_damaged_file_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        assert_eq!(read(&store), Tally::default());
        for _ in 0..3 {
            add(&store, &evicted(2)).unwrap();
        }
        assert_eq!((read(&store).evicted, read(&store).version), (6, TALLY_VERSION));
        for damaged in ["", "[]", r#"{"version":9}"#] {
            std::fs::write(path(&store), damaged).unwrap();
            assert_eq!(read(&store), Tally::default());
            add(&store, &evicted(1)).unwrap();
            assert_eq!(read(&store).evicted, 1, "after {damaged:?}");
        }
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_a_stopped_one_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let left = store.directory().join(format!("{TEMPORARY_PREFIX}{FILE}"));
        std::fs::write(&left, "{").unwrap();
        let held = lock(&store).unwrap();
        assert_eq!(add(&store, &evicted(1)).unwrap_err().kind(), Kind::Busy);
        sweep(&store);
        assert!(left.exists(), "its writer may be at it");
        drop(held);
        sweep(&store);
        assert!(!left.exists());
    }
}
