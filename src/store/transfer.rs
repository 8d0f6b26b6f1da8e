//! What a transfer has come to, kept for the next try: the beginnings of blobs that are being fetched, and where registries
//! said that uploads go on. Nothing refers to them; what was not touched for long is swept.
//!
//! Whoever is at one of them holds its lock, so two never write to one, and a sweep passes it over.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::make_directory;
use crate::error::{Context, Kind, Result, quote};
use crate::ids::Digest;
use crate::sys::fs::sync_directory;

/// How long something is kept that nobody goes on with.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The directory of all of them. Only this type writes there.
#[derive(Debug, Clone)]
pub struct Transfers {
    directory: PathBuf,
}

/// What is kept of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The beginning of a blob with this digest.
    Blob(&'a Digest),
    /// Where an upload goes on; the digest is over where to and what.
    Upload(&'a Digest),
}

impl Piece<'_> {
    fn name(self) -> String {
        match self {
            Self::Blob(digest) => format!("blob-{}", digest.hex()),
            Self::Upload(digest) => format!("upload-{}", digest.hex()),
        }
    }
}

impl Transfers {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Opens what there is of a transfer, or an empty file; `None` if somebody else is at it.
    ///
    /// # Errors
    /// Those of making and locking a file.
    pub fn hold(&self, piece: Piece<'_>) -> Result<Option<Held>> {
        make_directory(&self.directory)?;
        let path = self.directory.join(piece.name());
        let operation = || format!("open {}", quote(&path));
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).mode(0o600);
            let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path).context(operation)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                other => other.context(operation)?,
            }
            // Somebody may have finished or swept it between the two calls.
            if is_at(&file, &path).context(operation)? {
                return Ok(Some(Held { file, path, directory: self.directory.clone() }));
            }
        }
    }

    /// Takes a whole blob back from where it was put, so that the next try has it.
    ///
    /// # Errors
    /// Those of rename.
    pub fn take_back(&self, digest: &Digest, from: &Path) -> Result<()> {
        make_directory(&self.directory)?;
        let to = self.directory.join(Piece::Blob(digest).name());
        fs::rename(from, &to).context(|| format!("keep {}", quote(from)))
    }

    /// What nobody is at, and nobody was for so long.
    ///
    /// # Errors
    /// Those of readdir.
    pub fn left(&self, age: Duration) -> Result<Vec<PathBuf>> {
        let operation = || format!("list {}", quote(&self.directory));
        let children = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context(operation)?,
        };
        let mut left = Vec::new();
        for child in children {
            let path = child.context(operation)?.path();
            if lock_if_left(&path, age)?.is_some() {
                left.push(path);
            }
        }
        Ok(left)
    }

    /// Removes it.
    ///
    /// # Errors
    /// Those of readdir and unlink.
    pub fn sweep(&self, age: Duration) -> Result<()> {
        for path in self.left(age)? {
            if let Some(_lock) = lock_if_left(&path, age)? {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// A file that nobody else writes as long as this lives. One that is empty then goes.
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
    directory: PathBuf,
}

impl Held {
    /// The file, open for reading and writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts it where it belongs, durably.
    ///
    /// # Errors
    /// Those of fsync and rename.
    pub fn finish(self, target: &Path) -> Result<()> {
        let operation = || format!("write {}", quote(target));
        self.file.sync_all().context(operation)?;
        fs::rename(&self.path, target).context(operation)?;
        sync_directory(target.parent().unwrap_or(&self.directory))
    }

    /// Throws away what there is.
    ///
    /// # Errors
    /// Those of unlink.
    pub fn discard(self) -> Result<()> {
        remove(&self.path)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let is_empty = self.file.metadata().is_ok_and(|metadata| metadata.len() == 0);
        if is_empty && is_at(&self.file, &self.path).unwrap_or(false) {
            // What stays is swept later.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether a file still has this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lock on a file that nobody is at, and that was not written for so long.
fn lock_if_left(path: &Path, age: Duration) -> Result<Option<File>> {
    let operation = || format!("look at {}", quote(path));
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context(operation)?,
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&file, path).context(operation)? {
        return Ok(None);
    }
    let written = file.metadata().and_then(|metadata| metadata.modified()).context(operation)?;
    // A time in the future is no reason to delete, but what is asked for with no age at all goes whatever its time.
    let is_old = SystemTime::now().duration_since(written).map_or(age.is_zero(), |found| found >= age);
    Ok(Some(file).filter(|_| is_old))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path).context(|| format!("remove {}", quote(path))) {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    #[test]
    fn what_was_begun_is_found_again_by_one_at_a_time() {
        let top = tempfile::tempdir().unwrap();
        let transfers = Transfers::new(top.path().join("transfers"));
        assert_eq!(transfers.left(Duration::ZERO).unwrap().len(), 0);
        let (one, target) = (digest(1), top.path().join("blob"));
        let mut held = transfers.hold(Piece::Blob(&one)).unwrap().unwrap();
        held.file().write_all(b"half").unwrap();
        assert!(transfers.hold(Piece::Blob(&one)).unwrap().is_none());
        assert!(transfers.hold(Piece::Upload(&one)).unwrap().is_some());
        transfers.sweep(Duration::ZERO).unwrap();
        drop(held);
        let held = transfers.hold(Piece::Blob(&one)).unwrap().unwrap();
        assert_eq!(held.file.metadata().unwrap().len(), 4);
        held.finish(&target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"half");
        transfers.take_back(&one, &target).unwrap();
        assert_eq!(transfers.left(Duration::ZERO).unwrap().len(), 1);
        transfers.hold(Piece::Blob(&one)).unwrap().unwrap().discard().unwrap();
        assert_eq!(transfers.left(Duration::ZERO).unwrap().len(), 0);
    }

    #[test]
    fn only_what_is_old_is_swept_and_nothing_empty_stays() {
        let top = tempfile::tempdir().unwrap();
        let transfers = Transfers::new(top.path().to_owned());
        transfers.hold(Piece::Blob(&digest(1))).unwrap().unwrap().file().write_all(b"x").unwrap();
        drop(transfers.hold(Piece::Blob(&digest(2))).unwrap());
        transfers.sweep(KEPT).unwrap();
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 1);
        let long_ago = SystemTime::now() - KEPT;
        let file = transfers.hold(Piece::Blob(&digest(1))).unwrap().unwrap();
        file.file.set_modified(long_ago).unwrap();
        drop(file);
        transfers.sweep(KEPT).unwrap();
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
    }
}
