//! Whether a ring is what it says it is.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;

use sha2::{Digest as _, Sha256};

use super::entry::Entry;
use super::repack::bring_up_to_date;
use super::state::RingState;
use super::{Ring, index};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{Digest, LayerId};
use crate::image::layout::Layout;
use crate::image::manifest::Descriptor;
use crate::store::Run;
use crate::sys::process::boot_id;

/// One thing that is wrong, in a line.
pub type Fault = String;

impl Ring {
    /// Reads everything that the ring has, and compares it with what it should be. Finishes an interrupted seal first.
    ///
    /// # Errors
    /// Only if the ring cannot be read at all; everything else is a fault.
    pub fn verify(&self) -> Result<Vec<Fault>> {
        let state = self.lock()?.state;
        let mut faults = Vec::new();
        let mut note = |subject: String, result: Result<()>| {
            if let Err(error) = result {
                faults.push(format!("{}: {subject}: {error}", self.name()));
            }
        };
        let layout = match Layout::open(self.directory()) {
            Ok(layout) => layout,
            Err(error) => {
                drop(self.lock()?);
                return Ok(vec![format!("{}: {error}", self.name())]);
            }
        };
        let mut seen = HashSet::new();
        for (layer, record) in &state.layers {
            for pack in record.packs.iter().filter(|pack| seen.insert(pack.digest.clone())) {
                let blob = Descriptor::new(&pack.media_type, &pack.digest, pack.bytes);
                note(format!("layer {layer}"), verify_pack(&layout, &blob));
            }
        }
        for entry in &state.entries {
            let subject = format!("entry @{}", entry.seq);
            note(subject.clone(), self.verify_layers(entry));
            note(subject.clone(), self.verify_memory(entry));
            note(subject.clone(), verify_synced(entry));
            note(subject, verify_manifest(&layout, &state, entry, &mut seen));
        }
        for side in &state.sides {
            note(format!("run {}", side.run), self.verify_side(&side.run));
        }
        note("index.json".into(), verify_index(&layout, &state));
        // The ring is not locked for all that reading: what was missing may have been removed with it.
        if !faults.is_empty() {
            drop(self.lock()?);
        }
        Ok(faults)
    }

    /// A run that has been there for long enough to give the ring away is on disk, with its record.
    fn verify_side(&self, run: &LayerId) -> Result<()> {
        let operation = || "look for what it writes beside the main line";
        match Run::load(self.store(), run).context(operation)? {
            Some(run) if run.upper().is_dir() => Ok(()),
            Some(_) | None => {
                Err(Error::new(Kind::Damaged, operation(), "it is gone").next("run 'regen ring recover'"))
            }
        }
    }

    /// criu's images have no digests: all that can be told is whether they are there.
    fn verify_memory(&self, entry: &Entry) -> Result<()> {
        if entry.memory_bytes.is_none() || self.memory_of(entry).is_dir() {
            return Ok(());
        }
        let next =
            format!("'regen ring rollback {} --to @{} --without-memory' goes on without", self.name(), entry.seq);
        Err(Error::new(Kind::Damaged, "look for its processes", "they are gone").next(next))
    }

    fn verify_layers(&self, entry: &Entry) -> Result<()> {
        match entry.layers.iter().find(|layer| !self.store().layers().has(layer)) {
            Some(layer) => {
                let next = match entry.manifest {
                    Some(_) => "the next run rebuilds it from its pack",
                    None => "it was not packed yet: start from another entry",
                };
                Err(Error::new(Kind::Damaged, format!("look for layer {layer}"), "its directory is gone").next(next))
            }
            None => Ok(()),
        }
    }
}

fn verify_synced(entry: &Entry) -> Result<()> {
    if entry.synced || entry.boot_id == boot_id()? {
        return Ok(());
    }
    Err(Error::new(
        Kind::State,
        "check that it is on disk",
        "the machine went down before that was known: files in it may be torn",
    ))
}

fn verify_pack(layout: &Layout, pack: &Descriptor) -> Result<()> {
    let digest = pack.digest()?;
    let operation = || format!("read pack {digest}");
    let mut file = layout.open_blob(pack)?;
    let found = hash(&mut file).context(operation)?;
    if found == digest {
        return Ok(());
    }
    Err(Error::new(Kind::Damaged, operation(), format!("its digest is {found}")))
}

fn hash(file: &mut File) -> std::io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(Digest::from_bytes(hasher.finalize().into()));
        }
        hasher.update(&buffer[..length]);
    }
}

fn verify_manifest(layout: &Layout, state: &RingState, entry: &Entry, seen: &mut HashSet<Digest>) -> Result<()> {
    let Some(digest) = &entry.manifest else { return Ok(()) };
    let manifest = index::read_manifest(layout, digest)?;
    layout.read_blob(&manifest.config.digest()?, index::DOCUMENT_CAP)?;
    // Those from which layers are rebuilt have been read; these, others have taken the place of since.
    for pack in &manifest.layers {
        if seen.insert(pack.digest()?) {
            verify_pack(layout, pack)?;
        }
    }
    let mut listed = manifest.layers.iter().map(Descriptor::digest).collect::<Result<Vec<_>>>()?;
    bring_up_to_date(&state.repacked, &mut listed);
    let known: Vec<_> = index::packs_of(state, entry)?.into_iter().map(|pack| pack.digest.clone()).collect();
    if listed == known {
        return Ok(());
    }
    Err(Error::new(Kind::Damaged, format!("read manifest {digest}"), "it lists other layers than the ring"))
}

fn verify_index(layout: &Layout, state: &RingState) -> Result<()> {
    let index = layout.index()?;
    for entry in &state.entries {
        let Some(manifest) = &entry.manifest else { continue };
        let listed = index.tagged(&entry.id).map(Descriptor::digest).transpose()?;
        if listed.as_ref() != Some(manifest) {
            let cause = format!("it does not list entry @{} as {manifest}", entry.seq);
            return Err(Error::new(Kind::Damaged, "compare with the ring", cause).next("run 'regen ring recover'"));
        }
    }
    Ok(())
}
