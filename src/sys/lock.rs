//! Locks between processes: flock(2) on a file of ours, released by the kernel when the holder dies.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Context, Result, quote};

/// A held lock; dropping it lets the next one in.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Whether others may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Only one holder.
    Exclusive,
    /// Any number of shared holders, no exclusive one.
    Shared,
}

impl Lock {
    /// Takes the lock, waiting as long as another process holds it.
    ///
    /// # Errors
    /// Those of open and flock.
    pub fn wait(path: &Path, sharing: Sharing) -> Result<Self> {
        let file = open(path)?;
        let operation = match sharing {
            Sharing::Exclusive => FlockOperation::LockExclusive,
            Sharing::Shared => FlockOperation::LockShared,
        };
        loop {
            match flock(&file, operation) {
                Err(Errno::INTR) => {}
                other => break other.context(|| format!("lock {}", quote(path)))?,
            }
        }
        Ok(Self { _file: file })
    }

    /// Takes the lock if it is free now; `None` if another process holds it.
    ///
    /// # Errors
    /// Those of open and flock, other than that it is held.
    pub fn try_take(path: &Path, sharing: Sharing) -> Result<Option<Self>> {
        let file = open(path)?;
        let operation = match sharing {
            Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Sharing::Shared => FlockOperation::NonBlockingLockShared,
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno).context(|| format!("lock {}", quote(path))),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    // Close-on-exec is std's default: a child never keeps a lock of its parent's.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .context(|| format!("open lock {}", quote(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_lock_keeps_everyone_else_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::wait(&path, Sharing::Exclusive).unwrap();
        assert!(Lock::try_take(&path, Sharing::Shared).unwrap().is_none());
        drop(held);
        let first = Lock::try_take(&path, Sharing::Shared).unwrap();
        let second = Lock::try_take(&path, Sharing::Shared).unwrap();
        assert!(first.is_some() && second.is_some());
    }
}
