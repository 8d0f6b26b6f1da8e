//! What pushing, pulling, exporting and importing have in common: where to and from, and how far they are.

use std::fmt;
use std::str::FromStr;

use crate::distribution::{Blob, Reference};
use crate::error::{Error, Result};
use crate::image::ImageSource;
use crate::image::manifest::Descriptor;

/// A place outside of the store for an entry, as a user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`.
    Image(ImageSource),
    /// `docker://HOST[:PORT]/REPOSITORY[:TAG]`.
    Registry(Reference),
}

impl Location {
    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Image(source) => source.tag(),
            Self::Registry(reference) => reference.tag(),
        }
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("docker://") {
            return text.parse().map(Self::Registry);
        }
        let next = "give oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://HOST[:PORT]/REPOSITORY[:TAG]";
        text.parse().map(Self::Image).map_err(|error: Error| error.next(next))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(source) => source.fmt(f),
            Self::Registry(reference) => reference.fmt(f),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_layout_an_archive_or_a_repository() {
        for text in ["oci:/a:b", "oci-archive:a.tar", "docker://h.example/a:b"] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
        for bad in ["", "a", "docker:a", "dir:/a", "docker://a"] {
            let line = bad.parse::<Location>().unwrap_err().to_string();
            assert!(line.contains("docker://HOST[:PORT]/REPOSITORY[:TAG]") && !line.contains('\n'), "{line}");
        }
    }
}
