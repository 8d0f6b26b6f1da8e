//! A directory in OCI image layout.
//!
//! Blobs are named by their content, so any number of processes may add them at once; `index.json` is replaced as a
//! whole, and whoever replaces it holds a lock of its own that makes it the only writer.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::manifest::{Descriptor, INDEX_MAX, Index, parse_document};
use super::stage::Stage;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Digest;
use crate::sys::fs::{Durability, TEMPORARY_PREFIX, replace_file, sync_directory};

pub(super) const MARKER: &str = "oci-layout";
pub(super) const MARKER_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const MARKER_MAX: u64 = 4096;
pub(super) const INDEX: &str = "index.json";

/// An OCI image layout on disk.
#[derive(Debug, Clone)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// Makes an empty layout, or completes one that is there; what it holds stays.
    ///
    /// Only its owner can read it: layers hold what the programs of a container wrote, secrets included.
    ///
    /// # Errors
    /// Those of mkdir and of writing files, and those of [`Layout::open`] if there is one that is damaged.
    pub fn create(directory: impl Into<PathBuf>) -> Result<Self> {
        let layout = Self { directory: directory.into() };
        let blobs = layout.blob_directory();
        if absent(&blobs)? {
            let operation = || format!("create {}", quote(&blobs));
            DirBuilder::new().recursive(true).mode(0o700).create(&blobs).context(operation)?;
            sync_directory(&layout.directory.join("blobs"))?;
            sync_directory(&layout.directory.join(".."))?;
        }
        if absent(&layout.directory.join(INDEX))? {
            layout.replace_index(&Index::default())?;
        }
        // Last, because it is what makes the directory a layout.
        if absent(&layout.directory.join(MARKER))? {
            replace_file(&layout.directory, MARKER, MARKER_TEXT, Durability::Durable)?;
        }
        layout.check()?;
        Ok(layout)
    }

    /// Makes a layout of a directory that holds the blobs of one: what else a layout has is put there anew where it is
    /// not readable.
    ///
    /// # Errors
    /// Those of writing files.
    pub fn repair(directory: impl Into<PathBuf>) -> Result<Self> {
        let layout = Self { directory: directory.into() };
        if layout.index().is_err() {
            layout.replace_index(&Index::default())?;
        }
        let marker = read_regular(&layout.directory.join(MARKER), MARKER_MAX);
        if marker.and_then(|text| check_marker(&text)).is_err() {
            replace_file(&layout.directory, MARKER, MARKER_TEXT, Durability::Durable)?;
        }
        Self::create(layout.directory)
    }

    /// Opens a layout that is there.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no directory, [`Kind::Invalid`] if it is no layout or its index is not
    /// readable, [`Kind::Unsupported`] for a layout of another version.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let layout = Self { directory: directory.into() };
        layout.check()?;
        Ok(layout)
    }

    fn check(&self) -> Result<()> {
        let operation = || format!("open image layout {}", quote(&self.directory));
        let metadata = fs::metadata(&self.directory).context(operation)?;
        if !metadata.is_dir() {
            let next = "for a tar file of a layout, give oci-archive:FILE";
            return Err(Error::new(Kind::Invalid, operation(), "it is not a directory").next(next));
        }
        let marker = self.directory.join(MARKER);
        if absent(&marker)? {
            let cause = format!("it has no file '{MARKER}', so it is no OCI image layout");
            return Err(Error::new(Kind::Invalid, operation(), cause).next("make one with 'skopeo copy … oci:DIR'"));
        }
        check_marker(&read_regular(&marker, MARKER_MAX)?).context(operation)?;
        self.index().map(drop)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads `index.json`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the file, line and column if somebody broke it, [`Kind::NotFound`] if it is gone.
    pub fn index(&self) -> Result<Index> {
        let path = self.directory.join(INDEX);
        let bytes = read_regular(&path, INDEX_MAX)?;
        Index::parse(&bytes).map_err(|error| {
            let next = "put back the last good copy, or copy the images into a new layout";
            error.during(format!("read {}", quote(&path))).next(next)
        })
    }

    /// Replaces `index.json`; returns when that would survive a power cut.
    ///
    /// # Errors
    /// Those of writing a file; the old index then stays.
    pub fn replace_index(&self, index: &Index) -> Result<()> {
        replace_file(&self.directory, INDEX, &index.to_json()?, Durability::Durable)
    }

    /// Where a blob lies.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blob_directory().join(digest.hex())
    }

    /// Whether there is a file for this blob; says nothing of its content.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        fs::symlink_metadata(self.blob_path(digest)).is_ok_and(|metadata| metadata.is_file())
    }

    /// Reads a small blob and compares it with its digest.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Damaged`] if the content is not that of the digest or is over `cap` bytes.
    pub fn read_blob(&self, digest: &Digest, cap: u64) -> Result<Vec<u8>> {
        let bytes = self.read_unchecked(digest, cap)?;
        check_digest(&bytes, digest)?;
        Ok(bytes)
    }

    /// Reads a small blob whose digest the caller checks.
    pub(super) fn read_unchecked(&self, digest: &Digest, cap: u64) -> Result<Vec<u8>> {
        read_regular(&self.blob_path(digest), cap)
    }

    /// Opens a blob of any size and compares its size with what the descriptor says.
    ///
    /// The content is not checked: whoever reads all of it hashes it on the way.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Damaged`] if the size differs, [`Kind::Invalid`] if it is no regular file.
    pub fn open_blob(&self, descriptor: &Descriptor) -> Result<File> {
        let path = self.blob_path(&descriptor.digest()?);
        let (file, size) = open_regular(&path)?;
        check_size(descriptor, size)?;
        Ok(file)
    }

    /// Stores a small blob, durably; one that is there and whole is left alone.
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<(Digest, u64)> {
        let digest = digest_of(bytes);
        let size = bytes.len() as u64;
        if self.read_blob(&digest, size).is_err() {
            let mut stage = self.stage_blob()?;
            stage.file().write_all(bytes).context(|| format!("write blob {digest}"))?;
            stage.commit(&digest)?;
        }
        Ok((digest, size))
    }

    /// A temporary file for a blob whose digest is known only once it is written.
    ///
    /// # Errors
    /// Those of creating a file.
    pub fn stage_blob(&self) -> Result<Stage> {
        Stage::create(self.blob_directory())
    }

    /// Removes a blob; that it is gone already is no error.
    ///
    /// # Errors
    /// Those of unlink.
    pub fn remove_blob(&self, digest: &Digest) -> Result<()> {
        remove(&self.blob_path(digest))
    }

    /// The blobs that there are, in no order; files that are not named like one are passed over.
    ///
    /// # Errors
    /// Those of readdir.
    pub fn blobs(&self) -> Result<Vec<Digest>> {
        let names = self.file_names(&self.blob_directory())?;
        Ok(names.iter().filter_map(|name| format!("sha256:{name}").parse().ok()).collect())
    }

    /// Removes the temporary files that crashed processes left; those that are being written stay.
    ///
    /// # Errors
    /// Those of readdir and unlink.
    pub fn sweep_temporary(&self) -> Result<()> {
        let mut swept = false;
        for directory in [&self.directory, &self.blob_directory()] {
            for name in self.file_names(directory)? {
                let path = directory.join(&name);
                // Whoever writes a blob holds a lock on its temporary file; who is about to, sees by this one that it goes.
                if name.starts_with(TEMPORARY_PREFIX)
                    && let Some(_lock) = lock_if_left(&path)?
                {
                    remove(&path)?;
                    swept = true;
                }
            }
        }
        if swept { sync_directory(&self.blob_directory()) } else { Ok(()) }
    }

    fn blob_directory(&self) -> PathBuf {
        self.directory.join("blobs/sha256")
    }

    fn file_names(&self, directory: &Path) -> Result<Vec<String>> {
        let operation = || format!("list {}", quote(directory));
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).context(operation)? {
            names.extend(entry.context(operation)?.file_name().into_string());
        }
        Ok(names)
    }
}

