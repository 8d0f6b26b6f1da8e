//! The JSON documents of an OCI layout that point to others: descriptor, index, manifest.
//!
//! Docker's schema 2 documents have the same shape and are read too. What an index holds that regen knows nothing
//! of (entries, fields, annotations) is kept and written back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::ids::Digest;

/// The largest manifest (and nested index) that is read.
pub const MANIFEST_MAX: u64 = 4 << 20;
/// The largest image config that is read.
pub const CONFIG_MAX: u64 = 4 << 20;
/// The largest `index.json` that is read: a shared layout may list many images.
pub const INDEX_MAX: u64 = 32 << 20;

/// Media type of an OCI index.
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image config.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_INDEX_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";

/// The annotation of an entry in `index.json` that is its tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A pointer to a blob: what it is, its digest and its size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type; old tools left it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// As it was written: an entry with a digest that regen cannot use is kept, and refused only where it is used.
    #[serde(rename = "digest")]
    digest_text: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// For which machine the image is, in an index of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations; copying tools drop them, so nothing that matters lies here but the tag.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields that regen does not know, kept as they are.
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl Descriptor {
    /// A pointer to a blob of ours.
    #[must_use]
    pub fn new(media_type: &str, digest: &Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest_text: digest.to_string(),
            size,
            platform: None,
            annotations: BTreeMap::new(),
            extra: Map::new(),
        }
    }

    /// The digest of the blob.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no sha256 digest.
    pub fn digest(&self) -> Result<Digest> {
        self.digest_text.parse()
    }

    /// The digest as the document spells it, for messages and comparison.
    #[must_use]
    pub fn digest_text(&self) -> &str {
        &self.digest_text
    }

    /// The tag of this entry of an index.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }
}

/// The machine that an image is made for, in Go's words (`amd64`, `arm64`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Variant of the processor, `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Fields that regen does not know, kept as they are.
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// A list of images: `index.json` itself, or one that it points to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    /// The entries, in order.
    #[serde(deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl Default for Index {
    fn default() -> Self {
        Self { schema_version: 2, media_type: Some(INDEX_TYPE.to_owned()), manifests: Vec::new(), extra: Map::new() }
    }
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the place in the text, if it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let index: Self = parse_document("index", bytes)?;
        check_schema("index", index.schema_version)?;
        Ok(index)
    }

    /// The JSON text.
    ///
    /// # Errors
    /// None in practice: all keys are strings.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        to_json("index", self)
    }

    /// The entry with this tag, the first if somebody wrote several.
    #[must_use]
    pub fn tagged(&self, tag: &str) -> Option<&Descriptor> {
        self.manifests.iter().find(|entry| entry.tag() == Some(tag))
    }

    /// What the index says about itself under a name.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.extra.get("annotations")?.get(name)?.as_str()
    }

    /// Lets the index say something about itself.
    pub fn annotate(&mut self, name: &str, value: &str) {
        let annotations = self.extra.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(annotations) = annotations {
            annotations.insert(name.to_owned(), Value::String(value.to_owned()));
        }
    }

    /// Adds an entry; it takes the place of an earlier one of the same tag.
    pub fn set(&mut self, entry: Descriptor) {
        let same = |old: &&mut Descriptor| old.tag().is_some() && old.tag() == entry.tag();
        match self.manifests.iter_mut().find(same) {
            Some(old) => *old = entry,
            None => self.manifests.push(entry),
        }
    }

    /// Takes the entries of this tag out, and says whether there were any.
    pub fn remove(&mut self, tag: &str) -> bool {
        let before = self.manifests.len();
        self.manifests.retain(|entry| entry.tag() != Some(tag));
        self.manifests.len() < before
    }
}

/// An image: its config and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, bottom first.
    #[serde(deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// What the manifest says about itself; survives every copy, because the digest covers it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// An OCI manifest.
    #[must_use]
    pub fn new(config: Descriptor, layers: Vec<Descriptor>, annotations: BTreeMap<String, String>) -> Self {
        Self { schema_version: 2, media_type: Some(MANIFEST_TYPE.to_owned()), config, layers, annotations }
    }

    /// Reads a manifest of an image, in OCI's or Docker's words.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is none, [`Kind::Unsupported`] if it is of something else than an image.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Self = parse_document("manifest", bytes)?;
        check_schema("manifest", manifest.schema_version)?;
        let config = &manifest.config.media_type;
        if ![CONFIG_TYPE, DOCKER_CONFIG_TYPE].contains(&config.as_str()) {
            let cause = format!("it is no container image: its config is of type '{}'", config.escape_debug());
            return Err(Error::new(Kind::Unsupported, "read manifest", cause));
        }
        Ok(manifest)
    }

    /// The JSON text.
    ///
    /// # Errors
    /// None in practice: all keys are strings.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        to_json("manifest", self)
    }
}

