//! What was fetched becomes part of a ring, in one step.

use std::collections::{BTreeMap, HashMap};

use super::Locked;
use super::elsewhere::Elsewhere;
use super::entry::Entry;
use super::exchange::{Delivery, Next, Part, Role, base_tag, is_same, missing, replaces, resolve};
use super::index::write_index;
use super::offer::{Below, Offer};
use super::state::LayerRecord;
use crate::error::{Error, Kind, Result};
use crate::ids::{Digest, LayerId};
use crate::image::layout::Layout;
use crate::image::manifest::{Descriptor, LayerType};
use crate::image::write::{index_entry, layer_descriptor, manifest_for};

impl Locked {
    /// Adds what was delivered, in one step, and says which entries are new. The layers are there and on disk.
    ///
    /// # Errors
    /// As [`missing`]; [`Kind::Busy`] if the ring changed since the delivery was made up; those of writing.
    pub fn accept(&mut self, delivery: &Delivery, role: Role) -> Result<Vec<u64>> {
        let name = self.ring().name().clone();
        let wanted: Vec<u64> =
            missing(&name, &self.state, &delivery.listed, role)?.iter().map(|listed| listed.seq).collect();
        let layout = Layout::open(self.ring().directory())?;
        let before = self.state.clone();
        if replaces(&self.state, role) {
            self.state.entries.retain(|entry| delivery.listed.iter().any(|listed| is_same(entry, listed)));
        }
        let mut new = Vec::new();
        for seq in wanted {
            let offer = delivery.offers.iter().find(|offer| offer.entry.seq == seq);
            let offer = offer.ok_or_else(|| self.changed(seq))?;
            let layers = self.place_layers(offer, &delivery.layers)?;
            if let Some(manifest) = &offer.manifest {
                layout.put_blob(manifest)?;
            }
            if let Some(below) = &offer.below {
                keep_base(&layout, &offer.entry.base, below)?;
            }
            self.state.entries.push(Entry { layers, ..offer.entry.clone() });
            new.push(seq);
        }
        self.state.entries.sort_by_key(|entry| entry.seq);
        self.check_order()?;
        self.state.last_seq = self.state.entries.last().map_or(0, |entry| entry.seq).max(self.state.last_seq);
        self.follow_terms(delivery, role, &new);
        self.state.bases.extend(delivery.bases.clone());
        self.state.forget_unused_layers();
        if self.state != before {
            self.commit_listed(&before.entries)?;
        }
        Ok(new)
    }

    /// Removes a ring that was to come here for the first time and did not.
    ///
    /// # Errors
    /// Those of rename and unlink.
    pub fn remove_unarrived(self) -> Result<()> {
        match self.state.elsewhere {
            Some(Elsewhere::Arriving { .. }) => self.remove_unused(),
            Some(Elsewhere::Away { .. }) | None => Ok(()),
        }
    }

    /// The index comes first, as for a pack: one that lists an entry too many or too early is true all the same.
    fn commit_listed(&mut self, before: &[Entry]) -> Result<()> {
        let after = self.state.entries.clone();
        let gone = before.iter().filter(|entry| !after.iter().any(|kept| kept.seq == entry.seq));
        self.state.entries.extend(gone.cloned());
        let written = write_index(self);
        let any_gone = self.state.entries.len() > after.len();
        self.state.entries = after;
        written?;
        self.commit()?;
        if any_gone { write_index(self) } else { Ok(()) }
    }

    fn check_order(&self) -> Result<()> {
        match self.state.entries.windows(2).find(|pair| pair[0].created > pair[1].created) {
            None => Ok(()),
            Some(pair) => {
                let cause = format!("@{} is older than the entry before it", pair[1].seq);
                Err(Error::new(Kind::Invalid, format!("add to ring '{}'", self.ring().name()), cause))
            }
        }
    }

    fn changed(&self, seq: u64) -> Error {
        let operation = format!("add @{seq} to ring '{}'", self.ring().name());
        Error::new(Kind::Busy, operation, "the ring changed meanwhile").next("try again")
    }

    fn place_layers(&mut self, offer: &Offer, unpacked: &HashMap<Digest, (LayerId, u64)>) -> Result<Vec<LayerId>> {
        let mut layers = Vec::new();
        for part in resolve(&self.state, &offer.packs) {
            let pack = match part {
                Part::Layer(id) => {
                    layers.push(id);
                    continue;
                }
                Part::Pack(pack) => pack,
            };
            let (id, disk_bytes) = unpacked.get(&pack.digest).ok_or_else(|| self.changed(offer.entry.seq))?;
            let record = LayerRecord::new(*disk_bytes, vec![pack]);
            self.state.layers.insert(id.clone(), record);
            layers.push(id.clone());
        }
        Ok(layers)
    }

    fn follow_terms(&mut self, delivery: &Delivery, role: Role, new: &[u64]) {
        let (state, terms) = (&mut self.state, &delivery.terms);
        let arrives = matches!(state.elsewhere, Some(Elsewhere::Arriving { .. }));
        if arrives || role == Role::Home || !new.is_empty() {
            let newest = state.newest().map(|entry| entry.seq);
            state.set_next(match terms.next {
                Next::Base => None,
                Next::Entry(seq) if state.entry(seq).is_some() => Some(seq),
                Next::Entry(_) | Next::Unsaid => newest,
            });
            state.last_exit = terms.last_exit.or(state.newest().map(|entry| entry.created));
        }
        if role == Role::Home {
            state.depth = terms.depth.unwrap_or(state.depth);
            state.max_bytes = terms.max_bytes;
            state.keep = terms.keep;
            state.moves = terms.moves;
            for entry in &mut state.entries {
                entry.pinned = delivery.listed.iter().any(|listed| listed.seq == entry.seq && listed.pinned);
            }
        }
        if arrives || role == Role::Home {
            state.last_seq = state.last_seq.max(terms.last_seq);
            state.elsewhere = None;
        }
    }
}

/// Has a base that came along in the ring's layout, as an image under a tag of its own. It is none of the ring's entries, so
/// it stays as long as nobody takes the tag away.
fn keep_base(layout: &Layout, fingerprint: &str, below: &Below) -> Result<()> {
    let config = layout.put_blob(&below.config.to_json()?)?;
    let layers = below
        .packs
        .iter()
        .map(|pack| Ok(layer_descriptor(LayerType::parse(&pack.media_type)?, &pack.digest, pack.bytes)));
    let manifest = manifest_for(&config, layers.collect::<Result<Vec<Descriptor>>>()?, BTreeMap::new());
    let manifest = layout.put_blob(&manifest.to_json()?)?;
    let mut index = layout.index()?;
    index.set(index_entry(&manifest, &base_tag(fingerprint))?);
    layout.replace_index(&index)
}