/// Reads the `oci-layout` file's content.
pub(super) fn check_marker(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker = parse_document(MARKER, bytes)?;
    if marker.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    let cause = format!("layout version '{}'; only 1.x can be read", marker.image_layout_version.escape_debug());
    Err(Error::new(Kind::Unsupported, format!("read '{MARKER}'"), cause))
}

/// The digest of bytes in memory.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

pub(super) fn check_digest(bytes: &[u8], digest: &Digest) -> Result<()> {
    let found = digest_of(bytes);
    if found == *digest {
        return Ok(());
    }
    let cause = format!("its content has digest {found}");
    Err(Error::new(Kind::Damaged, format!("read blob {digest}"), cause)
        .next("fetch the image, or pull the ring, again"))
}

pub(super) fn check_size(descriptor: &Descriptor, found: u64) -> Result<()> {
    if found == descriptor.size {
        return Ok(());
    }
    let cause = format!("it has {found} bytes, its descriptor says {}", descriptor.size);
    let operation = format!("open blob {}", descriptor.digest_text());
    Err(Error::new(Kind::Damaged, operation, cause).next("fetch the image, or pull the ring, again"))
}

/// Opens a file of a directory that strangers may have written: never through a symbolic link, and never something
/// that would block or act when it is opened.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let operation = || format!("open {}", quote(path));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let refuse = || Err(Error::new(Kind::Invalid, operation(), "it is not a regular file"));
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => return refuse(),
        Err(errno) => return Err(errno).context(operation),
    };
    let metadata = file.metadata().context(operation)?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { refuse() }
}

