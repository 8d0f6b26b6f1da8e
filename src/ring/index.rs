//! The ring as an OCI image layout: manifests of entries and `index.json`, all derived from `ring.json`.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::time::{Duration, SystemTime};

use super::entry::{Entry, is_tag_of, timestamp};
use super::state::{PackRecord, RingState};
use super::{Locked, Ring};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;
use crate::image::layout::Layout;
use crate::image::manifest::{Descriptor, LayerType, Manifest};
use crate::image::write::{NewLayer, config_for, index_entry, layer_descriptor, manifest_for};

/// On a descriptor of `index.json`: regen wrote it. Others are kept whatever they are.
pub(super) const OURS: &str = "run.regen.entry";
/// In a manifest: it is that of an entry.
pub(super) const ENTRY_ID: &str = "run.regen.entry.id";
/// On a layer in a manifest: the blobs of which it was made, as hexadecimal digits.
const REPLACES: &str = "run.regen.pack.replaces";
/// In a manifest of an entry that a ring began with: of which entry it is the fork.
pub(super) const FORKED_FROM: &str = "run.regen.entry.forked-from";
/// In a manifest: what the entry stands on is not in it.
pub(super) const DELTA: &str = "run.regen.entry.delta";
/// In a manifest, before the place of a volume: what that stands on.
pub(super) const VOLUME: &str = "run.regen.entry.volume.";
/// The most that a manifest or config of ours takes.
pub(super) const DOCUMENT_CAP: u64 = 16 * 1024 * 1024;
/// A blob that nothing refers to may be one that another tool is about to refer to; after a day it is not.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

/// Writes config and manifest of an entry whose layers are all packed, and gives the manifest's digest.
///
/// What must stay true of the entry is in the manifest's annotations: copying drops those of the index.
pub(super) fn write_manifest(layout: &Layout, ring: &Ring, state: &RingState, entry: &Entry) -> Result<Digest> {
    Ok(put_manifest(ring, state, entry, &mut |content| layout.put_blob(content))?.0)
}

/// Makes a blob of a document, and gives its digest and size.
type Put<'a> = dyn FnMut(&[u8]) -> Result<(Digest, u64)> + 'a;

/// The same with `put` for what makes a blob of a document; the manifest's digest and size.
pub(super) fn put_manifest(ring: &Ring, state: &RingState, entry: &Entry, put: &mut Put<'_>) -> Result<(Digest, u64)> {
    let packs = packs_of(state, entry)?;
    let comment = format!("ring {}, entry {}, {}", ring.name(), entry.seq, entry.reason);
    let created = timestamp(entry.created);
    let history: Vec<_> = packs
        .iter()
        .map(|pack| NewLayer { diff_id: pack.diff_id.clone(), created: created.clone(), comment: comment.clone() })
        .collect();
    let config = put(&config_for(None, &history, &created).to_json()?)?;
    let layers = packs.iter().map(|pack| describe_pack(state, pack)).collect::<Result<_>>()?;
    let manifest = manifest_for(&config, layers, annotations(ring, entry));
    put(&manifest.to_json()?)
}

fn describe_pack(state: &RingState, pack: &PackRecord) -> Result<Descriptor> {
    let mut descriptor = layer_descriptor(LayerType::parse(&pack.media_type)?, &pack.digest, pack.bytes);
    if let Some(note) = state.repacked.iter().rev().find(|note| note.digest == pack.digest) {
        // Without their algorithm: what reads as a digest is one that the manifest needs.
        let old: Vec<_> = note.replaces.iter().map(|pack| pack.digest.hex()).collect();
        descriptor.annotations.insert(REPLACES.to_owned(), old.join(" "));
    }
    Ok(descriptor)
}

/// The blobs of an entry's chain, lowest first.
pub(super) fn packs_of<'a>(state: &'a RingState, entry: &Entry) -> Result<Vec<&'a PackRecord>> {
    let mut packs = Vec::new();
    for layer in &entry.layers {
        let record = state.layers.get(layer).ok_or_else(|| {
            Error::new(
                Kind::State,
                format!("list the packs of entry @{}", entry.seq),
                format!("layer {layer} is not packed"),
            )
            .next("run 'regen ring pack'")
        })?;
        packs.extend(&record.packs);
    }
    Ok(packs)
}

