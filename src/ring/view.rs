//! The file system of an entry, read-only, without running it and without a mount that anybody else can see.

use std::path::PathBuf;

use super::Locked;
use super::entry::Entry;
use super::selector::{Selected, Selector};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::LayerId;
use crate::overlay::{Detached, Stack};
use crate::sys::xattr::OverlayClass;

/// An entry's (or the bare base's) file system, as long as this value lives.
#[derive(Debug)]
pub struct View {
    root: Root,
}

#[derive(Debug)]
enum Root {
    /// One directory shows it all.
    Plain(PathBuf),
    /// Several, stacked.
    Mounted(Detached),
}

/// What a state is made of.
pub(super) struct Parts {
    pub(super) entry: Option<Entry>,
    /// Of the base.
    pub(super) fingerprint: String,
    /// Its directories, uppermost first.
    pub(super) base: Vec<PathBuf>,
    /// Lowest first.
    pub(super) layers: Vec<LayerId>,
}

impl View {
    /// A view of directories, uppermost first.
    pub(super) fn of(mut lowers: Vec<PathBuf>, class: OverlayClass, subject: &str) -> Result<Self> {
        // The kernel makes no overlay of a single directory, nor is one needed.
        let root = if lowers.len() == 1 {
            Root::Plain(lowers.remove(0))
        } else {
            Root::Mounted(Detached::overlay(&Stack::view(lowers, class), subject)?)
        };
        Ok(Self { root })
    }

    /// The directory to look from.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        match &self.root {
            Root::Plain(path) => path.clone(),
            Root::Mounted(mount) => mount.path(),
        }
    }
}

impl Locked {
    /// Opens the file system that `selector` means. Lost layers are rebuilt.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such entry or its base is gone, else those of the mount.
    pub fn view(&self, selector: &Selector) -> Result<View> {
        let Parts { base, layers, .. } = self.parts(selector)?;
        let subject = format!("'{}{selector}'", self.ring().name());
        self.ensure_layers(&layers, &subject)?;
        self.stack(&layers, base, &subject)
    }

    /// A view of `layers`, lowest first, on a base.
    pub(super) fn stack(&self, layers: &[LayerId], base: Vec<PathBuf>, subject: &str) -> Result<View> {
        self.stack_below(None, layers, base, subject)
    }

    /// A view of `layers`, lowest first, on a base, with a directory over them that is no layer yet.
    pub(super) fn stack_below(
        &self,
        upper: Option<PathBuf>,
        layers: &[LayerId],
        base: Vec<PathBuf>,
        subject: &str,
    ) -> Result<View> {
        let store = &self.ring().store;
        let own = layers.iter().rev().map(|id| store.layers().content(id));
        let lowers: Vec<_> = upper.into_iter().chain(own).chain(base).collect();
        View::of(lowers, store.class(), subject)
    }

    /// The base and the layers, lowest first, that `selector` means; and which entry, if not the bare base. What is lost of
    /// them is not rebuilt yet.
    pub(super) fn parts(&self, selector: &Selector) -> Result<Parts> {
        let name = self.ring().name();
        let operation = || format!("look into '{name}{selector}'");
        Ok(match self.state.select_view(selector).context(operation)? {
            Selected::Entry(entry) => Parts {
                entry: Some(entry.clone()),
                fingerprint: entry.base.clone(),
                base: self.base_of(entry)?,
                layers: entry.layers.clone(),
            },
            Selected::Base => {
                let (fingerprint, base) = self.newest_base()?;
                Parts { entry: None, fingerprint, base, layers: Vec::new() }
            }
        })
    }

    fn base_of(&self, entry: &Entry) -> Result<Vec<PathBuf>> {
        self.state.base_directories(&entry.base).ok_or_else(|| {
            let operation = format!("look into '{}@{}'", self.ring().name(), entry.seq);
            Error::new(Kind::NotFound, operation, format!("its base, {}, is gone, or was never seen here", entry.base))
                .next("a run on the ring over that base makes it known")
        })
    }

    /// What the newest entry stands on, or else the run that has the ring now.
    fn newest_base(&self) -> Result<(String, Vec<PathBuf>)> {
        let newest = self.state.newest().or(self.state.entries.last()).map(|entry| entry.base.clone());
        let base = newest.and_then(|base| Some((base.clone(), self.state.base_directories(&base)?)));
        base.ok_or_else(|| {
            let operation = format!("look into '{}@base'", self.ring().name());
            Error::new(Kind::NotFound, operation, "no entry says what its base was, or it is gone")
        })
    }
}
