//! The extended attributes in which overlayfs keeps its own notes.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result, quote};

/// Where an overlay keeps its attributes: fixed by how it is mounted, and to be the same for every layer of a chain
/// (with the wrong one, deleted files come back).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayClass {
    /// `trusted.overlay.*`: mounted by root in the initial user namespace.
    Trusted,
    /// `user.overlay.*`: mounted with `userxattr`, inside a user namespace.
    User,
}

impl OverlayClass {
    /// The prefix of this class's attributes, with its final dot.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
        }
    }

    /// The attribute that says that a directory hides the one below it.
    #[must_use]
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// Whether a directory of a layer hides the one below it.
    ///
    /// # Errors
    /// Those of getxattr(2) other than that there is no such attribute.
    pub fn is_opaque(self, directory: &Path) -> Result<bool> {
        let value = xattr::get(directory, self.opaque()).context(|| format!("read {}", quote(directory)))?;
        Ok(value.as_deref() == Some(b"y"))
    }
}

/// A path to `name` in an open directory, for the calls that take a path only and follow no link at its end
/// (`lgetxattr` and its kin): whatever was renamed meanwhile, and however deep it lies.
#[must_use]
pub fn path_at(directory: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat()
}
