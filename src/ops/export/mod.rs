//! One entry goes to an image layout, an archive or a registry: as the changes that it is, or with all that it stands on as
//! an ordinary image.
//!
//! ```text
//! pack what is only sealed ── find the base ── layers, each compressed as wanted ── config ── manifest under its tag
//! ```
//!
//! What is cut short has put no manifest anywhere: blobs that lie in a layout or a registry by then are found by the next
//! try, and an archive is not there.

mod below;
mod sink;

use super::Place;
use super::push::{Watch, packed_state};
use super::transfer::{Location, Moved, Transfer};
use crate::distribution::{Blob, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;
use crate::image::config::History;
use crate::image::layout::Layout;
use crate::image::manifest::{CONFIG_MAX, Descriptor, LayerType, MANIFEST_MAX, Manifest};
use crate::image::write::{NewLayer, config_for, image_entry, layer_descriptor, manifest_for};
use crate::image::{ImageConfig, ImageSource};
use crate::pack::{Compression, Expected, pack_layer, recompress};
use crate::ring::Ring;
use crate::ring::entry::Entry;
use crate::ring::exchange::RING_TAG;
use crate::ring::offer::full_annotations;
use crate::ring::selector::{Selected, Selector};
use crate::ring::state::PackRecord;
use crate::sys::fs::disk_usage;

use below::{Below, Part};
use sink::Sink;

/// So often a ring may change while an entry of it is read.
const ATTEMPTS: u32 = 5;

/// How much of a state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// What the ring's runs changed.
    Changes,
    /// The base as well.
    Full,
}

/// What is exported, and how.
#[derive(Debug)]
pub struct Wish<'a> {
    /// The entry.
    pub selector: &'a Selector,
    /// With its base or without.
    pub content: Content,
    /// How layers are to be compressed; as they are, if nothing is said.
    pub compression: Option<Compression>,
    /// Where to.
    pub to: &'a Location,
    /// Whether a registry has to prove who it is.
    pub trust: Trust,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The number of the entry.
    pub seq: u64,
    /// Its tag there, if it has one.
    pub tag: Option<String>,
    /// Of the manifest there.
    pub digest: Digest,
    /// What it stands on.
    pub base: String,
    /// The blobs of its layers.
    pub moved: Moved,
}

/// Exports an entry.
///
/// # Errors
/// [`Kind::NotFound`] for the selector, or if the base is gone that is to come along; [`Kind::Exists`] for an archive that is
/// there already; those of packing, reading and writing.
pub fn export(place: &Place, ring: &Ring, wish: &Wish<'_>, watch: &mut Watch<'_>) -> Result<Exported> {
    let selector = if *wish.selector == Selector::Unsaid { String::new() } else { wish.selector.to_string() };
    let operation = || format!("export '{}{selector}' to '{}'", ring.name(), wish.to);
    let mut attempts = ATTEMPTS;
    loop {
        let before = ring.read()?.entries;
        match export_once(place, ring, wish, watch) {
            // What was evicted meanwhile is gone; a selector may mean another one now.
            Err(error) if error.kind() == Kind::NotFound && attempts > 0 && ring.read()?.entries != before => {
                attempts -= 1;
            }
            done => return done.context(operation),
        }
    }
}

fn export_once(place: &Place, ring: &Ring, wish: &Wish<'_>, watch: &mut Watch<'_>) -> Result<Exported> {
    let state = packed_state(place, ring, watch)?;
    let entry = match state.select_view(wish.selector)? {
        Selected::Entry(entry) => entry,
        Selected::Base => {
            return Err(Error::new(Kind::Usage, "find entry '@base'", "the base is no entry of the ring"));
        }
    };
    let tag = tag_for(wish.to, entry)?;
    let layout = Layout::open(ring.directory())?;
    let packed = Packed::read(&layout, entry)?;
    let below = match wish.content {
        Content::Changes => None,
        Content::Full => Some(below::find(ring.store(), &state, entry)?),
    };
    let total = total_bytes(&packed, below.as_ref())?;
    let mut export = Export {
        ring,
        layout: &layout,
        sink: Sink::open(wish.to, wish.trust, ring.store().transfers())?,
        compression: wish.compression,
        moved: Moved::default(),
        what: format!("exporting {}@{}", ring.name(), entry.seq),
        total,
        done: 0,
        tell: watch.transfer,
    };
    let manifest = match below {
        None => export.changes(packed)?,
        Some(below) => export.full(packed, below, &entry.base)?,
    };
    let (moved, digest) = (export.moved, export.sink.finish(&manifest, tag.as_deref())?);
    Ok(Exported { seq: entry.seq, tag, digest, base: entry.base.clone(), moved })
}

