//! The pack: layers of sealed entries become blobs, the entry a manifest. Takes as long as its bytes need, so it runs
//! in the worker, never where a container or an engine waits.

use std::fs::File;
use std::time::Instant;

use super::entry::Entry;
use super::merge::{Below, merge};
use super::state::{LayerRecord, PackRecord};
use super::{Locked, Ring, index};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::LayerId;
use crate::image::layout::Layout;
use crate::image::manifest::Descriptor;
use crate::metrics;
use crate::pack::{Coding, Compression, Effort, pack_layer, rebuild_layer};
use crate::store::{Layers, Stage};
use crate::sys::fs::{disk_usage, space, sync_file_system};
use crate::sys::process::boot_id;

/// On a full disk even a small pack is told to need this much.
const LEAST_MISSING: u64 = 64 * 1024;

/// How far packing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The entry.
    pub seq: u64,
    /// Bytes read of its layer.
    pub done: u64,
    /// About how many there are.
    pub total: u64,
}

/// How to pack.
pub struct PackOptions<'a> {
    /// Gives, for a file system of so many bytes, how many have to stay free.
    pub floor: &'a dyn Fn(u64) -> u64,
    /// Told now and then.
    pub progress: &'a mut dyn FnMut(Progress),
}

impl std::fmt::Debug for PackOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackOptions").finish_non_exhaustive()
    }
}

impl Ring {
    /// Packs every entry that is only sealed by now, oldest first, and evicts what is over the limits. What is sealed
    /// meanwhile has a worker of its own: where it comes as fast as it is packed, the rest would wait for ever.
    ///
    /// Only one process does this at a time in a store: the one that has its worker lock.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if the file system would fall below its floor; the entry stays sealed. Else those of reading
    /// the layer and of writing the blob.
    pub fn pack(&self, options: &mut PackOptions<'_>) -> Result<()> {
        self.sweep_blobs()?;
        self.mark_synced()?;
        let last = self.read()?.last_seq;
        let waits = |entry: &&Entry| entry.manifest.is_none() && entry.seq <= last;
        while let Some(entry) = self.read()?.entries.iter().find(waits).cloned() {
            self.pack_entry(&entry, options)
                .context(|| format!("pack entry @{} of ring '{}'", entry.seq, self.name()))?;
        }
        // Nothing is evicted before the newest entry is on disk, and there may be a newer one.
        self.mark_synced()?;
        let mut locked = self.lock()?;
        locked.evict()?;
        // Again, if nothing left: also for what was interrupted before, or replaced since.
        index::write_index(&locked)?;
        locked.drop_replaced()
    }

    /// What an interrupted pack left may be as large as a layer: it goes before more is written.
    fn sweep_blobs(&self) -> Result<()> {
        // To the end: others' temporary files are theirs while they have the lock.
        let locked = self.lock()?;
        locked.sweep_memory()?;
        Layout::open(self.directory())?.sweep_temporary()
    }

    /// Flushes the store's file system and notes for which entries that makes sure that they are on disk.
    fn mark_synced(&self) -> Result<()> {
        let boot = boot_id()?;
        // What another boot left unsynced may be torn already: flushing it now proves nothing.
        let waiting = |entry: &Entry| !entry.synced && entry.boot_id == boot;
        let before: Vec<u64> =
            self.read()?.entries.iter().filter(|entry| waiting(entry)).map(|entry| entry.seq).collect();
        if before.is_empty() {
            return Ok(());
        }
        sync_file_system(self.store().directory())?;
        let mut locked = self.lock()?;
        for entry in locked.state.entries.iter_mut().filter(|entry| before.contains(&entry.seq)) {
            entry.synced = true;
        }
        // What was left to the kernel when the ring was made is older than any of them.
        locked.state.unflushed = None;
        locked.commit()
    }

    fn pack_entry(&self, entry: &Entry, options: &mut PackOptions<'_>) -> Result<()> {
        let layout = Layout::open(self.directory())?;
        for layer in &entry.layers {
            // Entries that were replaced before they were packed leave their layers to their successors.
            if !self.read()?.layers.contains_key(layer) {
                let began = Instant::now();
                let record = match self.packs_of_source(entry, layer)? {
                    Some(record) => record,
                    None => {
                        let how = (entry.seq, Effort::Quick);
                        self.pack_layer(&layout, how, layer, options).inspect_err(|_| metrics::pack_failed())?
                    }
                };
                let written = record.packs.iter().map(|pack| pack.bytes).sum();
                metrics::layer_packed(record.disk_bytes, written, began.elapsed());
                let mut locked = self.lock()?;
                locked.state.layers.insert(layer.clone(), record);
                locked.commit()?;
            }
        }
        let mut locked = self.lock()?;
        if let Some(current) = locked.state.entry(entry.seq).cloned() {
            let manifest = index::write_manifest(&layout, self, &locked.state, &current)?;
            if let Some(packed) = locked.state.entry_mut(entry.seq) {
                packed.manifest = Some(manifest);
            }
        } else {
            locked.state.forget_unused_layers();
        }
        // The index first: one that lists an entry too many or too early is true all the same, one that lacks an entry
        // that the ring calls packed is not.
        index::write_index(&locked)?;
        locked.commit()
    }

