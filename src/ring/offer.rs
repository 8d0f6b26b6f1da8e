//! An entry as a registry offers it: read from its manifest and its config, which strangers may have written.

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use super::entry::Entry;
use super::exchange::Listed;
use super::index::ENTRY_ID;
use super::state::PackRecord;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;
use crate::image::config::ImageConfig;
use crate::image::manifest::{Descriptor, LayerType, Manifest};
use crate::sys::process::boot_id;
use crate::sys::xattr::OverlayClass;

/// An overlay has no more layers.
const LAYERS_MAX: usize = 500;
/// The longest text of an annotation.
const TEXT_MAX: usize = 4096;

/// An entry that was fetched, but for its layers.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The entry, without layers.
    pub entry: Entry,
    /// The blobs of its chain, lowest first.
    pub packs: Vec<PackRecord>,
    /// Its manifest's text.
    pub manifest: Vec<u8>,
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
        let value = document.annotations.get(&format!("run.regen.entry.{name}")).map(String::as_str);
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
        manifest: Some(listed.manifest.clone()),
    };
    let packs = packs(&document, &config).map_err(|error| error.during(operation()))?;
    Ok(Offer { entry, packs, manifest })
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
