//! A blob that is being written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Context, Result, quote};
use crate::ids::Digest;
use crate::sys::fs::{TEMPORARY_PREFIX, random_id, sync_directory};

/// A temporary file among the blobs of a layout; dropping it removes it.
///
/// It is locked as long as it is open, so that what a crash left can be told from what is being written.
#[derive(Debug)]
pub struct Stage {
    file: File,
    directory: PathBuf,
    /// Where the file lies until it is committed.
    path: Option<PathBuf>,
}

impl Stage {
    pub(super) fn create(directory: PathBuf) -> Result<Self> {
        loop {
            let name: String = random_id()?.iter().map(|byte| format!("{byte:02x}")).collect();
            let path = directory.join(format!("{TEMPORARY_PREFIX}{name}"));
            let operation = || format!("create {}", quote(&path));
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = file.context(operation)?;
            let taken = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            // A sweep between the two calls took it for a leftover.
            if taken && file.metadata().context(operation)?.nlink() == 1 {
                return Ok(Self { file, directory, path: Some(path) });
            }
        }
    }

    /// The file, open for reading and writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Takes the name away and leaves the file, which is gone when it is closed.
    pub(super) fn into_unnamed(mut self) -> Result<File> {
        if let Some(path) = self.path.take() {
            fs::remove_file(&path).context(|| format!("remove {}", quote(&path)))?;
        }
        self.file.try_clone().context(|| "keep a temporary file open")
    }

    /// Makes the file a blob of the layout, under the digest of what was written; durable when this returns.
    ///
    /// # Errors
    /// Those of fsync and rename; the temporary file is then removed.
    pub fn commit(mut self, digest: &Digest) -> Result<()> {
        let target = self.directory.join(digest.hex());
        let operation = || format!("write blob {digest}");
        self.file.sync_all().context(operation)?;
        if let Some(path) = &self.path {
            fs::rename(path, &target).context(operation)?;
        }
        self.path = None;
        sync_directory(&self.directory)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nobody can be told here; what stays is removed by the next sweep.
            let _ = fs::remove_file(path);
        }
    }
}
