//! A ring, or one of its entries, comes from a registry, from an image layout or from an archive of one.
//!
//! ```text
//! list ── fetch manifests and configs ── fetch packs ── unpack them into layers ── ring.json: the entries
//! ```
//!
//! Until the last step nobody sees anything of it: a ring that was here stays as it was, and from one that is new no run
//! starts. What was fetched before a crash is found by the next try. Packs are foreign bytes: each is compared with its
//! digests, and unpacked within the limits that hold for images.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::image::{self, Foreign};
use super::origin::{Origin, is_worth_keeping};
use super::push::Registry;
use super::transfer::{Location, Moved, Transfer, in_pairs};
use super::{Place, base, worker};
use crate::distribution::{Blob, Document, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{Digest, LayerId, RingName};
use crate::image::ImageSource;
use crate::image::layout::Layout;
use crate::image::manifest::{CONFIG_MAX, Descriptor};
use crate::ring::exchange::{self, Delivery, Listed, Part, Role, Terms, missing, read_index, resolve};
use crate::ring::offer::{Offer, config_of, id_of, read_offer};
use crate::ring::state::{PackRecord, RingState};
use crate::ring::{Limits, Locked, Ring};
use crate::store::Store;
use crate::sys::fs::{disk_usage, random_id, space, sync_file_system};
use crate::sys::lock::{Lock, Sharing};

/// All manifests and configs of a ring are held in memory: so many bytes are a ring of thousands of entries.
const DOCUMENTS_MAX: u64 = 256 << 20;

/// What a pull did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulled {
    /// The numbers of the entries that are new, oldest first.
    pub entries: Vec<u64>,
    /// What they stand on.
    pub bases: Vec<String>,
    /// Of those, what came along, as images that can be run: `oci:DIR:TAG`.
    pub base_images: Vec<String>,
    /// The blobs.
    pub moved: Moved,
}

/// What there is of a ring.
#[derive(Debug)]
pub(super) struct Listing {
    pub entries: Vec<Listed>,
    pub terms: Terms,
}

/// What is to be fetched.
pub(super) struct Order<'a> {
    pub ring: &'a RingName,
    pub listing: &'a Listing,
    pub role: Role,
    /// For whoever finds it half done.
    pub from: &'a str,
    /// Asked last, while the ring is locked: after it the ring is what was fetched, and nothing before it counts.
    pub permit: &'a dyn Fn() -> Result<()>,
}

/// Fetches what a ring lacks, and makes the ring if it is not here.
///
/// # Errors
/// [`Kind::NotFound`] if there is no ring, [`Kind::State`] if the one here has diverged from it, [`Kind::Busy`] if a
/// container has it, [`Kind::Damaged`] and [`Kind::Invalid`] for what is not what it should be; those of talking to the
/// registry and of writing. The ring is then as it was.
pub fn pull(place: &Place, from: Registry<'_>, name: &RingName, tell: &mut dyn FnMut(&Transfer)) -> Result<Pulled> {
    let operation = || format!("pull ring '{name}' from '{}'", from.reference);
    fetch(place, (&Location::Registry(from.reference.clone()), from.trust), name, tell).context(operation)
}

/// The same from any place that an entry was exported to, or that has the layout of a ring.
///
/// # Errors
/// As [`pull`].
pub fn import(
    place: &Place,
    (from, trust): (&Location, Trust),
    name: &RingName,
    tell: &mut dyn FnMut(&Transfer),
) -> Result<Pulled> {
    fetch(place, (from, trust), name, tell).context(|| format!("import ring '{name}' from '{from}'"))
}

fn fetch(
    place: &Place,
    (from, trust): (&Location, Trust),
    name: &RingName,
    tell: &mut dyn FnMut(&Transfer),
) -> Result<Pulled> {
    let mut origin = Origin::open(from, trust)?;
    let listing = list(&mut origin, from.tag())?;
    let order = Order {
        ring: name,
        listing: &listing,
        role: Role::Copy,
        from: &from.absolute()?.to_string(),
        permit: &|| Ok(()),
    };
    receive(place, &mut origin, &order, tell)
}

