//! From a reference to an image whose documents are read and checked.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::config::ImageConfig;
use super::layout::{Layout, check_digest, check_size};
use super::manifest::{CONFIG_MAX, Descriptor, Document, Index, LayerType, MANIFEST_MAX, Manifest};
use super::platform;
use super::reference::ImageSource;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;

/// An index may point to an index; more than this is a loop or a prank.
const NESTING_MAX: usize = 4;
/// How many tags or platforms an error lists.
const LISTED_MAX: usize = 10;
/// Overlay stacks at most 500 layers.
const LAYERS_MAX: usize = 500;

/// An image that can be unpacked: documents checked, layers present with the right sizes.
#[derive(Debug)]
pub struct Image {
    /// Which image this is.
    pub manifest_digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// How to run it.
    pub config: ImageConfig,
    /// The layers, bottom first.
    pub layers: Vec<LayerBlob>,
    place: Place,
    scratch: PathBuf,
}

/// A layer as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerBlob {
    /// The blob: digest and size as stored.
    pub descriptor: Descriptor,
    /// Digest of the blob; what is read from it is worth nothing before it was compared with this.
    pub digest: Digest,
    /// Compression.
    pub media_type: LayerType,
    /// Digest of the tar stream before compression: the layer's identity.
    pub diff_id: Digest,
}

/// Opens an image for the machine that regen runs on.
///
/// `scratch` is a directory for [`Image::open_layer`], which needs room there for the largest layer of an archive.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such place, tag, blob or platform; [`Kind::Invalid`] if a document is broken or
/// the tag does not say which image is meant; [`Kind::Damaged`] if a size or digest is wrong; [`Kind::Unsupported`]
/// for what is no image of unpackable layers.
pub fn open_image(source: &ImageSource, scratch: &Path) -> Result<Image> {
    let operation = || format!("open image '{source}'");
    let place = match source {
        ImageSource::Layout { directory, .. } => Layout::open(directory).map(Place::Layout),
        ImageSource::Archive { file, .. } => Archive::open(file).map(Place::Archive),
    }
    .context(operation)?;
    place.image(source.tag(), scratch.to_owned()).context(operation)
}

/// A word that is another one if another image is there now, without a look at the image: the digest that the tag leads to,
/// or what the archive's file is known by. Cheap enough to be asked again and again.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such place or tag; [`Kind::Invalid`] if the tag does not say which image is meant.
pub fn identify(source: &ImageSource) -> Result<String> {
    let operation = || format!("look at image '{source}'");
    match source {
        ImageSource::Layout { directory, tag } => {
            let entry = Layout::open(directory).and_then(|layout| choose(&layout.index()?, tag.as_deref()));
            Ok(entry.and_then(|entry| entry.digest()).context(operation)?.to_string())
        }
        ImageSource::Archive { file, .. } => {
            let metadata = std::fs::metadata(file).context(operation)?;
            let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
            Ok(format!("file:{}#{}@{seconds}.{nanoseconds:09}", metadata.ino(), metadata.size()))
        }
    }
}

impl Image {
    /// Opens a layer's blob, at its beginning. Its size is right; its digest is the reader's to check.
    ///
    /// # Errors
    /// Those of opening the file or, from an archive, of copying the blob to the scratch directory.
    pub fn open_layer(&self, layer: &LayerBlob) -> Result<File> {
        match &self.place {
            Place::Layout(layout) => layout.open_blob(&layer.descriptor),
            Place::Archive(archive) => archive.copy_blob(&layer.descriptor, &self.scratch),
        }
    }
}

/// Where blobs come from.
#[derive(Debug)]
enum Place {
    Layout(Layout),
    Archive(Archive),
}