/// The tag that was given, else the entry's own. What is alone in an archive needs none, and podman would take an entry's for
/// the name of an image, where it may not have capitals.
fn tag_for(to: &Location, entry: &Entry) -> Result<Option<String>> {
    let alone = matches!(to, Location::Image(ImageSource::Archive { .. }));
    let tag = to.tag().or(Some(&*entry.id).filter(|_| !alone));
    if tag == Some(RING_TAG) {
        return Err(Error::new(Kind::Usage, format!("use tag '{RING_TAG}'"), "it is for the ring itself"));
    }
    image_entry(&(Digest::from_bytes([0; 32]), 0), tag)?;
    Ok(tag.map(str::to_owned))
}

/// An entry as it lies in its ring's layout, every layer open: what is evicted meanwhile can still be read.
struct Packed {
    text: Vec<u8>,
    manifest: Manifest,
    config: ImageConfig,
    config_text: Vec<u8>,
    parts: Vec<Part>,
}

impl Packed {
    fn read(layout: &Layout, entry: &Entry) -> Result<Self> {
        let unpacked =
            || Error::new(Kind::Busy, format!("read entry @{}", entry.seq), "it is not packed yet").next("try again");
        let text = layout.read_blob(entry.manifest.as_ref().ok_or_else(unpacked)?, MANIFEST_MAX)?;
        let manifest = Manifest::parse(&text)?;
        let config_text = layout.read_blob(&manifest.config.digest()?, CONFIG_MAX)?;
        let config = ImageConfig::parse(&config_text)?;
        let part = |(layer, diff_id): (&Descriptor, &Digest)| {
            let (digest, media_type) = (layer.digest()?, layer.media_type.clone());
            let pack = PackRecord { digest, diff_id: diff_id.clone(), bytes: layer.size, media_type };
            Ok(Part::Blob(layout.open_blob(layer)?, pack))
        };
        let parts = manifest.layers.iter().zip(&config.rootfs.diff_ids).map(part).collect::<Result<_>>()?;
        Ok(Self { text, manifest, config, config_text, parts })
    }

    /// Its layers as those of another image.
    fn steps(&self) -> Vec<NewLayer> {
        let mut history = self.config.history.iter().filter(|step| !step.empty_layer);
        let said = |of: fn(&History) -> &Option<String>, step: Option<&History>| step.and_then(|step| of(step).clone());
        let mut steps = Vec::new();
        for diff_id in &self.config.rootfs.diff_ids {
            let step = history.next();
            let created = said(|step| &step.created, step).unwrap_or_default();
            let comment = said(|step| &step.comment, step).unwrap_or_default();
            steps.push(NewLayer { diff_id: diff_id.clone(), created, comment });
        }
        steps
    }
}

/// About how many bytes there are to do.
fn total_bytes(packed: &Packed, below: Option<&Below>) -> Result<u64> {
    let bytes = |part: &Part| match part {
        Part::Blob(_, pack) => Ok(pack.bytes),
        Part::Tree(tree) => disk_usage(&tree.path()),
    };
    packed.parts.iter().chain(below.iter().flat_map(|below| &below.parts)).map(bytes).sum()
}

/// An export under way.
struct Export<'a, 'b> {
    ring: &'a Ring,
    /// The ring's: blobs that are made for the way lie there for as long.
    layout: &'a Layout,
    sink: Sink,
    compression: Option<Compression>,
    moved: Moved,
    what: String,
    total: u64,
    done: u64,
    tell: &'b mut dyn FnMut(&Transfer),
}

impl Export<'_, '_> {
    /// The manifest of an entry without its base: its own, if its layers are sent as they are.
    fn changes(&mut self, packed: Packed) -> Result<Vec<u8>> {
        let layers = packed.parts.iter().map(|part| self.part(part)).collect::<Result<Vec<_>>>()?;
        let layers: Vec<_> = layers.into_iter().map(|(layer, _)| layer).collect();
        let config = self.sink.put_text(&packed.config_text)?;
        if layers.iter().map(Descriptor::digest_text).eq(packed.manifest.layers.iter().map(Descriptor::digest_text)) {
            return Ok(packed.text);
        }
        manifest_for(&config, layers, packed.manifest.annotations).to_json()
    }

