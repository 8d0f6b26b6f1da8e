//! An entry as a registry offers it: read from its manifest and its config, which strangers may have written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use super::entry::{Entry, Reason};
use super::exchange::Listed;
use super::index::{DELTA, ENTRY_ID, VOLUME};
use super::state::PackRecord;
use crate::bundle::volume::parse_places;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;
use crate::image::config::ImageConfig;
use crate::image::manifest::{Descriptor, LayerType, Manifest};
use crate::sys::process::boot_id;
use crate::sys::xattr::OverlayClass;

/// An overlay has no more layers.
const LAYERS_MAX: usize = 500;
/// What the annotations of an entry begin with.
const PREFIX: &str = "run.regen.entry.";
/// How many of the lowest layers are what the entry stands on.
const BASE_LAYERS: &str = "base-layers";
/// The longest text of an annotation.
const TEXT_MAX: usize = 4096;

/// An entry that was fetched, but for its layers.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The entry, without layers.
    pub entry: Entry,
    /// The blobs of its chain, lowest first.
    pub packs: Vec<PackRecord>,
    /// Its manifest's text; the ring makes one of its own where that of the offer is not the ring's to have.
    pub manifest: Option<Vec<u8>>,
    /// What it stands on, if that came along.
    pub below: Option<Below>,
}

/// The base of an entry that came along with it: an image.
#[derive(Debug, Clone)]
pub struct Below {
    /// Its blobs, lowest first.
    pub packs: Vec<PackRecord>,
    /// How a container of it is run.
    pub config: ImageConfig,
}

/// The annotations of an entry's manifest that has the base in it, as so many lowest layers. `base` is the digest of the
/// manifest of the image that they are, if they are one's. Pure.
#[must_use]
pub fn full_annotations(
    changes: &BTreeMap<String, String>,
    base_layers: usize,
    base: Option<&Digest>,
) -> BTreeMap<String, String> {
    let mut annotations = changes.clone();
    annotations.remove(DELTA);
    // podman gives annotations of an image to its containers, where this one would ask for the ring.
    if let Some(ring) = annotations.remove("run.regen.ring") {
        annotations.insert(format!("{PREFIX}ring"), ring);
    }
    annotations.insert(format!("{PREFIX}{BASE_LAYERS}"), base_layers.to_string());
    if let Some(base) = base {
        annotations.insert("org.opencontainers.image.base.digest".to_owned(), base.to_string());
    }
    annotations
}

/// The blob that a manifest names as its config.
///
/// # Errors
/// [`Kind::Invalid`] if the text is no manifest of an entry.
pub fn config_of(manifest: &[u8]) -> Result<(Digest, u64)> {
    let manifest = Manifest::parse(manifest)?;
    if !manifest.annotations.contains_key(ENTRY_ID) {
        return Err(Error::new(Kind::Invalid, "read manifest", "it is that of an image, not of a ring's entry")
            .next("run it with '--image'"));
    }
    Ok((manifest.config.digest()?, manifest.config.size))
}

/// The tag that an entry's manifest says is its own.
///
/// # Errors
/// [`Kind::Invalid`] if the text is no manifest of an entry.
pub fn id_of(manifest: &[u8]) -> Result<String> {
    config_of(manifest)?;
    Ok(Manifest::parse(manifest)?.annotations.get(ENTRY_ID).cloned().unwrap_or_default())
}

