//! The extended attributes in which overlayfs keeps its own notes.

use serde::{Deserialize, Serialize};

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
}