/// What there is: what the tag names, or the ring's index, or all tags of entries, or the only entry.
fn list(origin: &mut Origin, tag: Option<&str>) -> Result<Listing> {
    if let Some(tag) = tag {
        let missing = || {
            Error::new(Kind::NotFound, format!("look for tag '{tag}'"), "there is no ring or entry under it").next(
                "'skopeo list-tags' shows which there are; 'regen ring push' and 'regen ring export' put them there",
            )
        };
        return list_one(&origin.manifest(tag)?.ok_or_else(missing)?);
    }
    if let Some(document) = origin.manifest(exchange::RING_TAG)? {
        let (entries, terms) = read_index(&document.bytes)?;
        return Ok(Listing { entries, terms });
    }
    let mut entries = Vec::new();
    for tag in origin.tags()? {
        let Some(seq) = exchange::seq_of_tag(&tag) else { continue };
        let Some(manifest) = origin.manifest_digest(&tag)? else { continue };
        entries.push(Listed { seq, id: tag, manifest, pinned: false });
    }
    entries.sort_by_key(|entry| entry.seq);
    exchange::check_list(&entries)?;
    if !entries.is_empty() {
        return Ok(Listing { terms: exchange::terms_without_index(&entries), entries });
    }
    let missing = || {
        Error::new(Kind::NotFound, "look for its index and its entries' tags", "there is no ring")
            .next("'regen ring push' puts one there")
    };
    let only = origin.only().ok_or_else(missing)?;
    list_one(&origin.manifest(&only)?.ok_or_else(missing)?)
}

fn list_one(document: &Document) -> Result<Listing> {
    config_of(&document.bytes)?;
    let id = id_of(&document.bytes)?;
    let seq = exchange::seq_of_tag(&id)
        .ok_or_else(|| Error::new(Kind::Invalid, "read the entry's manifest", "its tag is not that of an entry"))?;
    let entries = vec![Listed { seq, id, manifest: document.digest.clone(), pinned: false }];
    exchange::check_list(&entries)?;
    Ok(Listing { terms: exchange::terms_without_index(&entries), entries })
}

/// Fetches what a ring lacks of a listing.
pub(super) fn receive(
    place: &Place,
    origin: &mut Origin,
    order: &Order<'_>,
    tell: &mut dyn FnMut(&Transfer),
) -> Result<Pulled> {
    let Order { ring: name, listing, role, from, permit: _ } = *order;
    let store = place.open_store()?;
    let limits = initial_limits(place, listing);
    let state = match Ring::open(&store, name) {
        Ok(ring) => {
            // What a dead container left is an entry first: the two may diverge by it.
            ring.lock()?.settle("pull into")?;
            ring.read()?
        }
        Err(error) if error.kind() == Kind::NotFound => RingState::new(limits),
        Err(error) => return Err(error),
    };
    let wanted = missing(name, &state, &listing.entries, role)?;
    if wanted.is_empty() && role == Role::Copy && state.last_seq > 0 && state.elsewhere.is_none() {
        let present = listing.entries.len() as u64;
        return Ok(Pulled { moved: Moved { present, ..Moved::default() }, ..Pulled::default() });
    }
    let documents = fetch_documents(origin, &wanted)?;
    let offers = read_offers(&store, &wanted, documents.iter())?;
    let ring = Ring::open_or_expect(&store, name, limits, from)?;
    let layout = Layout::open(ring.directory())?;
    let mut fetch = Fetch { origin, layout, moved: Moved::default(), fetched: Vec::new(), tell, total: 0 };
    let result = fetch.packs(place, &ring, &state, &offers);
    let is_cut_short = result.as_ref().is_err_and(|error| is_worth_keeping(error.kind()));
    let result = result.and_then(|()| {
        // An entry that brought its base gets a config of its own.
        let whole = offers.iter().zip(&documents).filter(|(offer, _)| offer.below.is_none());
        for (_, (_, config)) in whole {
            fetch.layout.put_blob(config)?;
        }
        deliver(place, &ring, offers, order)
    });
    let Fetch { moved, fetched, .. } = fetch;
    match result {
        Ok(delivery) => finish(place, &ring, delivery, moved),
        Err(error) => {
            // Why it was not pulled is what is reported; an empty ring on which nothing may start does no harm.
            let _ = ring.lock().and_then(|locked| {
                if is_cut_short {
                    keep_fetched(&locked, &fetched);
                }
                locked.remove_unarrived()
            });
            Err(error)
        }
    }
}

/// A ring that did not arrive goes, with what lies in it: whole blobs are put where the next try finds them.
fn keep_fetched(locked: &Locked, fetched: &[Digest]) {
    let (ring, is_new) = (locked.ring(), locked.state.elsewhere.is_some());
    let Ok(layout) = Layout::open(ring.directory()) else { return };
    for digest in fetched.iter().filter(|_| is_new) {
        if let Err(error) = ring.store().transfers().take_back(digest, &layout.blob_path(digest)) {
            tracing::debug!("{error}");
        }
    }
}