/// Reads an entry from its manifest and config, whose digests were checked.
///
/// # Errors
/// [`Kind::Invalid`] if anything is missing or not what it could be.
pub fn read_offer(listed: &Listed, manifest: Vec<u8>, config: &[u8], class: OverlayClass) -> Result<Offer> {
    let operation = || format!("read the manifest of '{}'", listed.id);
    let document = Manifest::parse(&manifest).context(operation)?;
    let config = ImageConfig::parse(config).context(operation)?;
    let refuse = |cause: String| Error::new(Kind::Invalid, operation(), cause);
    let said = |name: &str| -> Result<Option<&str>> {
        let value = document.annotations.get(&format!("{PREFIX}{name}")).map(String::as_str);
        match value.filter(|value| value.len() > TEXT_MAX || value.chars().any(char::is_control)) {
            Some(_) => Err(refuse(format!("its {name} is no text of one line"))),
            None => Ok(value),
        }
    };
    let number = |name: &str| {
        said(name)?.map(|text| text.parse::<i64>().map_err(|_| refuse(format!("its {name} is no number")))).transpose()
    };
    let required = |name: &str| said(name)?.ok_or_else(|| refuse(format!("it has no {name}")));
    if required("id")? != listed.id || number("seq")?.and_then(|seq| u64::try_from(seq).ok()) != Some(listed.seq) {
        return Err(refuse("it is that of another entry".into()));
    }
    let created = document.annotations.get("org.opencontainers.image.created").map(String::as_str);
    let parent = number("parent")?.and_then(|parent| u64::try_from(parent).ok()).filter(|parent| *parent < listed.seq);
    let exit_code = number("exit-code")?.and_then(|code| i32::try_from(code).ok());
    let outcome = said("outcome")?.unwrap_or(if exit_code == Some(0) { "good" } else { "unknown" });
    let entry = Entry {
        seq: listed.seq,
        id: listed.id.clone(),
        parent,
        created: parse_time(created.ok_or_else(|| refuse("it does not say when it was created".into()))?)?,
        reason: word(required("reason")?).map_err(|_| refuse("its reason is unknown".into()))?,
        exit_code,
        outcome: word(outcome).map_err(|_| refuse("its outcome is unknown".into()))?,
        synced: true,
        boot_id: boot_id()?,
        base: required("base")?.to_owned(),
        class,
        id_map: said("id-map")?.map(str::to_owned),
        layers: Vec::new(),
        pinned: listed.pinned,
        side: said("side")? == Some("true"),
        forked_from: said("forked-from")?.map(str::to_owned),
        volumes: volumes(&document.annotations).map_err(|error| error.during(operation()))?,
        memory_bytes: None,
        manifest: Some(listed.manifest.clone()),
    };
    let packs = packs(&document, &config).map_err(|error| error.during(operation()))?;
    match number(BASE_LAYERS)?.map(usize::try_from) {
        None | Some(Ok(0)) => Ok(Offer { entry, packs, manifest: Some(manifest), below: None }),
        Some(Ok(count)) if count < packs.len() => Ok(split(entry, packs, config, count)),
        Some(_) => Err(refuse(format!("its {BASE_LAYERS} are not fewer than its layers"))),
    }
}

/// An entry and the image below it. On that it is another state than the one that it was made as, so it is a new entry.
fn split(entry: Entry, mut packs: Vec<PackRecord>, mut config: ImageConfig, base_layers: usize) -> Offer {
    let changes = packs.split_off(base_layers);
    config.rootfs.diff_ids.truncate(base_layers);
    let mut left = base_layers;
    config.history.retain(|step| {
        let kept = left > 0;
        left -= usize::from(kept && !step.empty_layer);
        kept
    });
    let entry = Entry { parent: None, reason: Reason::Import, manifest: None, ..entry };
    Offer { entry, packs: changes, manifest: None, below: Some(Below { packs, config }) }
}

fn volumes(annotations: &BTreeMap<String, String>) -> Result<BTreeMap<PathBuf, String>> {
    let said = annotations.iter().filter_map(|(key, value)| Some((key.strip_prefix(VOLUME)?, value)));
    let volumes: BTreeMap<_, _> = said.clone().map(|(place, value)| (PathBuf::from(place), value.clone())).collect();
    let plain = volumes.values().all(|value| value.len() <= TEXT_MAX && !value.chars().any(char::is_control));
    let places = parse_places(said.map(|(place, _)| place))?;
    if plain && places.iter().eq(volumes.keys()) {
        return Ok(volumes);
    }
    Err(Error::new(Kind::Invalid, "read its volumes", "they are not written as a ring writes them"))
}