    /// The manifest of an image with the base below the entry's layers.
    fn full(&mut self, packed: Packed, below: Below, base: &str) -> Result<Vec<u8>> {
        let made = packed.config.created.clone().unwrap_or_default();
        let mut layers = Vec::new();
        let mut steps = Vec::new();
        for part in &below.parts {
            let (layer, diff_id) = self.part(part)?;
            layers.push(layer);
            steps.push(NewLayer { diff_id, created: made.clone(), comment: format!("base {base}") });
        }
        let base_layers = layers.len();
        for part in &packed.parts {
            layers.push(self.part(part)?.0);
        }
        let config = match below.config {
            Some(mut config) => {
                // Layers that were packed anew have other diff ids than those that they came from.
                config.rootfs.diff_ids = steps.into_iter().map(|step| step.diff_id).collect();
                config_for(Some(&config), &packed.steps(), &made)
            }
            None => config_for(None, &[steps, packed.steps()].concat(), &made),
        };
        let config = self.sink.put_text(&config.to_json()?)?;
        let annotations = full_annotations(&packed.manifest.annotations, base_layers, below.manifest.as_ref());
        manifest_for(&config, layers, annotations).to_json()
    }

    /// Has a layer there, compressed as it is wanted: its descriptor and its diff id.
    fn part(&mut self, part: &Part) -> Result<(Descriptor, Digest)> {
        match part {
            Part::Blob(file, pack) => {
                let from = Compression::from_media_type(&pack.media_type)?;
                let to = self.compression.unwrap_or(from);
                if from == to {
                    let blob = Blob { digest: pack.digest.clone(), size: pack.bytes };
                    self.put(&blob, file)?;
                    return Ok((descriptor(to, &blob)?, pack.diff_id.clone()));
                }
                let expected = Expected { digest: pack.digest.clone(), diff_id: Some(pack.diff_id.clone()) };
                self.make(pack.bytes, to, |into, tell| recompress(file, &expected, (from, to), into, tell))
            }
            Part::Tree(tree) => {
                let path = tree.path();
                let to = self.compression.unwrap_or(Compression::Zstd);
                let class = self.ring.store().class();
                self.make(disk_usage(&path)?, to, |into, tell| pack_layer(&path, class, to, into, tell))
            }
        }
    }

    /// Makes a blob for the way and puts it there. `bytes` is about what is read for it.
    fn make(
        &mut self,
        bytes: u64,
        compression: Compression,
        write: impl FnOnce(&mut std::fs::File, &mut dyn FnMut(u64)) -> Result<crate::pack::Packed>,
    ) -> Result<(Descriptor, Digest)> {
        let mut stage = self.layout.stage_blob()?;
        let (what, done, total, tell) = (self.what.clone(), self.done, self.total, &mut *self.tell);
        let mut told = |now: u64| tell(&Transfer { what: what.clone(), done: done + now.min(bytes), total });
        let made = write(stage.file(), &mut told)?;
        for socket in &made.sockets {
            tracing::warn!(socket = %socket.display(), "a socket is not exported");
        }
        let blob = Blob { digest: made.digest, size: made.packed_bytes };
        self.total += blob.size;
        self.done += bytes;
        self.put(&blob, stage.file())?;
        Ok((descriptor(compression, &blob)?, made.diff_id))
    }

    fn put(&mut self, blob: &Blob, file: &std::fs::File) -> Result<()> {
        if self.sink.has(blob)? {
            self.moved.present += 1;
        } else {
            let (what, done, total, tell) = (self.what.clone(), self.done, self.total, &mut *self.tell);
            self.sink.put(blob, file, &mut |now| tell(&Transfer { what: what.clone(), done: done + now, total }))?;
            self.moved.blobs += 1;
            self.moved.bytes += blob.size;
        }
        self.done += blob.size;
        Ok(())
    }
}

fn descriptor(compression: Compression, blob: &Blob) -> Result<Descriptor> {
    Ok(layer_descriptor(LayerType::parse(compression.media_type())?, &blob.digest, blob.size))
}