fn annotations(ring: &Ring, entry: &Entry) -> BTreeMap<String, String> {
    let mut annotations: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    set("org.opencontainers.image.created", timestamp(entry.created));
    set("run.regen.ring", ring.name().to_string());
    set("run.regen.entry.seq", entry.seq.to_string());
    set(ENTRY_ID, entry.id.clone());
    set("run.regen.entry.reason", entry.reason.to_string());
    set("run.regen.entry.outcome", entry.outcome.to_string());
    set("run.regen.entry.base", entry.base.clone());
    if let Some(map) = &entry.id_map {
        set("run.regen.entry.id-map", map.clone());
    }
    // Its layers are changes to a base that is not in here.
    set(DELTA, "true".into());
    if let Some(parent) = entry.parent {
        set("run.regen.entry.parent", parent.to_string());
    }
    if let Some(from) = &entry.forked_from {
        set(FORKED_FROM, from.clone());
    }
    for (place, fingerprint) in &entry.volumes {
        set(&format!("{VOLUME}{}", place.display()), fingerprint.clone());
    }
    if entry.side {
        set("run.regen.entry.side", "true".into());
    }
    if let Some(code) = entry.exit_code {
        set("run.regen.entry.exit-code", code.to_string());
    }
    annotations
}

/// Makes `index.json` list the packed entries, beside what others put there.
pub(super) fn write_index(locked: &Locked) -> Result<()> {
    let layout = Layout::open(locked.ring().directory())?;
    let mut index = layout.index()?;
    let before = index.manifests.clone();
    index.manifests.retain(|descriptor| !is_ours(descriptor));
    for entry in &locked.state.entries {
        if let Some(manifest) = &entry.manifest {
            index.set(descriptor(&layout, entry, manifest)?);
        }
    }
    if index.manifests == before { Ok(()) } else { layout.replace_index(&index) }
}

/// Whether regen wrote a descriptor. Tools that give an entry one more tag copy its annotations: the tag has to be the
/// entry's own.
fn is_ours(descriptor: &Descriptor) -> bool {
    let seq = descriptor.annotations.get(OURS).and_then(|seq| seq.parse().ok());
    seq.is_some_and(|seq| descriptor.tag().is_some_and(|tag| is_tag_of(tag, seq)))
}

/// Like [`write_index`], for an index that somebody broke: what others put there is lost with it.
pub(super) fn repair(locked: &Locked) -> Result<()> {
    Layout::repair(locked.ring().directory())?;
    write_index(locked)
}

fn descriptor(layout: &Layout, entry: &Entry, manifest: &Digest) -> Result<Descriptor> {
    let path = layout.blob_path(manifest);
    let size = std::fs::metadata(&path).context(|| format!("look at the manifest of entry @{}", entry.seq))?.len();
    describe_entry(entry, &(manifest.clone(), size))
}

/// What `index.json` says of a packed entry.
pub(super) fn describe_entry(entry: &Entry, manifest: &(Digest, u64)) -> Result<Descriptor> {
    let mut descriptor = index_entry(manifest, &entry.id)?;
    descriptor.annotations.insert(OURS.to_owned(), entry.seq.to_string());
    Ok(descriptor)
}

/// The blobs of a ring that nothing needs: at once those of entries that are gone and those that were repacked, others after
/// a day.
///
/// Which entries are gone is seen from the manifests that are left of them, so nothing has to be remembered for when
/// the removal is interrupted.
pub(super) struct Unneeded {
    /// Where they are.
    pub(super) layout: Layout,
    /// Manifests of entries that are gone, which tell that others go, too.
    manifests: Vec<Digest>,
    others: Vec<Digest>,
}

