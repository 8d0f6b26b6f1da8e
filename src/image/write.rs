//! The documents of our own images: pure builders.
//!
//! Tools refuse or stumble over an image whose config is empty or whose history does not match its layers, and
//! copying drops every annotation that does not lie in the manifest: so the config is a real one, and what must stay
//! true of an image is said in its manifest.

use std::collections::BTreeMap;

use super::config::{History, ImageConfig};
use super::manifest::{CONFIG_TYPE, Descriptor, LayerType, MANIFEST_TYPE, Manifest, REF_NAME};
use crate::error::{Error, Kind, Result};
use crate::ids::Digest;

/// A layer that a config is to list on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    /// Digest of the tar stream before compression.
    pub diff_id: Digest,
    /// When the layer came to be, RFC 3339.
    pub created: String,
    /// What `podman history` and the like show beside it.
    pub comment: String,
}

/// The config of an image that has `layers` (bottom first) on top of those of `base`, and runs as `base` does.
///
/// Without a base the image has only these layers, and no command.
#[must_use]
pub fn config_for(base: Option<&ImageConfig>, layers: &[NewLayer], created: &str) -> ImageConfig {
    let mut config = base.cloned().unwrap_or_else(ImageConfig::empty);
    config.created = Some(created.to_owned());
    let steps_with_layer = config.history.iter().filter(|step| !step.empty_layer).count();
    if steps_with_layer != config.rootfs.diff_ids.len() {
        // A history is optional, but where there is one it has a step for each layer.
        config.history = config.rootfs.diff_ids.iter().map(|_| History::default()).collect();
    }
    for layer in layers {
        config.rootfs.diff_ids.push(layer.diff_id.clone());
        config.history.push(History {
            created: Some(layer.created.clone()),
            created_by: Some("regen".to_owned()),
            comment: Some(layer.comment.clone()).filter(|comment| !comment.is_empty()),
            ..History::default()
        });
    }
    config
}

/// The descriptor of a config that was stored as a blob.
#[must_use]
pub fn config_descriptor((digest, size): &(Digest, u64)) -> Descriptor {
    Descriptor::new(CONFIG_TYPE, digest, *size)
}

/// The descriptor of a layer that was stored as a blob.
#[must_use]
pub fn layer_descriptor(kind: LayerType, digest: &Digest, size: u64) -> Descriptor {
    Descriptor::new(kind.media_type(), digest, size)
}

/// The manifest of an image: its stored config, its layers bottom first, and what is to stay true of it.
#[must_use]
pub fn manifest_for(
    config: &(Digest, u64),
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
) -> Manifest {
    Manifest::new(config_descriptor(config), layers, annotations)
}

/// The entry of `index.json` for a manifest that was stored as a blob, with a tag or without.
///
/// # Errors
/// As [`index_entry`].
pub fn image_entry(manifest: &(Digest, u64), tag: Option<&str>) -> Result<Descriptor> {
    tag.map_or_else(|| Ok(Descriptor::new(MANIFEST_TYPE, &manifest.0, manifest.1)), |tag| index_entry(manifest, tag))
}

/// The entry of `index.json` for a manifest that was stored as a blob.
///
/// # Errors
/// [`Kind::Invalid`] if `tag` could not be used as a tag in a registry.
pub fn index_entry(manifest: &(Digest, u64), tag: &str) -> Result<Descriptor> {
    let first = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let rest = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if !first || !rest || tag.len() > 128 {
        let operation = format!("check tag '{}'", tag.escape_debug());
        let cause = "a tag has 1 to 128 letters, digits, '_', '.' and '-', and begins with none of the last two";
        return Err(Error::new(Kind::Invalid, operation, cause));
    }
    let mut entry = Descriptor::new(MANIFEST_TYPE, &manifest.0, manifest.1);
    entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layout::digest_of;

    fn layer(text: &str) -> NewLayer {
        NewLayer { diff_id: digest_of(text.as_bytes()), created: "2026-01-01T00:00:00Z".into(), comment: String::new() }
    }

    fn steps_with_layer(config: &ImageConfig) -> usize {
        config.history.iter().filter(|step| !step.empty_layer).count()
    }

    #[test]
    fn a_config_over_an_image_says_all_that_the_image_said() {
        let text = r#"{"architecture":"amd64","os":"linux","author":"a","config":{"Cmd":["/x"],"Shell":["/s"],
            "Labels":{"k":"v"}},"rootfs":{"type":"layers","diff_ids":["DIFF"]},"history":[{"created_by":"base",
            "author":"b"},{"created_by":"env","empty_layer":true}]}"#;
        let text = text.replace("DIFF", &digest_of(b"base").to_string());
        let base = ImageConfig::parse(text.as_bytes()).unwrap();
        let config = config_for(Some(&base), &[layer("a"), layer("b")], "2026-02-02T00:00:00Z");
        let ids = [b"base".as_slice(), b"a", b"b"].map(digest_of);
        assert_eq!(config.rootfs.diff_ids, ids);
        assert_eq!((config.history.len(), steps_with_layer(&config)), (4, 3));
        let json: serde_json::Value = serde_json::from_slice(&config.to_json().unwrap()).unwrap();
        assert_eq!(json["created"], "2026-02-02T00:00:00Z");
        for (pointer, value) in [
            ("/author", "a"),
            ("/config/Cmd/0", "/x"),
            ("/config/Shell/0", "/s"),
            ("/config/Labels/k", "v"),
            ("/history/0/author", "b"),
            ("/history/3/created_by", "regen"),
        ] {
            assert_eq!(json.pointer(pointer).unwrap(), value, "{pointer}");
        }
    }

    #[test]
    fn a_history_that_does_not_fit_the_layers_is_replaced() {
        let mut base = config_for(None, &[layer("a"), layer("b")], "2026-01-01T00:00:00Z");
        base.history.pop();
        let config = config_for(Some(&base), &[layer("c")], "2026-01-01T00:00:00Z");
        assert_eq!((config.rootfs.diff_ids.len(), steps_with_layer(&config)), (3, 3));
    }

    #[test]
    fn only_what_a_registry_takes_is_a_tag() {
        let manifest = (digest_of(b""), 0);
        for good in ["20261122T152448Z-000042", "a", "_x", "A.b-c", &"x".repeat(128)] {
            assert_eq!(index_entry(&manifest, good).unwrap().tag(), Some(good));
        }
        for bad in ["", ".a", "-a", "a/b", "a:b", "a b", "é", &"x".repeat(129)] {
            assert!(index_entry(&manifest, bad).is_err(), "{bad} was taken");
        }
    }
}
