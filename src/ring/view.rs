//! The file system of an entry, read-only, without running it and without a mount that anybody else can see.

use std::path::PathBuf;

use super::Locked;
use super::entry::Entry;
use super::selector::{Selected, Selector};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::LayerId;
use crate::overlay::{Detached, Stack};

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

impl View {
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
        let name = self.ring().name();
        let operation = || format!("look into '{name}{selector}'");
        let (base, layers) = match self.state.select_view(selector).context(operation)? {
            Selected::Entry(entry) => (self.base_of(entry)?, entry.layers.clone()),
            Selected::Base => (self.newest_base()?, Vec::new()),
        };
        let subject = format!("'{name}{selector}'");
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
        let mut lowers: Vec<_> = upper.into_iter().chain(own).chain(base).collect();
        // The kernel makes no overlay of a single directory, nor is one needed.
        let root = if lowers.len() == 1 {
            Root::Plain(lowers.remove(0))
        } else {
            Root::Mounted(Detached::overlay(&Stack::view(lowers, store.class()), subject)?)
        };
        Ok(View { root })
    }

    fn base_of(&self, entry: &Entry) -> Result<Vec<PathBuf>> {
        self.state.base_directories(&entry.base).ok_or_else(|| {
            let operation = format!("look into '{}@{}'", self.ring().name(), entry.seq);
            Error::new(Kind::NotFound, operation, format!("its base, {}, is gone", entry.base))
        })
    }

    /// What the newest entry stands on, or else the run that has the ring now.
    fn newest_base(&self) -> Result<Vec<PathBuf>> {
        let base = self
            .state
            .newest()
            .or(self.state.entries.last())
            .and_then(|entry| self.state.base_directories(&entry.base));
        base.ok_or_else(|| {
            let operation = format!("look into '{}@base'", self.ring().name());
            Error::new(Kind::NotFound, operation, "no entry says what its base was, or it is gone")
        })
    }
}
