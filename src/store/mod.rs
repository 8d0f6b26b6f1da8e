//! Everything that outlives a container and a reboot, below one directory:
//!
//! ```text
//! STORE/
//! ├── format.json            version and features; read before anything else
//! ├── store.lock             shared while something new is being referred to, exclusive while something is collected
//! ├── images.lock            shared while an image is unpacked that nobody stands on yet, exclusive while such go
//! ├── worker.lock, worker.next   one worker packs, one waits (see the ring's worker)
//! ├── worker.seen            which rings the last worker had nothing to do for
//! ├── worker.log             what the last worker that failed failed at
//! ├── layers/ID/diff/        a sealed upper or an unpacked image layer; appears whole, never changes
//! ├── images/               how unpacked images are run, and where their blobs were
//! ├── runs/ID/               a running container's {upper,work,run.json}; the upper leaves it by rename
//! ├── registry.db, -wal, -shm, -bell   what outlives the daemon (see the registry)
//! ├── serve.lock             the daemon that looks after the services of this store
//! ├── transfers/             beginnings of blobs that are being fetched, and where uploads go on; swept when they are old
//! ├── functions/ID/diff/     an unpacked function, named by the digest of its tar file; goes once it was not used for a while
//! ├── templates/OWNER/NAME/  a template's sockets (see its keeper)
//! ├── services/NAME-…/       the log of a service (see the log of services)
//! └── rings/OWNER/NAME/      an OCI image layout with ring.json beside it
//! ```
//!
//! Roots of collection are the rings' `ring.json` and the runs' `run.json`; layers of images stay. Whoever collects lists
//! the layers *before* it reads the roots: a layer is always named by a root before it exists, so one that was there
//! at the first step and is named by nobody at the second is garbage.

mod file_system;
pub mod format;
mod image;
mod layer;
mod run;
pub mod transfer;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::{Durability, replace_file};
use crate::sys::lock::{Lock, Sharing};
use crate::sys::user_namespace::outside;
use crate::sys::xattr::OverlayClass;

pub use file_system::{check as check_file_system, nearest};
pub use image::ImageRecord;
pub use layer::{Layers, Stage};
pub use run::{Run, RunRecord, Volume, copy_root_attributes};
pub use transfer::Transfers;

/// How overlay attributes are spelled by somebody like us: `trusted.` ones are for root of the initial user namespace.
fn own_class() -> OverlayClass {
    if nix::unistd::geteuid().is_root() && outside(0).is_none() { OverlayClass::Trusted } else { OverlayClass::User }
}

/// An opened store.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    class: OverlayClass,
}

impl Store {
    /// Opens the store at `directory`, making it if it is not there.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unsupported`] if a newer regen wrote it, or if its file system cannot hold an upper;
    /// else those of making directories.
    pub fn open(directory: &Path) -> Result<Self> {
        let own = own_class();
        if let format::Found::Present(class) = format::check(directory)? {
            if (class, own) == (OverlayClass::Trusted, OverlayClass::User) {
                let cause = "its layers have attributes that only root of the whole machine can read";
                return Err(Error::new(Kind::Unsupported, format!("open store {}", quote(directory)), cause)
                    .next("give another --store"));
            }
            return Ok(Self { directory: directory.to_owned(), class });
        }
        let store = Self { directory: directory.to_owned(), class: own };
        file_system::check(directory)?;
        for part in ["", "layers", "runs", "rings"] {
            make_directory(&directory.join(part))?;
        }
        let _lock = store.lock_for_collection()?;
        if format::check(directory)? == format::Found::Absent {
            format::write(directory, own)?;
        }
        Ok(store)
    }

    /// Opens the store at `directory` only if it is there already.
    ///
    /// # Errors
    /// As [`Store::open`], but nothing is made.
    pub fn open_existing(directory: &Path) -> Result<Option<Self>> {
        match format::check(directory)? {
            format::Found::Present(_) => Self::open(directory).map(Some),
            format::Found::Absent => Ok(None),
        }
    }

    /// The store's own directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How overlay attributes are spelled in all layers of this store.
    #[must_use]
    pub fn class(&self) -> OverlayClass {
        self.class
    }

    /// The sealed and unpacked layers.
    #[must_use]
    pub fn layers(&self) -> Layers {
        Layers::new(self.directory.join("layers"))
    }

    /// The unpacked functions, each named as a layer by the digest of its tar file. The directory may not be there yet.
    #[must_use]
    pub fn functions(&self) -> Layers {
        Layers::new(self.directory.join("functions"))
    }

    /// What transfers from and to registries have come to.
    #[must_use]
    pub fn transfers(&self) -> Transfers {
        Transfers::new(self.directory.join("transfers"))
    }

    /// Where the rings are, a directory per owner.
    #[must_use]
    pub fn rings(&self) -> PathBuf {
        self.directory.join("rings")
    }

    /// Where the runs are.
    #[must_use]
    pub fn runs(&self) -> PathBuf {
        self.directory.join("runs")
    }

    /// Keeps collection out while something new comes to be referred to.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn lock_against_collection(&self) -> Result<Lock> {
        Lock::wait(&self.directory.join("store.lock"), Sharing::Shared)
    }

    /// Keeps everyone out who could come to refer to what is being collected.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn lock_for_collection(&self) -> Result<Lock> {
        Lock::wait(&self.directory.join("store.lock"), Sharing::Exclusive)
    }

    /// Keeps the layers of images while one is unpacked that no run stands on yet.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn lock_images(&self) -> Result<Lock> {
        Lock::wait(&self.images_lock(), Sharing::Shared)
    }

    /// Keeps everybody from unpacking images; `None` if somebody is at it.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn lock_out_images(&self) -> Result<Option<Lock>> {
        Lock::try_take(&self.images_lock(), Sharing::Exclusive)
    }

    fn images_lock(&self) -> PathBuf {
        self.directory.join("images.lock")
    }

    /// Leaves a line about a worker's failure, in place of the last one.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn note_failure(&self, line: &str) -> Result<()> {
        replace_file(&self.directory, "worker.log", line.as_bytes(), Durability::Volatile)
    }

    /// The lock of the one worker that packs.
    #[must_use]
    pub fn worker_lock(&self) -> PathBuf {
        self.directory.join("worker.lock")
    }

    /// The lock of the one worker that waits to be the next.
    #[must_use]
    pub fn worker_next_lock(&self) -> PathBuf {
        self.directory.join("worker.next")
    }
}

/// Makes a directory that only its owner can look into, if it is not there yet.
///
/// # Errors
/// Those of mkdir(2).
pub fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).context(|| format!("create {}", quote(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_store_is_made_once_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        assert!(Store::open_existing(&path).unwrap().is_none());
        assert!(!path.exists(), "looking made something");
        Store::open(&path).unwrap();
        assert!(Store::open_existing(&path).unwrap().is_some());
        assert!(path.join("layers").is_dir());
    }

    #[test]
    fn a_newer_store_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        Store::open(directory.path()).unwrap();
        let text = r#"{"version":2,"compatible":[],"read_only_compatible":[],"incompatible":["erofs"]}"#;
        fs::write(directory.path().join("format.json"), text).unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("version 2"), "{error}");
    }
}