impl Place {
    fn image(self, tag: Option<&str>, scratch: PathBuf) -> Result<Image> {
        let entry = match &self {
            Self::Layout(layout) => choose(&layout.index()?, tag)?,
            Self::Archive(archive) => choose(archive.index(), tag)?,
        };
        let (manifest_digest, manifest) = self.manifest(entry)?;
        let config_bytes = self.read(&manifest.config, CONFIG_MAX).context(|| "read image config")?;
        let config = ImageConfig::parse(&config_bytes)?;
        check_platform(&config)?;
        let layers = plan_layers(&manifest, &config)?;
        for layer in &layers {
            self.check_layer(layer)?;
        }
        Ok(Image { manifest_digest, manifest, config, layers, place: self, scratch })
    }

    /// Follows indexes down to the manifest for this machine.
    fn manifest(&self, mut entry: Descriptor) -> Result<(Digest, Manifest)> {
        for _ in 0..NESTING_MAX {
            let bytes = self.read(&entry, MANIFEST_MAX).context(|| "read manifest")?;
            match Document::parse(&entry.media_type, &bytes)? {
                Document::Manifest(manifest) => return Ok((entry.digest()?, manifest)),
                Document::Index(index) => entry = choose(&index, None)?,
            }
        }
        Err(Error::new(Kind::Invalid, "read manifest", format!("indexes are nested deeper than {NESTING_MAX}")))
    }

    /// Reads a document and compares size and digest with its descriptor.
    fn read(&self, descriptor: &Descriptor, cap: u64) -> Result<Vec<u8>> {
        let digest = descriptor.digest()?;
        let bytes = match self {
            Self::Layout(layout) => layout.read_unchecked(&digest, cap)?,
            Self::Archive(archive) => archive.read_blob(&digest, cap)?,
        };
        check_size(descriptor, bytes.len() as u64)?;
        check_digest(&bytes, &digest)?;
        Ok(bytes)
    }

    /// Finds out before anything is unpacked that a layer is not there, or cut short.
    fn check_layer(&self, layer: &LayerBlob) -> Result<()> {
        match self {
            Self::Layout(layout) => layout.open_blob(&layer.descriptor).map(drop),
            Self::Archive(archive) => archive.check_blob(&layer.descriptor),
        }
    }
}

/// The entry of an index that is meant: by tag if one was given, else the only one there is, else the one for this
/// machine.
fn choose(index: &Index, tag: Option<&str>) -> Result<Descriptor> {
    let asked = |entry: &&Descriptor| tag.is_none() || entry.tag() == tag;
    let mut candidates: Vec<_> = index.manifests.iter().filter(asked).collect();
    // One image may have several tags.
    let mut seen = Vec::new();
    candidates.retain(|entry| {
        let key = (entry.digest_text(), &entry.platform);
        let new = !seen.contains(&key);
        seen.push(key);
        new
    });
    match candidates.as_slice() {
        [] => Err(no_image(index, tag)),
        [only] if only.platform.is_none() || tag.is_some() => Ok((*only).clone()),
        several if several.iter().all(|entry| entry.platform.is_some()) => choose_platform(several),
        _ => {
            let cause = format!("{} images match; the tags are {}", candidates.len(), list(tags(index)));
            Err(Error::new(Kind::Invalid, "choose an image", cause).next("give one tag"))
        }
    }
}

fn choose_platform(entries: &[&Descriptor]) -> Result<Descriptor> {
    let machine = platform::machine();
    machine.choose(entries).cloned().ok_or_else(|| {
        let there = entries.iter().filter_map(|entry| entry.platform.as_ref()).map(platform::show);
        let cause =
            format!("there is none for {}/{}; the platforms are {}", machine.os, machine.architecture, list(there));
        Error::new(Kind::NotFound, "choose an image", cause)
    })
}

fn no_image(index: &Index, tag: Option<&str>) -> Error {
    let (cause, next) = match tag {
        _ if index.manifests.is_empty() => ("the index is empty".to_owned(), "copy an image into it"),
        Some(tag) => {
            let cause = format!("there is no tag '{}'; the tags are {}", tag.escape_debug(), list(tags(index)));
            (cause, "give one of them")
        }
        None => ("the index names no image".to_owned(), "copy an image into it"),
    };
    Error::new(Kind::NotFound, "choose an image", cause).next(next)
}

