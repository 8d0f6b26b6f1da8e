//! An OCI image layout written as a tar file: `oci-archive:FILE`.
//!
//! Blobs go in as they come; index and marker, which make a layout of them, come last. The file appears under its name
//! once it is whole and on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::layout::{INDEX, MARKER, MARKER_TEXT, digest_of};
use super::manifest::Index;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Digest;
use crate::sys::fs::{TEMPORARY_PREFIX, by_descriptor, random_id, sync_directory};

const BLOCK: usize = 512;

/// An archive that is being written; dropping it removes it.
#[derive(Debug)]
pub struct Tarball {
    file: File,
    /// Where it lies until it is whole, on a file system that knows no files without a name.
    temporary: Option<PathBuf>,
    target: PathBuf,
    blobs: Vec<Digest>,
}

impl Tarball {
    /// Begins an archive.
    ///
    /// # Errors
    /// [`Kind::Exists`] if something has that name, else those of creating a file beside it.
    pub fn create(target: &Path) -> Result<Self> {
        let operation = || format!("create {}", quote(target));
        if fs::symlink_metadata(target).is_ok() {
            let error = Error::new(Kind::Exists, operation(), "there is something of that name");
            return Err(error.next("give another name, or remove it"));
        }
        let (file, temporary) = open_unseen(directory_of(target)).map_err(|error| error.during(operation()))?;
        let mut tarball = Self { file, temporary, target: target.to_owned(), blobs: Vec::new() };
        for directory in ["blobs/", "blobs/sha256/"] {
            tarball.header(directory, EntryType::Directory, 0).context(operation)?;
        }
        Ok(tarball)
    }

    /// Whether a blob is in it.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest)
    }

    /// Adds a blob that is read from `content` and has `size` bytes. Whether they are the digest's is the caller's to know.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if there are fewer bytes, else those of reading and writing; the archive is then of no use.
    pub fn put(&mut self, digest: &Digest, size: u64, content: &mut dyn Read) -> Result<()> {
        let operation = || format!("write blob {digest}");
        self.header(&format!("blobs/sha256/{}", digest.hex()), EntryType::Regular, size).context(operation)?;
        let copied = io::copy(&mut content.take(size), &mut self.file).context(operation)?;
        if copied != size {
            return Err(Error::new(Kind::Damaged, operation(), format!("it has {copied} bytes instead of {size}")));
        }
        self.pad(size).context(operation)?;
        self.blobs.push(digest.clone());
        Ok(())
    }

    /// Adds a blob that is a short text, unless it is there already.
    ///
    /// # Errors
    /// As [`Tarball::put`].
    pub fn put_text(&mut self, text: &[u8]) -> Result<(Digest, u64)> {
        let (digest, size) = (digest_of(text), text.len() as u64);
        if !self.has(&digest) {
            self.put(&digest, size, &mut &*text)?;
        }
        Ok((digest, size))
    }

    /// Completes the archive, which appears under its name; durable when this returns.
    ///
    /// # Errors
    /// Those of writing and rename; nothing has then appeared.
    pub fn finish(mut self, index: &Index) -> Result<()> {
        let target = self.target.clone();
        let operation = || format!("write {}", quote(&target));
        for (name, text) in [(INDEX, index.to_json()?.as_slice()), (MARKER, MARKER_TEXT)] {
            self.header(name, EntryType::Regular, text.len() as u64).context(operation)?;
            self.file.write_all(text).context(operation)?;
            self.pad(text.len() as u64).context(operation)?;
        }
        self.file.write_all(&[0; 2 * BLOCK]).context(operation)?;
        self.file.sync_all().context(operation)?;
        match &self.temporary {
            Some(temporary) => fs::rename(temporary, &self.target).context(operation)?,
            None => give_name(&self.file, &self.target).context(operation)?,
        }
        self.temporary = None;
        sync_directory(directory_of(&self.target))
    }

    fn header(&mut self, name: &str, kind: EntryType, size: u64) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.file.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let missing = size.next_multiple_of(BLOCK as u64) - size;
        self.file.write_all(&[0; BLOCK][..usize::try_from(missing).unwrap_or(0)])
    }
}

impl Drop for Tarball {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nobody can be told here.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A file of which nothing is left if its writer dies; where there are none, one with a name that says that it is unfinished.
fn open_unseen(directory: &Path) -> Result<(File, Option<PathBuf>)> {
    // Layers hold what the programs of a container wrote, secrets included.
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        other => return Ok((other.context(|| format!("create a file in {}", quote(directory)))?.into(), None)),
    }
    let temporary = directory.join(format!("{TEMPORARY_PREFIX}{:032x}", u128::from_ne_bytes(random_id()?)));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    Ok((file.context(|| format!("create {}", quote(&temporary)))?, Some(temporary)))
}

/// It fails if something has that name by now.
fn give_name(file: &File, target: &Path) -> rustix::io::Result<()> {
    linkat(CWD, by_descriptor(file), CWD, target, AtFlags::SYMLINK_FOLLOW)
}

/// A path of one name lies in the working directory.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::super::archive::Archive;
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_not_finished_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let mut tarball = Tarball::create(&path).unwrap();
        let (digest, size) = tarball.put_text(b"some text").unwrap();
        assert_eq!(tarball.put_text(b"some text").unwrap(), (digest.clone(), size));
        assert!(!path.exists());
        tarball.finish(&Index::default()).unwrap();
        assert_eq!(Archive::open(&path).unwrap().read_blob(&digest, 100).unwrap(), b"some text");
        assert_eq!(Tarball::create(&path).unwrap_err().kind(), Kind::Exists);
        let mut broken = Tarball::create(&directory.path().join("b.tar")).unwrap();
        assert_eq!(broken.put(&digest, size + 1, &mut &b"some text"[..]).unwrap_err().kind(), Kind::Damaged);
        drop(broken);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