fn read_regular(path: &Path, cap: u64) -> Result<Vec<u8>> {
    let (file, size) = open_regular(path)?;
    let operation = || format!("read {}", quote(path));
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).context(operation)?;
    if bytes.len() as u64 > cap {
        let cause = format!("{size} bytes, at most {cap} are read");
        return Err(Error::new(Kind::Damaged, operation(), cause));
    }
    Ok(bytes)
}

fn absent(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).context(|| format!("look at {}", quote(path))),
    }
}

/// The lock of a file that nobody writes.
fn lock_if_left(path: &Path) -> Result<Option<File>> {
    match open_regular(path) {
        Ok((file, _)) => Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file)),
        // Committed or removed since the directory was read.
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", quote(path)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path().join("a/b")).unwrap();
        let blobs = directory.path().join("a/b/blobs/sha256");
        let count = || fs::read_dir(&blobs).unwrap().count();
        let (digest, size) = layout.put_blob(b"content").unwrap();
        assert_eq!((size, layout.has_blob(&digest), count()), (7, true, 1));
        // A damaged one is healed.
        fs::write(layout.blob_path(&digest), "c").unwrap();
        layout.put_blob(b"content").unwrap();
        assert_eq!(layout.read_blob(&digest, 7).unwrap(), b"content");
        assert_eq!(layout.read_blob(&digest, 6).unwrap_err().kind(), Kind::Damaged);

        let mut stage = layout.stage_blob().unwrap();
        stage.file().write_all(b"half").unwrap();
        fs::write(blobs.join(".tmp-left by a crash"), "x").unwrap();
        fs::write(directory.path().join("a/b/.tmp-index.json"), "x").unwrap();
        assert_eq!(count(), 3);
        layout.sweep_temporary().unwrap();
        assert_eq!(count(), 2, "only what nobody writes goes");
        assert!(!directory.path().join("a/b/.tmp-index.json").exists());
        assert_eq!(layout.blobs().unwrap(), std::slice::from_ref(&digest));
        stage.commit(&digest_of(b"half")).unwrap();
        drop(layout.stage_blob().unwrap());
        assert_eq!((count(), layout.blobs().unwrap().len()), (2, 2));
        layout.remove_blob(&digest).unwrap();
        layout.remove_blob(&digest).unwrap();
        assert!(!layout.has_blob(&digest));
        // Creating it again changes nothing.
        Layout::create(layout.directory()).unwrap();
        assert_eq!(count(), 1);
    }
}
