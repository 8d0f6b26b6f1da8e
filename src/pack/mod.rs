//! A layer as a blob and back: one overlay directory in, one OCI layer (tar, compressed) out.
//!
//! ```text
//! layer directory --scan--> headers + content --pipeline--> blob, digest, diff id
//! blob --verify digest--> reader (tar entries, nothing trusted) --place--> layer directory, diff id checked
//! blob that was unpacked before --the same, its digest verified meanwhile--> layer directory
//! ```
//! `name` says what names mean (whiteouts, opaque directories, escapes), `header` and `reader` write and read tar
//! headers, `sparse` holes, `attribute` extended attributes, `trail` walks directories by descriptor; `change` asks
//! whether a layer holds anything at all, `convert` compresses a pack in another way, `copy` makes a second one of a
//! layer that is still written (`known`, `suspect` and `walk` are parts of that), `restore` puts a part of a
//! state back into a tree that is used.
//! `docs/pack-format.md` is the format for users.
//!
//! Rules: the same layer gives the same bytes; every field that overlayfs can hold survives; a pack is foreign bytes,
//! so nothing in it reaches a path outside of the directory it is unpacked into, and overlay's own attributes are
//! made from the names only.

mod attribute;
mod change;
mod content;
mod convert;
mod copy;
mod header;
mod known;
mod name;
mod outlook;
mod pipeline;
mod place;
mod reader;
mod record;
mod restore;
mod scan;
mod seen;
mod sparse;
mod suspect;
mod trail;
mod unpack;
mod walk;

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, openat};

pub use self::change::{Ignore, has_changes, has_changes_over};
pub use self::convert::recompress;
pub use self::copy::{LayerCopy, Passed, Room, Upper};
pub use self::restore::{Change, Restoration, Restored};
pub use self::unpack::{Expected, Files, Limits, Unpacked, rebuild_layer, unpack_layer};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Digest;
use crate::sys::xattr::OverlayClass;

/// How a layer's tar stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// What regen writes unless asked otherwise.
    Zstd,
    /// For tools that know no zstd.
    Gzip,
    /// A plain tar stream: digest and diff id are the same.
    None,
}

impl Compression {
    /// The media type of such a layer in an OCI manifest.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::None => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    /// Reads a media type of OCI (also of layers that are not to be distributed) or of docker.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for any other.
    pub fn from_media_type(media_type: &str) -> Result<Self> {
        let oci = media_type
            .strip_prefix("application/vnd.oci.image.layer.v1.")
            .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1."));
        let docker = media_type
            .strip_prefix("application/vnd.docker.image.rootfs.diff.")
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff."));
        match (oci, docker) {
            (Some("tar+zstd"), _) | (_, Some("tar.zstd")) => Ok(Self::Zstd),
            (Some("tar+gzip"), _) | (_, Some("tar.gzip")) => Ok(Self::Gzip),
            (Some("tar"), _) | (_, Some("tar")) => Ok(Self::None),
            _ => {
                let operation = format!("read layer type '{}'", media_type.escape_debug());
                Err(Error::new(Kind::Unsupported, operation, "it is not tar, tar+gzip or tar+zstd"))
            }
        }
    }
}

/// How much work a pack is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// It follows an exit, and may be of use for a few more only.
    Quick,
    /// It takes the place of many, and stays.
    Lasting,
}

/// How a layer's tar stream is compressed, and how well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// In which format.
    pub compression: Compression,
    /// How well, where the format leaves that open.
    pub effort: Effort,
}

impl From<Compression> for Coding {
    fn from(compression: Compression) -> Self {
        Self { compression, effort: Effort::Quick }
    }
}

/// A blob that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Of the blob as it was written.
    pub digest: Digest,
    /// Of the tar stream in it.
    pub diff_id: Digest,
    /// Length of the blob.
    pub packed_bytes: u64,
    /// Length of the tar stream.
    pub tar_bytes: u64,
    /// Sockets, relative to the layer: a tar stream cannot hold them, and nobody listens any more.
    pub sockets: Vec<PathBuf>,
}

/// Writes a layer into `blob`, from its current position on. The caller syncs it.
///
/// The layer must not change meanwhile. `progress` is given the tar bytes so far, every mebibyte. Starts threads.
///
/// # Errors
/// [`Kind::Unsupported`] for a file that the layer alone does not hold (overlay redirects), [`Kind::Damaged`] if the
/// layer changes, else those of reading it and of writing the blob; what `blob` then holds is of no use.
pub fn pack_layer(
    layer: &Path,
    class: OverlayClass,
    coding: impl Into<Coding>,
    blob: &mut File,
    progress: &mut dyn FnMut(u64),
) -> Result<Packed> {
    let operation = || format!("pack layer {}", quote(layer));
    let root = openat(CWD, layer, trail::DIRECTORY, Mode::empty()).context(operation)?;
    let mut sockets = Vec::new();
    let streams = pipeline::run(coding.into(), blob, progress, |stream| {
        sockets = scan::scan(root, class, stream)?;
        Ok(())
    })
    .context(operation)?;
    Ok(Packed {
        digest: streams.digest,
        diff_id: streams.diff_id,
        packed_bytes: streams.packed_bytes,
        tar_bytes: streams.tar_bytes,
        sockets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_types_of_oci_and_docker_are_known() {
        for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
            assert_eq!(Compression::from_media_type(compression.media_type()).unwrap(), compression);
        }
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert_eq!(Compression::from_media_type(docker).unwrap(), Compression::Gzip);
        for bad in ["", "application/json", "application/vnd.oci.image.layer.v1.tar+xz"] {
            assert_eq!(Compression::from_media_type(bad).unwrap_err().kind(), Kind::Unsupported);
        }
    }
}
