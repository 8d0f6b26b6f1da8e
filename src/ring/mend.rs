//! What a power cut may have taken from beside `ring.json`, made anew.
//!
//! A fork waits for its `ring.json` only: names of packs, manifest and index are left to the kernel, because all of them follow
//! from it. Until somebody flushes the file system the ring says in which boot they were made; whoever locks it in another one
//! does this first.

use std::fs;
use std::path::Path;

use super::fork::link;
use super::state::{PackRecord, RingState};
use super::{Locked, index};
use crate::error::Result;
use crate::ids::{LayerId, RingName};
use crate::image::layout::Layout;
use crate::sys::fs::sync_file_system;
use crate::sys::process::boot_id;

impl Locked {
    /// Makes anew what was lost, if the machine went down before it was on disk.
    pub(super) fn mend(&mut self) -> Result<()> {
        match &self.state.unflushed {
            Some(boot) if *boot != boot_id()? => {}
            Some(_) | None => return Ok(()),
        }
        tracing::debug!(ring = %self.ring().name(), "the machine went down before all of it was on disk");
        let layout = Layout::repair(self.ring().directory())?;
        self.find_packs(&layout);
        self.check_manifests(&layout)?;
        index::write_index(self)?;
        // The names of packs, which nobody has waited for.
        sync_file_system(self.ring().directory())?;
        self.state.unflushed = None;
        self.commit()
    }

    /// Gives the packs their names again where the ring that they came from still has them. Else their layer is packed once
    /// more; if that is gone as well, `ring verify` tells of it.
    fn find_packs(&mut self, layout: &Layout) {
        let lost = |pack: &PackRecord| {
            let is_whole = |blob: &fs::Metadata| blob.is_file() && blob.len() == pack.bytes;
            !fs::symlink_metadata(layout.blob_path(&pack.digest)).is_ok_and(|blob| is_whole(&blob))
        };
        let found = |layer: &LayerId, pack: &PackRecord| {
            let path = layout.blob_path(&pack.digest);
            // What is there is cut short. If it can't be removed, the link fails as well.
            let _ = fs::remove_file(&path);
            self.sources_of(layer).iter().any(|blobs| link(&blobs.join(pack.digest.hex()), &path).is_ok())
        };
        let gone: Vec<LayerId> = self
            .state
            .layers
            .iter()
            .filter(|(layer, record)| {
                let lost: Vec<_> = record.packs.iter().filter(|pack| lost(pack)).collect();
                !lost.into_iter().all(|pack| found(layer, pack)) && self.ring().store().layers().has(layer)
            })
            .map(|(layer, _)| layer.clone())
            .collect();
        forget_packs(&mut self.state, &gone);
    }

    /// Where the packs of a layer came from. Not locked: a blob appears whole, and its name says what it is.
    fn sources_of(&self, layer: &LayerId) -> Vec<std::path::PathBuf> {
        let entries = self.state.entries.iter().filter(|entry| entry.layers.contains(layer));
        let names = entries.filter_map(|entry| entry.forked_from.as_deref()?.split_once('@'));
        let rings = names.filter_map(|(name, _)| RingName::parse(name, &self.ring().name().owner).ok());
        let place = |ring: RingName| Path::new(ring.owner.as_str()).join(ring.name.as_str()).join("blobs/sha256");
        rings.map(|ring| self.ring().store().rings().join(place(ring))).collect()
    }

    /// Writes manifests anew that are not what their digest says.
    fn check_manifests(&mut self, layout: &Layout) -> Result<()> {
        for position in 0..self.state.entries.len() {
            let entry = self.state.entries[position].clone();
            let Some(manifest) = &entry.manifest else { continue };
            if !index::is_whole(layout, manifest) {
                let anew = index::write_manifest(layout, self.ring(), &self.state, &entry)?;
                self.state.entries[position].manifest = Some(anew);
            }
        }
        Ok(())
    }
}

/// Makes layers ones that are only sealed, and with them the entries that stand on them. Pure.
fn forget_packs(state: &mut RingState, layers: &[LayerId]) {
    for layer in layers {
        state.layers.remove(layer);
    }
    for entry in state.entries.iter_mut().filter(|entry| entry.layers.iter().any(|layer| layers.contains(layer))) {
        entry.manifest = None;
    }
}