impl Unneeded {
    pub(super) fn find(locked: &Locked) -> Result<Self> {
        let layout = Layout::open(locked.ring().directory())?;
        let mut needed = HashSet::new();
        for descriptor in &layout.index()?.manifests {
            let digest = descriptor.digest()?;
            needed.extend(closure(&layout, &digest)?);
        }
        for entry in &locked.state.entries {
            if let Some(manifest) = &entry.manifest {
                needed.extend(closure(&layout, manifest)?);
            }
        }
        needed.extend(locked.state.layers.values().flat_map(|layer| &layer.packs).map(|pack| pack.digest.clone()));
        let mut others = layout.blobs()?;
        others.retain(|digest| !needed.contains(digest));
        let (manifests, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|digest| is_entry(&layout, digest));
        let mut unneeded = Self { layout, manifests, others: Vec::new() };
        let replaced = locked.state.repacked.iter().flat_map(|note| &note.replaces).map(|pack| pack.digest.clone());
        let mut dropped: HashSet<_> = replaced.collect();
        for digest in &unneeded.manifests {
            dropped.extend(closure(&unneeded.layout, digest)?);
        }
        for digest in others {
            if dropped.contains(&digest) || is_old(&unneeded.layout, &digest)? {
                unneeded.others.push(digest);
            }
        }
        Ok(unneeded)
    }

    /// In the order in which they have to go.
    pub(super) fn all(&self) -> impl Iterator<Item = &Digest> {
        self.others.iter().chain(&self.manifests)
    }
}

/// Deletes blobs that nothing needs.
pub(super) fn collect_blobs(locked: &Locked) -> Result<()> {
    let unneeded = Unneeded::find(locked)?;
    unneeded.all().try_for_each(|digest| unneeded.layout.remove_blob(digest))?;
    unneeded.layout.sweep_temporary()
}

/// Whether a blob is a manifest that [`write_manifest`] wrote.
fn is_entry(layout: &Layout, digest: &Digest) -> bool {
    let manifest = read_document(layout, digest).ok().flatten();
    manifest.is_some_and(|manifest| manifest.pointer("/annotations").is_some_and(|found| found.get(ENTRY_ID).is_some()))
}

/// A blob as JSON; `None` if it is something else, which its first byte tells: layers are not read.
fn read_document(layout: &Layout, digest: &Digest) -> Result<Option<serde_json::Value>> {
    let operation = || format!("read blob {digest}");
    let mut file = File::open(layout.blob_path(digest)).context(operation)?.take(DOCUMENT_CAP);
    let mut content = vec![0];
    let length = file.read(&mut content).context(operation)?;
    if length == 0 || !(content[0] == b'{' || content[0].is_ascii_whitespace()) {
        return Ok(None);
    }
    file.read_to_end(&mut content).context(operation)?;
    Ok(serde_json::from_slice(&content).ok())
}

/// The blobs that a manifest (or an index of manifests) needs, itself included. Whatever it is, each digest that stands
/// anywhere in it counts, so that a kind of document that regen does not know loses nothing.
fn closure(layout: &Layout, root: &Digest) -> Result<HashSet<Digest>> {
    let mut found = HashSet::new();
    let mut pending = vec![root.clone()];
    while let Some(digest) = pending.pop() {
        if !found.insert(digest.clone()) || !layout.has_blob(&digest) {
            continue;
        }
        if let Some(document) = read_document(layout, &digest)? {
            collect_digests(&document, &mut pending);
        }
    }
    Ok(found)
}

fn collect_digests(value: &serde_json::Value, found: &mut Vec<Digest>) {
    match value {
        serde_json::Value::String(text) => found.extend(text.parse::<Digest>().ok()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_digests(item, found)),
        serde_json::Value::Object(fields) => fields.values().for_each(|field| collect_digests(field, found)),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {}
    }
}

fn is_old(layout: &Layout, digest: &Digest) -> Result<bool> {
    let operation = || format!("look at blob {digest}");
    let modified = std::fs::metadata(layout.blob_path(digest)).and_then(|metadata| metadata.modified());
    let age = SystemTime::now().duration_since(modified.context(operation)?);
    // A time in the future is no reason to delete.
    Ok(age.is_ok_and(|age| age > ORPHAN_AGE))
}

/// Whether a manifest of ours and the config that it names are what their digests say.
pub(super) fn is_whole(layout: &Layout, digest: &Digest) -> bool {
    let config = read_manifest(layout, digest).and_then(|manifest| manifest.config.digest());
    config.is_ok_and(|config| layout.read_blob(&config, DOCUMENT_CAP).is_ok())
}

/// Reads a manifest of ours, its digest checked.
pub(super) fn read_manifest(layout: &Layout, digest: &Digest) -> Result<Manifest> {
    Manifest::parse(&layout.read_blob(digest, DOCUMENT_CAP)?)
}
