//! One daemon to a store: several processes may have the registry open, but only one looks after the services in it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::registry::FILE;
use crate::sys::lock::{Lock, Sharing};

/// The lock's file, below the store.
const LOCK: &str = "serve.lock";
/// How long a daemon that starts waits for the one before it to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The right to look after a store's services, as long as it is kept.
///
/// # Errors
/// [`Kind::Busy`] if another process has it; those of the lock.
pub(super) fn take(store: &Path) -> Result<Lock> {
    let operation = || format!("open registry {}", quote(store.join(FILE)));
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = Lock::try_take(&store.join(LOCK), Sharing::Exclusive).context(operation)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(Kind::Busy, operation(), "another process has it open")
                .next("end the other 'regen serve', or give another --store"));
        }
        std::thread::sleep(PAUSE);
    }
}
