//! What an entry stands on, as layers of an image: its base, lowest first.
//!
//! ```text
//! image       its own blobs, where they still are; else its layers, packed anew
//! directory   one layer, packed without what is mounted in it
//! engine's    its layers as one: what a container would see of them
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::ids::Digest;
use crate::image::open::{Image, open_image};
use crate::image::reference::ImageSource;
use crate::image::{ImageConfig, LayerBlob};
use crate::ops::base;
use crate::overlay::{Detached, Stack};
use crate::ring::entry::Entry;
use crate::ring::state::{PackRecord, RingState};
use crate::store::{Stage, Store};

/// A layer to be.
#[derive(Debug)]
pub(super) enum Part {
    /// A blob that is there.
    Blob(File, PackRecord),
    /// A directory that has to be packed.
    Tree(Tree),
}

/// A directory as it is seen.
#[derive(Debug)]
pub(super) enum Tree {
    /// A layer of the store.
    Layer(PathBuf),
    /// By a mount that nobody else sees.
    Mounted(Detached),
}

impl Tree {
    /// Where it is, as long as this lives.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Layer(path) => path.clone(),
            // The path of a descriptor is a link, which is not to be taken for the directory.
            Self::Mounted(mount) => mount.path().join("."),
        }
    }
}

/// A base in parts.
#[derive(Debug)]
pub(super) struct Below {
    /// Lowest first.
    pub parts: Vec<Part>,
    /// How a container of it is run, where it is an image's.
    pub config: Option<ImageConfig>,
    /// The digest of the image's manifest, if its own blobs are used.
    pub manifest: Option<Digest>,
    /// Holds copies of an archive's blobs.
    _scratch: Stage,
}

/// Finds the base of an entry.
///
/// # Errors
/// [`Kind::NotFound`] if it is gone, [`Kind::State`] if another one is in its place.
pub(super) fn find(store: &Store, state: &RingState, entry: &Entry) -> Result<Below> {
    let scratch = store.layers().stage()?;
    if !entry.base.starts_with("image:") {
        let part = directory_part(store, state, entry)?;
        return Ok(Below { parts: vec![part], config: None, manifest: None, _scratch: scratch });
    }
    let record = store.image(&entry.base);
    let config = record.as_ref().and_then(|record| serde_json::to_vec(&record.config).ok());
    let config = config.and_then(|text| ImageConfig::parse(&text).ok());
    let source = record.and_then(|record| record.source.parse::<ImageSource>().ok());
    if let Some(image) = source.and_then(|source| original(store, &source, &entry.base, scratch.directory())) {
        let parts = image.layers.iter().map(|layer| blob_part(&image, layer)).collect::<Result<_>>()?;
        let (config, manifest) = (Some(image.config), Some(image.manifest_digest));
        return Ok(Below { parts, config, manifest, _scratch: scratch });
    }
    let directories = state.base_directories(&entry.base).ok_or_else(|| gone(entry))?;
    let parts = directories.into_iter().rev().map(|directory| Part::Tree(Tree::Layer(directory))).collect();
    Ok(Below { parts, config, manifest: None, _scratch: scratch })
}

/// The image as it was unpacked, if it is still where it was.
fn original(store: &Store, source: &ImageSource, fingerprint: &str, scratch: &Path) -> Option<Image> {
    let image = open_image(source, scratch).ok()?;
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    (base::of_image(store, &diff_ids).fingerprint == fingerprint).then_some(image)
}

fn blob_part(image: &Image, layer: &LayerBlob) -> Result<Part> {
    let pack = PackRecord {
        digest: layer.digest.clone(),
        diff_id: layer.diff_id.clone(),
        bytes: layer.descriptor.size,
        media_type: layer.media_type.media_type().to_owned(),
    };
    Ok(Part::Blob(image.open_layer(layer)?, pack))
}

fn directory_part(store: &Store, state: &RingState, entry: &Entry) -> Result<Part> {
    let directories = state.base_directories(&entry.base).ok_or_else(|| gone(entry))?;
    let now = match directories.as_slice() {
        [only] if entry.base.starts_with("dir:") => base::of_directory(only)?.fingerprint,
        lowers => base::of_lowers(lowers),
    };
    if now != entry.base {
        let cause = format!("its base, {}, is another one now: {now}", entry.base);
        return Err(Error::new(Kind::State, format!("look for the base of entry @{}", entry.seq), cause)
            .next("export the entry without '--full'"));
    }
    let view = match directories.as_slice() {
        [only] => Detached::bare(only)?,
        _ => Detached::overlay(&Stack::view(directories, store.class()), "the base of an entry")?,
    };
    Ok(Part::Tree(Tree::Mounted(view)))
}

fn gone(entry: &Entry) -> Error {
    let cause = format!("its base, {}, is gone", entry.base);
    Error::new(Kind::NotFound, format!("look for the base of entry @{}", entry.seq), cause)
        .next("export the entry without '--full'")
}
