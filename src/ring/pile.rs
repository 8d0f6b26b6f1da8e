//! Directories of several layers that overlayfs would show as one, and what would show of them.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result, quote};
use crate::sys::xattr::OverlayClass;

/// One directory, of all layers that have a part in it.
#[derive(Debug)]
pub(super) struct Pile {
    class: OverlayClass,
    /// Uppermost first, each with the place of its layer among those that the pile was made of.
    parts: Vec<(usize, PathBuf)>,
    closed: Closed,
}

/// Whether what lies under a pile is hidden by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    Yes,
    No,
}

/// What shows under a name.
#[derive(Debug)]
pub(super) enum Child {
    /// Anything but a directory, also a whiteout.
    File(Found),
    Directory(Pile),
}

/// A file, and the place of the layer that it shows from.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) layer: usize,
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
}

impl Found {
    pub(super) fn is_whiteout(&self) -> bool {
        self.metadata.file_type().is_char_device() && self.metadata.rdev() == 0
    }
}

impl Pile {
    /// The roots of layers, lowest first; that is also how they are counted.
    pub(super) fn of_layers(directories: &[PathBuf], class: OverlayClass) -> Result<Self> {
        let mut pile = Self { class, parts: Vec::new(), closed: Closed::No };
        for (layer, directory) in directories.iter().enumerate().rev() {
            pile.add(layer, directory.clone())?;
            if pile.closed == Closed::Yes {
                break;
            }
        }
        Ok(pile)
    }

    /// Whether what lies further down is hidden.
    pub(super) fn closed(&self) -> Closed {
        self.closed
    }

    /// The directory whose attributes show, and its layer; `None` for no layers at all.
    pub(super) fn top(&self) -> Option<(usize, &Path)> {
        self.parts.first().map(|(layer, path)| (*layer, path.as_path()))
    }

    /// Every name of every part.
    pub(super) fn names(&self) -> Result<HashSet<OsString>> {
        let mut all = HashSet::new();
        for (_, directory) in &self.parts {
            all.extend(names(directory)?);
        }
        Ok(all)
    }

    /// What shows under a name; `None` if no part has it.
    pub(super) fn child(&self, name: &OsStr) -> Result<Option<Child>> {
        let mut pile = Self { class: self.class, parts: Vec::new(), closed: Closed::No };
        for (layer, directory) in &self.parts {
            let path = directory.join(name);
            let Some(metadata) = look(&path)? else { continue };
            if metadata.is_dir() {
                pile.add(*layer, path)?;
            } else if pile.parts.is_empty() {
                return Ok(Some(Child::File(Found { layer: *layer, path, metadata })));
            } else {
                // Whatever it is, it hid what lies further down, and has to go on doing so.
                pile.closed = Closed::Yes;
            }
            if pile.closed == Closed::Yes {
                break;
            }
        }
        Ok((!pile.parts.is_empty()).then_some(Child::Directory(pile)))
    }

    fn add(&mut self, layer: usize, directory: PathBuf) -> Result<()> {
        if self.class.is_opaque(&directory)? {
            self.closed = Closed::Yes;
        }
        self.parts.push((layer, directory));
        Ok(())
    }
}

/// What is there; `None` for nothing.
pub(super) fn look(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).context(|| format!("look at {}", quote(path))),
    }
}

/// The names in a directory.
pub(super) fn names(directory: &Path) -> Result<Vec<OsString>> {
    let operation = || format!("list {}", quote(directory));
    fs::read_dir(directory).context(operation)?.map(|entry| Ok(entry.context(operation)?.file_name())).collect()
}