fn finish(place: &Place, ring: &Ring, (delivery, entries): (Delivery, Vec<u64>), moved: Moved) -> Result<Pulled> {
    let new = delivery.offers.iter().filter(|offer| entries.contains(&offer.entry.seq));
    let mut bases: Vec<_> = new.map(|offer| offer.entry.base.clone()).collect();
    bases.sort();
    bases.dedup();
    if !entries.is_empty() {
        // Limits may evict, long chains are folded.
        worker::start(place)?;
    }
    let mut base_images = Vec::new();
    for (offer, below) in delivery.offers.iter().filter_map(|offer| Some((offer, offer.below.as_ref()?))) {
        let fingerprint = &offer.entry.base;
        let (directory, tag) = (std::path::absolute(ring.directory()), exchange::base_tag(fingerprint));
        let directory = directory.context(|| "find the ring's directory")?;
        let source = ImageSource::Layout { directory, tag: Some(tag) };
        image::remember(ring.store(), fingerprint, &source, &below.config);
        base_images.push(source.to_string());
    }
    base_images.sort();
    base_images.dedup();
    Ok(Pulled { entries, bases, base_images, moved })
}

/// A copy holds what is there, even where that is more than new rings here do.
fn initial_limits(place: &Place, listing: &Listing) -> Limits {
    let depth = listing.terms.depth.unwrap_or(place.config.ring.depth as usize);
    Limits { depth: depth.max(listing.entries.len()), max_bytes: listing.terms.max_bytes }
}

/// The manifest and the config of each entry.
fn fetch_documents(origin: &mut Origin, wanted: &[&Listed]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut documents = Vec::new();
    let mut total = 0;
    for listed in wanted {
        let missing =
            || Error::new(Kind::NotFound, format!("fetch entry @{}", listed.seq), "its manifest is not there");
        let manifest = origin.manifest(&listed.manifest.to_string())?.ok_or_else(missing)?.bytes;
        let (digest, size) = config_of(&manifest)?;
        total += manifest.len() as u64 + size;
        if size > CONFIG_MAX || total > DOCUMENTS_MAX {
            let cause = "manifests and configs are larger than any that a ring has";
            return Err(Error::new(Kind::Invalid, format!("fetch entry @{}", listed.seq), cause));
        }
        let config = origin.text(&Blob { digest, size })?;
        documents.push((manifest, config));
    }
    Ok(documents)
}

fn read_offers<'a>(
    store: &Store,
    wanted: &[&Listed],
    documents: impl Iterator<Item = &'a (Vec<u8>, Vec<u8>)>,
) -> Result<Vec<Offer>> {
    let offer = |(listed, (manifest, config)): (&&Listed, &'a (Vec<u8>, Vec<u8>))| {
        read_offer(listed, manifest.clone(), config, store.class())
    };
    let mut offers = wanted.iter().zip(documents).map(offer).collect::<Result<Vec<_>>>()?;
    for offer in &mut offers {
        if let Some(below) = &offer.below {
            offer.entry.base = base::of_image(store, &below.config.rootfs.diff_ids).fingerprint;
        }
    }
    Ok(offers)
}

/// A pull under way.
struct Fetch<'a, 'b> {
    origin: &'a mut Origin,
    layout: Layout,
    moved: Moved,
    /// What was not here.
    fetched: Vec<Digest>,
    tell: &'b mut dyn FnMut(&Transfer),
    total: u64,
}

impl Fetch<'_, '_> {
    /// Puts the packs that are not here into the ring's layout.
    fn packs(&mut self, place: &Place, ring: &Ring, state: &RingState, offers: &[Offer]) -> Result<()> {
        let mut needed: Vec<PackRecord> = Vec::new();
        let mut seen = HashSet::new();
        let below = offers.iter().filter_map(|offer| offer.below.as_ref()).flat_map(|below| below.packs.clone());
        for pack in below.chain(offers.iter().flat_map(|offer| unpacked(state, offer))) {
            let here = self.layout.open_blob(&descriptor(&pack)).is_ok();
            if seen.insert(pack.digest.clone()) && !here {
                needed.push(pack);
            } else if here {
                self.moved.present += 1;
            }
        }
        self.total = needed.iter().try_fold(0_u64, |sum, pack| sum.checked_add(pack.bytes)).unwrap_or(u64::MAX);
        check_space(place, ring, self.total)?;
        let (what, total, tell, layout) =
            (format!("pulling {}", ring.name()), self.total, &mut *self.tell, &self.layout);
        let (transfers, moved, fetched) = (ring.store().transfers(), AtomicU64::new(0), Mutex::new(Vec::new()));
        let fetch = |origin: &mut Origin, pack: &PackRecord, told: &dyn Fn(u64)| {
            let blob = Blob { digest: pack.digest.clone(), size: pack.bytes };
            let bytes = origin.bring(&blob, layout, &transfers, &mut |bytes| told(bytes))?;
            moved.fetch_add(bytes, Ordering::Relaxed);
            if let Origin::Registry(_) = origin {
                fetched.lock().unwrap_or_else(PoisonError::into_inner).push(blob.digest);
            }
            Ok(())
        };
        let result =
            in_pairs(self.origin, &needed, fetch, &mut |done| tell(&Transfer { what: what.clone(), done, total }));
        self.fetched = fetched.into_inner().unwrap_or_else(PoisonError::into_inner);
        result?;
        self.moved.blobs += needed.len() as u64;
        self.moved.bytes += moved.into_inner();
        Ok(())
    }
}