fn packs(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<PackRecord>> {
    let (layers, diff_ids) = (&manifest.layers, &config.rootfs.diff_ids);
    if layers.is_empty() || layers.len() > LAYERS_MAX || layers.len() != diff_ids.len() {
        let cause = format!("it has {} layers, its config {}", layers.len(), diff_ids.len());
        return Err(Error::new(Kind::Invalid, "list its layers", cause));
    }
    let pack = |(layer, diff_id): (&Descriptor, &Digest)| {
        LayerType::parse(&layer.media_type)?;
        let (digest, media_type) = (layer.digest()?, layer.media_type.clone());
        Ok(PackRecord { digest, diff_id: diff_id.clone(), bytes: layer.size, media_type })
    };
    layers.iter().zip(diff_ids).map(pack).collect()
}

fn word<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
}

pub(super) fn parse_time(text: &str) -> Result<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.with_timezone(&Utc));
    time.map_err(|error| Error::new(Kind::Invalid, "read a time", error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::*;
    use crate::image::layout::digest_of;
    use crate::image::write::{NewLayer, config_for, layer_descriptor, manifest_for};

    /// An entry of two layers over a base of two, as it is exported, with this said of the base.
    fn offered(base_layers: &str) -> Result<Offer> {
        let (names, seq) = (["b1", "b2", "d1", "d2"], 3);
        let id = entry(seq, Outcome::Good).id;
        let layers = names.map(|name| layer_descriptor(LayerType::Gzip, &digest_of(name.as_bytes()), 1)).to_vec();
        let steps = names.map(|name| NewLayer {
            diff_id: digest_of(name.to_uppercase().as_bytes()),
            created: "2026-01-01T00:00:00Z".into(),
            comment: name.into(),
        });
        let config = config_for(None, &steps, "2026-01-01T00:00:00Z").to_json()?;
        let said = json!({"org.opencontainers.image.created": "2026-01-01T00:00:00Z", "run.regen.entry.seq": "3",
            "run.regen.entry.id": id, "run.regen.entry.reason": "exit", "run.regen.entry.base": "dir:/b#1",
            "run.regen.entry.delta": "true", "run.regen.entry.parent": "2"});
        let said: BTreeMap<String, String> = serde_json::from_value(said).unwrap();
        let mut said = full_annotations(&said, 2, None);
        assert_eq!(said.insert("run.regen.entry.base-layers".into(), base_layers.into()).as_deref(), Some("2"));
        assert!(!said.contains_key(DELTA));
        let manifest = manifest_for(&(digest_of(&config), 1), layers, said).to_json()?;
        let listed = Listed { seq, id, manifest: digest_of(&manifest), pinned: false };
        read_offer(&listed, manifest, &config, OverlayClass::Trusted)
    }

    #[test]
    fn an_entry_that_brings_its_base_is_divided_from_it() {
        let Offer { entry, packs, manifest, below } = offered("2").unwrap();
        let digests = |packs: &[PackRecord]| packs.iter().map(|pack| pack.digest.clone()).collect::<Vec<_>>();
        let below = below.unwrap();
        assert_eq!(digests(&packs), [digest_of(b"d1"), digest_of(b"d2")]);
        assert_eq!(digests(&below.packs), [digest_of(b"b1"), digest_of(b"b2")]);
        assert_eq!(below.config.rootfs.diff_ids, [digest_of(b"B1"), digest_of(b"B2")]);
        assert_eq!(
            below.config.history.iter().map(|step| step.comment.as_deref().unwrap()).collect::<Vec<_>>(),
            ["b1", "b2"]
        );
        assert_eq!((entry.reason, entry.parent, entry.manifest, manifest), (Reason::Import, None, None, None));
    }

    #[test]
    fn a_base_that_leaves_no_layer_to_the_entry_is_refused() {
        assert!(offered("0").unwrap().below.is_none());
        for bad in ["4", "5", "-1", "x"] {
            assert_eq!(offered(bad).unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }
}
