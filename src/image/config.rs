//! The image config: what to run, and what the layers are before compression.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::manifest::{null_is_empty, parse_document, to_json};
use crate::error::{Error, Kind, Result};
use crate::ids::Digest;

/// An image config. What regen does not know of it is kept, so that an entry that stands on an image says all that
/// the image said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Processor, in Go's words; empty if the image does not say.
    #[serde(default)]
    pub architecture: String,
    /// Operating system; empty if the image does not say.
    #[serde(default)]
    pub os: String,
    /// Variant of the processor, `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How to run a container of the image.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: RunConfig,
    /// The layers' contents.
    pub rootfs: RootFs,
    /// How the layers came to be, bottom first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub history: Vec<History>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// How to run a container of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`, names or numbers; empty means root.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub user: String,
    /// `PORT[/PROTOCOL]` that the program listens on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// The program with its first arguments.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the whole command if there is no entry point.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// Paths that the image wants to be volumes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub volumes: BTreeMap<String, Value>,
    /// Working directory; empty means `/`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// The signal that asks the program to stop, `SIGTERM` if empty.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub stop_signal: String,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// The digests of the layers' tar streams before compression, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    kind: String,
    /// One digest per layer, bottom first.
    #[serde(deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<Digest>,
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step changed no file, and so has no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
    #[serde(flatten)]
    pub(super) extra: Map<String, Value>,
}

impl ImageConfig {
    /// The config of an image without layers, for this machine.
    #[must_use]
    pub fn empty() -> Self {
        let machine = super::platform::machine();
        Self {
            created: None,
            architecture: machine.architecture.to_owned(),
            os: machine.os.to_owned(),
            variant: None,
            config: RunConfig::default(),
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() },
            history: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Reads a config.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let config: Self = parse_document("image config", bytes)?;
        if config.rootfs.kind != "layers" {
            let cause = format!("its root file system is of type '{}'", config.rootfs.kind.escape_debug());
            return Err(Error::new(Kind::Unsupported, "read image config", cause).next("use an image made of layers"));
        }
        Ok(config)
    }

    /// The JSON text.
    ///
    /// # Errors
    /// None in practice: all keys are strings.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        to_json("image config", self)
    }
}