fn tags(index: &Index) -> impl Iterator<Item = String> {
    index.manifests.iter().filter_map(Descriptor::tag).map(|tag| tag.escape_debug().to_string())
}

/// `'a', 'b' and 7 more`, or `none`.
fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.map(|item| format!("'{item}'")).collect();
    match items.len() {
        0 => "none".to_owned(),
        len if len <= LISTED_MAX => items.join(", "),
        len => format!("{} and {} more", items[..LISTED_MAX].join(", "), len - LISTED_MAX),
    }
}

/// Another system's programs cannot run. Another processor's may: many run a second instruction set, and emulators can
/// be registered with the kernel.
fn check_platform(config: &ImageConfig) -> Result<()> {
    let machine = platform::machine();
    let fits = |found: &str, own: &str| found.is_empty() || found == own;
    if !fits(&config.os, machine.os) {
        let cause = format!("it is for '{}', this machine is {}", config.os.escape_debug(), machine.os);
        return Err(Error::new(Kind::Unsupported, "check the platform", cause).next("use an image for this machine"));
    }
    if !fits(&config.architecture, machine.architecture) {
        let (image, own) = (config.architecture.escape_debug(), machine.architecture);
        tracing::warn!("the image is for '{image}', this machine is {own}: its programs may not run");
    }
    Ok(())
}

/// Pairs the manifest's layers with the config's diff ids.
fn plan_layers(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<LayerBlob>> {
    let diff_ids = &config.rootfs.diff_ids;
    let refuse = |kind, cause: String| Err(Error::new(kind, "read the list of layers", cause));
    if manifest.layers.len() != diff_ids.len() {
        let cause = format!("the manifest has {} layers, the config {}", manifest.layers.len(), diff_ids.len());
        return refuse(Kind::Invalid, cause);
    }
    if manifest.layers.is_empty() {
        return refuse(Kind::Invalid, "there are none, so there is nothing to run".to_owned());
    }
    if manifest.layers.len() > LAYERS_MAX {
        let cause = format!("{} layers, the kernel stacks at most {LAYERS_MAX}", manifest.layers.len());
        return refuse(Kind::Unsupported, cause);
    }
    let pair = |(descriptor, diff_id): (&Descriptor, &Digest)| {
        Ok(LayerBlob {
            digest: descriptor.digest()?,
            media_type: LayerType::parse(&descriptor.media_type)?,
            diff_id: diff_id.clone(),
            descriptor: descriptor.clone(),
        })
    };
    manifest.layers.iter().zip(diff_ids).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index(entries: &[(&str, &str)]) -> Index {
        let entry = |(tag, digest): &(&str, &str)| {
            let annotations = json!({"org.opencontainers.image.ref.name": tag});
            json!({"digest": digest, "size": 1, "annotations": annotations})
        };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        Index::parse(json!({"schemaVersion": 2, "manifests": entries}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn one_image_with_several_tags_is_no_choice_but_one_tag_of_several_images_is() {
        assert_eq!(choose(&index(&[("a", "x"), ("b", "x")]), None).unwrap().digest_text(), "x");
        assert_eq!(choose(&index(&[("a", "x"), ("a", "x")]), Some("a")).unwrap().digest_text(), "x");
        for tag in [None, Some("a")] {
            let error = choose(&index(&[("a", "x"), ("a", "y")]), tag).unwrap_err();
            assert!(error.to_string().contains("2 images match"), "{error}");
        }
    }

    #[test]
    fn another_processor_may_run_but_another_system_cannot() {
        let mut config = ImageConfig::empty();
        config.architecture = "s390y".into();
        assert!(check_platform(&config).is_ok());
        config.os = String::new();
        assert!(check_platform(&config).is_ok());
        config.os = "windows".into();
        assert_eq!(check_platform(&config).unwrap_err().kind(), Kind::Unsupported);
    }
}