/// The packs of an offer that no layer of the ring stands for.
fn unpacked(state: &RingState, offer: &Offer) -> Vec<PackRecord> {
    let pack = |part| match part {
        Part::Pack(pack) => Some(pack),
        Part::Layer(_) => None,
    };
    resolve(state, &offer.packs).into_iter().filter_map(pack).collect()
}

fn descriptor(pack: &PackRecord) -> Descriptor {
    Descriptor::new(&pack.media_type, &pack.digest, pack.bytes)
}

fn check_space(place: &Place, ring: &Ring, bytes: u64) -> Result<()> {
    let space = space(ring.directory())?;
    let floor = place.config.store.min_free.bytes(space.f_blocks * space.f_frsize);
    let free = (space.f_bavail * space.f_frsize).saturating_sub(floor);
    // The layers take at least as much again.
    if bytes.saturating_mul(2) <= free {
        return Ok(());
    }
    let cause = format!("{} bytes are to be fetched and unpacked, {free} are free", bytes.saturating_mul(2));
    Err(Error::new(Kind::NoSpace, format!("write to {}", crate::error::quote(ring.directory())), cause))
}

/// Unpacks what is new and adds it to the ring.
fn deliver(place: &Place, ring: &Ring, offers: Vec<Offer>, order: &Order<'_>) -> Result<(Delivery, Vec<u64>)> {
    let store = ring.store();
    // Layers that nobody names yet are garbage to whoever collects: nobody does while this is held.
    let _lock = Lock::wait(&store.worker_lock(), Sharing::Exclusive)?;
    let layout = Layout::open(ring.directory())?;
    let state = ring.read()?;
    let Listing { entries, terms } = order.listing;
    let (listed, terms) = (entries.clone(), terms.clone());
    let mut delivery = Delivery { listed, offers, layers: HashMap::new(), bases: BTreeMap::new(), terms };
    let result = unpack_all(place, store, &layout, &state, &mut delivery).and_then(|()| {
        if !delivery.layers.is_empty() {
            sync_file_system(store.directory())?;
        }
        let mut locked = ring.lock()?;
        locked.settle("pull into")?;
        (order.permit)()?;
        locked.accept(&delivery, order.role)
    });
    if result.is_err() {
        for (layer, _) in delivery.layers.values() {
            // The next collection takes what stays.
            let _ = store.layers().remove(layer);
        }
    }
    result.map(|entries| (delivery, entries))
}

fn unpack_all(place: &Place, store: &Store, layout: &Layout, state: &RingState, delivery: &mut Delivery) -> Result<()> {
    for offer in &delivery.offers {
        let Some(below) = &offer.below else { continue };
        for pack in &below.packs {
            let layer = LayerId::of_image(&pack.diff_id);
            if !store.layers().has(&layer) {
                unpack_sound(place, store, layout, pack, &layer)?;
            }
        }
        let base = base::of_image(store, &below.config.rootfs.diff_ids);
        delivery.bases.insert(base.fingerprint, base.lasting);
    }
    let packs: Vec<_> = delivery.offers.iter().flat_map(|offer| unpacked(state, offer)).collect();
    for pack in packs {
        if delivery.layers.contains_key(&pack.digest) {
            continue;
        }
        let layer = LayerId::from_random(random_id()?);
        let bytes = unpack_sound(place, store, layout, &pack, &layer)?;
        delivery.layers.insert(pack.digest.clone(), (layer, bytes));
    }
    Ok(())
}

fn unpack_sound(place: &Place, store: &Store, layout: &Layout, pack: &PackRecord, layer: &LayerId) -> Result<u64> {
    unpack_one(place, store, layout, pack, layer).inspect_err(|error| {
        if error.kind() == Kind::Damaged {
            // It is not what was fetched: the next try fetches it again.
            let _ = layout.remove_blob(&pack.digest);
        }
    })
}

/// The bytes on disk of the new layer.
fn unpack_one(place: &Place, store: &Store, layout: &Layout, pack: &PackRecord, layer: &LayerId) -> Result<u64> {
    let operation = || format!("unpack {}", pack.digest);
    let layers = store.layers();
    let stage = layers.stage()?;
    let content = stage.directory().join("diff");
    image::make_root(&content)?;
    let blob = layout.open_blob(&descriptor(pack))?;
    let (digest, diff_id) = (&pack.digest, &pack.diff_id);
    let foreign = Foreign { blob: &blob, digest, diff_id, media_type: &pack.media_type };
    image::unpack_foreign(store, &place.config, &foreign, &content).context(operation)?;
    let bytes = disk_usage(&content)?;
    layers.adopt(layer, &content)?;
    Ok(bytes)
}