    pub(super) fn pack_layer(
        &self,
        layout: &Layout,
        (seq, effort): (u64, Effort),
        layer: &LayerId,
        options: &mut PackOptions<'_>,
    ) -> Result<LayerRecord> {
        let content = self.store().layers().content(layer);
        let disk_bytes = disk_usage(&content)?;
        self.check_space(disk_bytes, options.floor)?;
        let mut stage = layout.stage_blob()?;
        let progress = &mut *options.progress;
        let mut report = |done| progress(Progress { seq, done, total: disk_bytes.max(done) });
        let class = self.store().class();
        let coding = Coding { compression: Compression::Zstd, effort };
        let packed = pack_layer(&content, class, coding, stage.file(), &mut report).map_err(|error| {
            let written = stage.file().metadata().map_or(0, |metadata| metadata.len());
            if error.kind() == Kind::NoSpace { Self::explain_full(error, disk_bytes, written) } else { error }
        })?;
        for socket in &packed.sockets {
            tracing::warn!(ring = %self.name(), seq, socket = %socket.display(), "a socket is not packed");
        }
        stage.commit(&packed.digest)?;
        let pack = PackRecord {
            digest: packed.digest,
            diff_id: packed.diff_id,
            bytes: packed.packed_bytes,
            media_type: Compression::Zstd.media_type().to_owned(),
        };
        Ok(LayerRecord::new(disk_bytes, vec![pack]))
    }

    /// Stops before the disk is full: a pack may need as much as its layer.
    pub(super) fn check_space(&self, needed: u64, floor: &dyn Fn(u64) -> u64) -> Result<()> {
        let space = space(self.directory())?;
        let free = space.f_bavail * space.f_frsize;
        let wanted = needed + floor(space.f_blocks * space.f_frsize);
        if free >= wanted {
            return Ok(());
        }
        let cause = format!(
            "{} bytes are missing: {free} are free, it may take {needed} and {} have to stay free",
            wanted - free,
            wanted - needed
        );
        Err(Error::new(Kind::NoSpace, format!("write to {}", crate::error::quote(self.directory())), cause)
            .next("free that much, then run 'regen ring pack'"))
    }

    /// Says how much to free for a pack of a layer that takes `needed`, of which `written` bytes fitted.
    fn explain_full(error: Error, needed: u64, written: u64) -> Error {
        // Names and attributes take nothing in a layer's blocks, but do in its pack: where the estimate is used up, as
        // much again as was written is the next one.
        let missing = needed.saturating_sub(written).max(written).max(LEAST_MISSING);
        error.next(format!("free about {missing} bytes more, then run 'regen ring pack'"))
    }
}

impl Locked {
    /// Lets the entries go that are over the limits, with what only they needed, and gives their numbers.
    ///
    /// # Errors
    /// Those of writing and removing; what a crash leaves is collected later.
    pub fn evict(&mut self) -> Result<Vec<u64>> {
        let leaving = self.state.plan_eviction(&self.in_use()?);
        self.let_go(&leaving)?;
        Ok(leaving)
    }

    /// Lets go of entries, with what only they needed.
    pub(super) fn let_go(&mut self, leaving: &[u64]) -> Result<()> {
        if leaving.is_empty() {
            return Ok(());
        }
        self.state.entries.retain(|entry| !leaving.contains(&entry.seq));
        self.state.forget_unused_layers();
        self.commit()?;
        metrics::entries_evicted(leaving.len());
        self.sweep_memory()?;
        index::write_index(self)?;
        index::collect_blobs(self)
    }

    /// Makes sure that the layers are there, rebuilding those that were lost from their packs.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if a layer was lost that is not packed, or whose pack is not what it was; nothing of it is used.
    pub fn ensure_layers(&self, layers: &[LayerId], subject: &str) -> Result<()> {
        for layer in layers {
            if !self.ring().store().layers().has(layer) {
                self.rebuild(layer).context(|| format!("rebuild layer {layer} for {subject}"))?;
            }
        }
        Ok(())
    }

    fn rebuild(&self, layer: &LayerId) -> Result<()> {
        let record = self.state.layers.get(layer).ok_or_else(|| {
            Error::new(Kind::Damaged, "find its pack", "its directory is gone and it was never packed")
                .next("start from another entry: 'regen ring log' lists them")
        })?;
        let layout = Layout::open(self.ring().directory())?;
        let store = self.ring().store();
        let layers = store.layers();
        let mut stages = Vec::new();
        for pack in &record.packs {
            let stage = layers.stage()?;
            let blob = open_pack(&layout, pack)?;
            let compression = Compression::from_media_type(&pack.media_type)?;
            // What it holds, and that it is no bomb, was seen when it was packed or fetched.
            rebuild_layer(&blob, &pack.digest, compression, store.class(), stage.directory())?;
            stages.push(stage);
        }
        let [only] = stages.as_slice() else {
            let directories: Vec<_> = stages.iter().map(|stage| stage.directory().to_owned()).collect();
            let view = self.below(std::slice::from_ref(layer))?;
            let below = view.as_ref().map_or(Below::Unknown, |view| Below::Directory(view.root()));
            let below = below.but_for(self.state.volumes());
            let merged = merge(&layers, &directories, store.class(), &below)?;
            return adopt_synced(&layers, layer, &merged);
        };
        adopt_synced(&layers, layer, only)
    }
}

/// A power cut may lose a rebuilt layer again, but not leave a torn one behind that is taken for it.
fn adopt_synced(layers: &Layers, layer: &LayerId, built: &Stage) -> Result<()> {
    sync_file_system(built.directory())?;
    layers.adopt(layer, built.directory())
}

fn open_pack(layout: &Layout, pack: &PackRecord) -> Result<File> {
    layout.open_blob(&Descriptor::new(&pack.media_type, &pack.digest, pack.bytes))
}
