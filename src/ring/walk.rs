//! Through all rings of a store, while others make some and remove some; and what is left of those who died over that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{LOCK, Ring, has_blobs};
use crate::error::{Context, Kind, Result, quote};
use crate::ids::{Name, RingName};
use crate::store::Store;
use crate::sys::fs::{TEMPORARY_PREFIX, remove_tree};
use crate::sys::lock::{Lock, Sharing};

impl Ring {
    /// All rings of a store, by name; also those that cannot be read, so that nobody takes what they name for garbage.
    ///
    /// # Errors
    /// Those of readdir.
    pub fn list(store: &Store) -> Result<Vec<Self>> {
        let is_one = |ring: &Self| ring.is_listed();
        let mut rings: Vec<_> = Self::places(store)?.into_iter().filter(is_one).collect();
        rings.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rings)
    }

    /// Looks at all rings of a store, by name, one after another as the iterator is asked for the next; see
    /// [`Ring::unless_gone`].
    ///
    /// # Errors
    /// As [`Ring::list`].
    pub fn each<'a, T: 'a>(
        store: &Store,
        mut look: impl FnMut(&Self) -> Result<T> + 'a,
    ) -> Result<impl Iterator<Item = (Self, Result<T>)> + 'a> {
        let rings = Self::list(store)?.into_iter();
        Ok(rings.filter_map(move |ring| ring.unless_gone(&mut look).map(|found| (ring, found))))
    }

    /// What a look at the ring finds; `None` if it failed and the ring has been removed meanwhile, as any ring of a list may
    /// be: for whoever goes through the list it was never there.
    pub fn unless_gone<T>(&self, look: impl FnOnce(&Self) -> Result<T>) -> Option<Result<T>> {
        let identity = || fs::metadata(&self.directory).ok().map(|directory| (directory.dev(), directory.ino()));
        let before = identity();
        let found = look(self);
        let is_here = || before.is_some() && identity() == before && self.is_listed();
        if found.is_ok() || is_here() { Some(found) } else { None }
    }

    /// At most so many rings of the store, in no order, and whether those are all: in a store of millions only few are
    /// read of the directories, too.
    ///
    /// # Errors
    /// Those of reading directories.
    pub fn list_some(store: &Store, most: usize) -> Result<(Vec<Self>, bool)> {
        let mut rings = Vec::new();
        for owner in names_in(&store.rings())? {
            let directory = store.rings().join(owner.as_str());
            for child in fs::read_dir(&directory).context(|| format!("list {}", quote(&directory)))? {
                let Ok(child) = child else { continue };
                let Some(name) = child.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                if rings.len() >= most {
                    return Ok((rings, false));
                }
                let ring = Self::at(store, &RingName { owner: owner.clone(), name });
                if ring.state_file().is_file() {
                    rings.push(ring);
                }
            }
        }
        Ok((rings, true))
    }

    /// One that is just being made, or whose making was cut short, has neither.
    fn is_listed(&self) -> bool {
        self.state_file().is_file() || has_blobs(&self.directory)
    }

    /// Every directory that a ring may be in.
    fn places(store: &Store) -> Result<Vec<Self>> {
        let mut places = Vec::new();
        for owner in names_in(&store.rings())? {
            for name in names_in(&store.rings().join(owner.as_str()))? {
                places.push(Self::at(store, &RingName { owner: owner.clone(), name }));
            }
        }
        Ok(places)
    }

    /// Deletes what makers and removers of rings left when they died.
    ///
    /// # Errors
    /// Those of readdir and unlink.
    pub(super) fn sweep(store: &Store) -> Result<()> {
        for directory in temporary(store)? {
            if let Some(_lock) = lock_if_left(&directory)? {
                remove_tree(&directory)?;
            }
        }
        for ring in Self::places(store)? {
            if let Some(_lock) = ring.lock_if_unmade()? {
                ring.discard()?;
            }
        }
        Ok(())
    }

    /// What makers and removers of rings left when they died.
    ///
    /// # Errors
    /// Those of readdir.
    pub(super) fn leftovers(store: &Store) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for directory in temporary(store)? {
            if lock_if_left(&directory)?.is_some() {
                found.push(directory);
            }
        }
        for ring in Self::places(store)? {
            if ring.lock_if_unmade()?.is_some() {
                found.push(ring.directory);
            }
        }
        Ok(found)
    }

    /// The lock of a ring that there is none of yet, if nobody is about to make it. Packs without a `ring.json` stay: they
    /// are of a ring that lost it, and that of one that is being fetched comes before its first pack.
    fn lock_if_unmade(&self) -> Result<Option<Lock>> {
        let is_unmade = || self.directory.is_dir() && !self.is_listed();
        if !is_unmade() {
            return Ok(None);
        }
        Ok(lock_if_left(&self.directory)?.filter(|_| is_unmade()))
    }
}

/// The directories in which rings are made beside their place, and removed.
fn temporary(store: &Store) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for owner in names_in(&store.rings())? {
        let owner = store.rings().join(owner.as_str());
        let operation = || format!("list {}", quote(&owner));
        for child in fs::read_dir(&owner).context(operation)? {
            let child = child.context(operation)?;
            if child.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                found.push(child.path());
            }
        }
    }
    Ok(found)
}

/// The lock of a directory that is being made or removed, if nobody is at it: whoever is has it.
fn lock_if_left(directory: &Path) -> Result<Option<Lock>> {
    let path = directory.join(LOCK);
    match Lock::try_take(&path, Sharing::Exclusive) {
        Ok(Some(lock)) => Ok(if lock.is_at(&path)? { Some(lock) } else { None }),
        Ok(None) => Ok(None),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The valid names among the directories in `directory`; none if it is not there.
fn names_in(directory: &Path) -> Result<Vec<Name>> {
    let operation = || format!("list {}", quote(directory));
    let children = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(operation)?,
    };
    let mut names = Vec::new();
    for child in children {
        let name = child.context(operation)?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.parse().ok()) {
            names.push(name);
        }
    }
    Ok(names)
}
