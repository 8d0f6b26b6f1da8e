//! Sealed layers: directories in overlay format that appear whole and never change.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result, quote};
use crate::ids::LayerId;
use crate::sys::fs::{TEMPORARY_PREFIX, random_id, remove_tree, sync_directory};

/// The directory of all layers. Only this type writes there.
#[derive(Debug, Clone)]
pub struct Layers {
    directory: PathBuf,
}

impl Layers {
    /// The layers in a directory that exists.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the content of a layer is, if it is there.
    #[must_use]
    pub fn content(&self, id: &LayerId) -> PathBuf {
        self.directory.join(id.as_str()).join("diff")
    }

    /// The layer whose content a directory is. Its path may begin anywhere above this directory, as in a mount table.
    #[must_use]
    pub fn shown_by(&self, directory: &Path) -> Option<LayerId> {
        let mut names = directory.components().rev().map(|component| component.as_os_str());
        let (content, id, parent) = (names.next()?, names.next()?, names.next()?);
        let ours = content == "diff" && Some(parent) == self.directory.file_name();
        ours.then(|| id.to_str()?.parse().ok()).flatten()
    }

    /// Whether the content of a layer is there.
    #[must_use]
    pub fn has(&self, id: &LayerId) -> bool {
        self.content(id).is_dir()
    }

    /// Takes over a directory by rename: an upper that nobody writes any more, or a finished staging directory.
    /// Doing it again after a crash is harmless.
    ///
    /// # Errors
    /// Those of mkdir, rename and fsync; the directory is then where it was, or here.
    pub fn adopt(&self, id: &LayerId, from: &Path) -> Result<()> {
        let operation = || format!("seal layer {id}");
        let home = self.directory.join(id.as_str());
        match fs::create_dir(&home) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.context(operation)?,
        }
        fs::rename(from, home.join("diff")).context(operation)?;
        sync_directory(&home)?;
        sync_directory(&self.directory)
    }

    /// A new empty directory on the same file system, to build a layer in. If its maker dies, [`Layers::sweep`]
    /// removes it.
    ///
    /// # Errors
    /// Those of mkdir.
    pub fn stage(&self) -> Result<Stage> {
        loop {
            let name = LayerId::from_random(random_id()?);
            let directory = self.directory.join(format!("{TEMPORARY_PREFIX}{name}"));
            fs::create_dir(&directory).context(|| format!("create {}", quote(&directory)))?;
            // A sweep may come between the two steps and take it: the next one has another name.
            if let Some(lock) = lock_stage(&directory)? {
                return Ok(Stage { directory, _lock: lock });
            }
        }
    }

    /// Removes a layer. It vanishes in one step and is then deleted at leisure.
    ///
    /// # Errors
    /// Those of rename and unlink; that it is not there is none.
    pub fn remove(&self, id: &LayerId) -> Result<()> {
        let gone = self.directory.join(format!("{TEMPORARY_PREFIX}{id}"));
        match fs::rename(self.directory.join(id.as_str()), &gone) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.context(|| format!("remove layer {id}"))?,
        }
        remove_tree(&gone)
    }

    /// Every layer that is there now.
    ///
    /// # Errors
    /// Those of readdir.
    pub fn list(&self) -> Result<Vec<LayerId>> {
        let operation = || format!("list {}", quote(&self.directory));
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).context(operation)? {
            let name = entry.context(operation)?.file_name();
            // Anything else is not ours to judge.
            if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// Removes what makers and removers left when they died; only one process does this at a time.
    ///
    /// # Errors
    /// Those of readdir and unlink.
    pub fn sweep(&self) -> Result<()> {
        let operation = || format!("sweep {}", quote(&self.directory));
        for entry in fs::read_dir(&self.directory).context(operation)? {
            let entry = entry.context(operation)?;
            if !entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                continue;
            }
            // What somebody is building is locked by them.
            if let Some(_lock) = lock_stage(&entry.path())? {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Layers {
    /// What makers and removers left when they died, and the next sweep takes.
    ///
    /// # Errors
    /// Those of readdir.
    pub fn abandoned(&self) -> Result<Vec<PathBuf>> {
        let operation = || format!("list {}", quote(&self.directory));
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).context(operation)? {
            let entry = entry.context(operation)?;
            let temporary = entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX);
            // The lock is let go at once: a sweep would only come a moment later.
            if temporary && lock_stage(&entry.path())?.is_some() {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

/// A directory under construction, removed when it is dropped.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    /// Says that its maker lives.
    _lock: File,
}

impl Stage {
    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A leftover is swept by the worker; nothing refers to it.
        let _ = remove_tree(&self.directory);
    }
}

/// Takes the lock on a stage's directory; `None` if somebody else has it, or the directory is gone.
fn lock_stage(directory: &Path) -> Result<Option<File>> {
    let operation = || format!("lock {}", quote(directory));
    let file = match File::open(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context(operation)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(directory.is_dir().then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context(operation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adopting_again_after_a_crash_is_harmless() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().to_owned());
        let id: LayerId = "ab".repeat(16).parse().unwrap();
        let upper = directory.path().join("upper");
        fs::create_dir(&upper).unwrap();
        // The crash came after mkdir and before rename.
        fs::create_dir(directory.path().join(id.as_str())).unwrap();
        assert!(!layers.has(&id));
        layers.adopt(&id, &upper).unwrap();
        assert!(layers.has(&id));
        assert_eq!(layers.list().unwrap(), [id]);
    }

    #[test]
    fn a_sweep_takes_what_the_dead_left_and_nothing_that_is_being_built() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().to_owned());
        let stage = layers.stage().unwrap();
        let left = directory.path().join(".tmp-left");
        fs::create_dir(&left).unwrap();
        assert_eq!(layers.abandoned().unwrap(), std::slice::from_ref(&left));
        layers.sweep().unwrap();
        assert!(stage.directory().is_dir() && !left.exists());
    }

    #[test]
    fn a_dropped_stage_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().to_owned());
        let stage = layers.stage().unwrap();
        fs::write(stage.directory().join("f"), "").unwrap();
        drop(stage);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
