//! Locks between processes: flock(2) on a file of ours, released by the kernel when the holder dies.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result, quote};

/// A held lock; dropping it lets the next one in.
#[derive(Debug)]
pub struct Lock {
    file: File,
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
        Self::wait_for(open(path)?, path, sharing)
    }

    /// Takes the lock that a directory itself carries, so that no file has to be made in it.
    ///
    /// # Errors
    /// Those of open and flock.
    pub fn wait_at(directory: &Path, sharing: Sharing) -> Result<Self> {
        let file = File::open(directory).context(|| format!("open {}", quote(directory)))?;
        Self::wait_for(file, directory, sharing)
    }

    fn wait_for(file: File, path: &Path, sharing: Sharing) -> Result<Self> {
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
        Ok(Self { file })
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
            Ok(()) => Ok(Some(Self { file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno).context(|| format!("lock {}", quote(path))),
        }
    }

    /// Goes on with the lock of the program that this one replaces in its process.
    ///
    /// # Errors
    /// [`crate::error::Kind::Busy`] if the file is not locked by us, and somebody else has the lock.
    pub fn adopt(file: OwnedFd) -> Result<Self> {
        let operation = || "take over a lock";
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file: file.into() }),
            Err(Errno::WOULDBLOCK) => Err(Error::new(Kind::Busy, operation(), "another process has it")),
            Err(errno) => Err(errno).context(operation),
        }
    }

    /// Whether the file still has this name. The lock of one that was removed keeps nobody out of what is there now.
    ///
    /// # Errors
    /// Those of fstat(2) and stat(2); that there is nothing of that name is none.
    pub fn is_at(&self, path: &Path) -> Result<bool> {
        let operation = || format!("look at {}", quote(path));
        let ours = self.file.metadata().context(operation)?;
        match std::fs::metadata(path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context(operation),
        }
    }

    /// Another descriptor of it: the lock is held until both are closed, by whoever has them.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn duplicate(&self) -> Result<OwnedFd> {
        self.as_fd().try_clone_to_owned().context(|| "duplicate a lock")
    }

    /// Writes into the file who holds the lock, for those who do not get it.
    ///
    /// # Errors
    /// Those of ftruncate(2) and pwrite(2).
    pub fn sign(&self, holder: &str) -> Result<()> {
        let operation = || "write who holds a lock";
        self.file.set_len(0).context(operation)?;
        self.file.write_all_at(holder.as_bytes(), 0).context(operation)
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A held lock on a directory that its holder may take away; dropping it lets the next one in.
///
/// It is a record lock (fcntl(2)) on a file in there, not a flock: a process that is forked while it is held, and
/// lives on, does not keep it.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// The file in the directory that carries the lock.
const LOCK_FILE: &str = "lock";

impl DirectoryLock {
    /// Takes the lock, waiting for it; `None` if the directory was taken away meanwhile. One process holds the lock
    /// of one directory only once.
    ///
    /// # Errors
    /// Those of open and fcntl; [`crate::error::Kind::NotFound`] if there is no such directory.
    pub fn wait(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(LOCK_FILE);
        let operation = || format!("lock {}", quote(directory));
        let file = open(&path)?;
        loop {
            match rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => break other.context(operation)?,
            }
        }
        // The same name may lead to the file of another, newer directory by now, or to none.
        let held = file.metadata().context(operation)?;
        let same = std::fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
        Ok(same.then_some(Self { _file: file }))
    }

    /// Whether some other process holds the lock of a directory now. Nothing is made, and nobody has to wait.
    ///
    /// # Errors
    /// Those of open and fcntl; that there is no such directory, or that it was never locked, is no error.
    pub fn is_held(directory: &Path) -> Result<bool> {
        let operation = || format!("look at the lock of {}", quote(directory));
        let file = match OpenOptions::new().read(true).write(true).open(directory.join(LOCK_FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.context(operation)?,
        };
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
            Err(errno) => Err(errno).context(operation),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that was forked meanwhile shares the open file, and with it the lock. If
        // this fails, the kernel still lets go when the last of them closes it.
        let _ = flock(&self.file, FlockOperation::Unlock);
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

    #[test]
    fn a_lock_goes_over_to_who_has_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::wait(&path, Sharing::Exclusive).unwrap();
        held.sign("17").unwrap();
        held.sign("4").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4");
        assert_eq!(Lock::adopt(open(&path).unwrap().into()).unwrap_err().kind(), Kind::Busy);
        let same = Lock::adopt(held.as_fd().try_clone_to_owned().unwrap()).unwrap();
        // What an execution does: the lock is let go by the last who has the file, and not before.
        std::mem::forget(held);
        assert!(Lock::try_take(&path, Sharing::Exclusive).unwrap().is_none());
        drop(same);
        assert!(Lock::try_take(&path, Sharing::Exclusive).unwrap().is_some());
    }

    #[test]
    fn the_lock_of_a_directory_that_was_taken_away_is_not_given() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("d");
        std::fs::create_dir(&path).unwrap();
        assert!(DirectoryLock::wait(&path).unwrap().is_some());
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(DirectoryLock::wait(&path).unwrap_err().kind(), Kind::NotFound);
    }
}