/// A document that an index points to.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A further list, usually one image per platform.
    Index(Index),
}

impl Document {
    /// Reads a blob that a descriptor of type `media_type` (empty if it had none) points to.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not what the descriptor says, or says two things at once: a document that one
    /// reader takes for a manifest and another for an index could pass a check as the one and run as the other.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            media_type: Option<String>,
            manifests: Option<Value>,
            layers: Option<Value>,
            config: Option<Value>,
        }
        let refuse = |kind, cause: String| Err(Error::new(kind, "read manifest", cause));
        let shape: Shape = parse_document("manifest", bytes)?;
        let own = shape.media_type.unwrap_or_default();
        if !own.is_empty() && !media_type.is_empty() && own != media_type {
            let cause = format!("it says that it is '{}', the entry says '{media_type}'", own.escape_debug());
            return refuse(Kind::Invalid, cause);
        }
        if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
            return refuse(Kind::Invalid, "it is a manifest and an index at once".to_owned());
        }
        match if own.is_empty() { media_type } else { &own } {
            MANIFEST_TYPE | DOCKER_MANIFEST_TYPE => Manifest::parse(bytes).map(Self::Manifest),
            INDEX_TYPE | DOCKER_INDEX_TYPE => Index::parse(bytes).map(Self::Index),
            "" if shape.manifests.is_some() => Index::parse(bytes).map(Self::Index),
            "" => Manifest::parse(bytes).map(Self::Manifest),
            other => refuse(Kind::Unsupported, format!("'{}' is no type of an image", other.escape_debug())),
        }
    }
}

/// How the tar stream of a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// As it is.
    Tar,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl LayerType {
    /// Reads a media type in OCI's or Docker's words.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for layers that are encrypted, lie elsewhere, or are no file systems.
    pub fn parse(media_type: &str) -> Result<Self> {
        let (cause, next) = match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                return Ok(Self::Tar);
            }
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                return Ok(Self::Gzip);
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                return Ok(Self::Zstd);
            }
            other if other.contains("nondistributable") || other.contains(".foreign.") => {
                ("is of a layer that lies elsewhere", "use an image whose layers are all in it")
            }
            other if other.ends_with("+encrypted") => {
                ("is of an encrypted layer", "decrypt it with 'skopeo copy --decryption-key'")
            }
            _ => ("is no layer that can be unpacked", "use an image with tar, tar+gzip or tar+zstd layers"),
        };
        let cause = format!("media type '{}' {cause}", media_type.escape_debug());
        Err(Error::new(Kind::Unsupported, "read layer", cause).next(next))
    }

    /// The media type in OCI's words.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

fn check_schema(what: &str, version: u32) -> Result<()> {
    if version == 2 {
        return Ok(());
    }
    let cause = format!("schema version {version}; only 2 can be read");
    Err(Error::new(Kind::Unsupported, format!("read {what}"), cause).next("convert it with 'skopeo copy --format oci'"))
}

/// Parses a document of ours or of others; the error tells line and column.
pub(super) fn parse_document<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(Kind::Invalid, format!("read {what}"), format!("not valid: {error}")))
}

pub(super) fn to_json<T: Serialize>(what: &str, document: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|error| Error::new(Kind::Invalid, format!("write {what}"), error.to_string()))
}

/// Tools in Go write an empty list or map as `null`.
pub(super) fn null_is_empty<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_others_wrote_into_an_index_stay_as_they_are() {
        let text = br#"{"schemaVersion":2,"manifests":[],"x":2222222222222322222222222222221,"y":0.1}"#;
        let index = Index::parse(text).unwrap();
        assert_eq!(Index::parse(&index.to_json().unwrap()).unwrap(), index);
    }
}
