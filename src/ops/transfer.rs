//! What pushing and pulling of rings have in common: how far they are, and where blobs lie on this side.

use crate::distribution::Blob;
use crate::error::Result;
use crate::image::manifest::Descriptor;

/// How far a transfer is, for whoever watches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// What is done: `pushing root/alice`.
    pub what: String,
    /// Bytes that are over.
    pub done: u64,
    /// Bytes that there are.
    pub total: u64,
}

/// What was moved, and what the other side had already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blobs that went over.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that did not need to.
    pub present: u64,
}

/// A descriptor's blob, as a registry is asked for it.
pub(super) fn blob_of(descriptor: &Descriptor) -> Result<Blob> {
    Ok(Blob { digest: descriptor.digest()?, size: descriptor.size })
}
