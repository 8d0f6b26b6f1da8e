//! Images become layers of the store: each is verified and unpacked once.

use std::fs::File;
use std::path::Path;

use crate::config::Config;
use crate::error::{Context, Result};
use crate::ids::{Digest, LayerId};
use crate::image::config::ImageConfig;
use crate::image::open::{Image, LayerBlob, open_image};
use crate::image::reference::ImageSource;
use crate::pack::{Compression, Expected, Files, Limits, unpack_layer};
use crate::ring::Base;
use crate::store::{ImageRecord, Store};

use super::base;

/// The most entries that a layer may have; Debian's whole archive of documentation has fewer.
const MAX_ENTRIES: u64 = 20_000_000;

/// Makes sure that all layers of an image are in the store.
///
/// # Errors
/// [`crate::error::Kind::Damaged`] for a digest that is wrong, [`crate::error::Kind::Invalid`] for a hostile layer; nothing of
/// such a layer is ever visible.
pub(super) fn unpack(store: &Store, source: &ImageSource, config: &Config) -> Result<(Base, ImageConfig)> {
    let scratch = store.layers().stage()?;
    let image = open_image(source, scratch.directory())?;
    let layers = store.layers();
    for layer in &image.layers {
        let id = LayerId::of_image(&layer.diff_id);
        if !layers.has(&id) {
            unpack_one(store, &image, layer, config).context(|| format!("unpack image '{source}'"))?;
        }
    }
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let base = base::of_image(store, &diff_ids);
    remember(store, &base.fingerprint, source, &image.config);
    Ok((base, image.config))
}

/// Notes where an image's blobs are, for exports of what stands on it: they do without, so a failure is no harm.
pub(super) fn remember(store: &Store, fingerprint: &str, source: &ImageSource, config: &ImageConfig) {
    let noted = source.absolute().and_then(|source| {
        let config = serde_json::to_value(config).context(|| "write an image's config")?;
        store.note_image(fingerprint, &ImageRecord::new(source.to_string(), config))
    });
    if let Err(error) = noted {
        tracing::debug!("{error}");
    }
}

fn unpack_one(store: &Store, image: &Image, layer: &LayerBlob, config: &Config) -> Result<()> {
    let layers = store.layers();
    let stage = layers.stage()?;
    let content = stage.directory().join("diff");
    make_root(&content)?;
    let blob = image.open_layer(layer)?;
    let media_type = layer.media_type.media_type();
    let foreign = Foreign { blob: &blob, digest: &layer.digest, diff_id: &layer.diff_id, media_type };
    unpack_foreign(store, config, &foreign, &content)?;
    // Image layers are shared by everything that comes from the image: on disk before anything refers to them.
    crate::sys::fs::sync_file_system(&content)?;
    layers.adopt(&LayerId::of_image(&layer.diff_id), &content)
}

/// A layer as strangers packed it.
pub(super) struct Foreign<'a> {
    pub blob: &'a File,
    /// What the blob has to be.
    pub digest: &'a Digest,
    /// What the tar stream in it has to be.
    pub diff_id: &'a Digest,
    pub media_type: &'a str,
}

/// Unpacks foreign bytes into an empty directory, within the limits that the administrator set.
pub(super) fn unpack_foreign(store: &Store, config: &Config, layer: &Foreign<'_>, content: &Path) -> Result<()> {
    let expected = Expected { digest: layer.digest.clone(), diff_id: Some(layer.diff_id.clone()) };
    let compression = Compression::from_media_type(layer.media_type)?;
    let limits = Limits { max_bytes: config.image.max_layer_bytes.0, max_entries: MAX_ENTRIES, files: Files::Layer };
    unpack_layer(layer.blob, &expected, compression, store.class(), &limits, content).map(drop)
}

/// The mode of "/" where no layer of an image says one.
pub(super) fn make_root(path: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let operation = || format!("create {}", crate::error::quote(path));
    std::fs::DirBuilder::new().mode(0o755).create(path).context(operation)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).context(operation)
}
