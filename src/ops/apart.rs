//! Containers that are made apart from what they are made from: on an upper that is thrown away, in no ring.

use std::path::{Path, PathBuf};

use chrono::Utc;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::id_map::id_map;
use super::load::{self, Plan, Wish};
use super::request::RingRequest;
use super::{Place, base, save, volume, worker};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{ContainerId, LayerId};
use crate::image::ImageConfig;
use crate::ring::{Base, Ring, gc};
use crate::runtime::{CreateRequest, Created};
use crate::store::{Run, RunRecord, Store};
use crate::sys::fs::{Durability, read_capped, replace_file};
use crate::sys::lock::Lock;
use crate::sys::process::Identity;

/// No specification that is read is longer.
const PINNED_CAP: u64 = 32 << 20;

/// What a container of a template has that others lack: it is made apart from what it is made from, on a scratch upper even
/// where that is a bundle, and in no ring.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// The specification in place of the source's.
    pub spec: Option<Spec>,
    /// What the base has to be: its fingerprint.
    pub base: Option<String>,
    /// What lies over the base.
    pub upon: Upon,
    /// What was found when it was looked what the source is, if that is not to be looked at again.
    pub pinned: Option<Pinned>,
    /// Keeps the layers of the image until a run does.
    pub images: Option<Lock>,
}

/// What containers are made from, as it was at one moment: a tag may lead elsewhere later, a file may be changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pinned {
    bundle: PathBuf,
    spec: Option<Spec>,
    image: Option<ImageConfig>,
    base: Base,
}

impl Pinned {
    /// Looks at what a container would be made from now. The lock keeps an image's layers until a run does.
    ///
    /// # Errors
    /// What is wrong with the source; [`Kind::Unsupported`] for a ring.
    pub(super) fn look(place: &Place, wish: Wish) -> Result<(Self, Option<Lock>)> {
        let mut plan = load::plan(place, wish)?;
        let base = base_of(&mut plan)?;
        Ok((Self { bundle: plan.bundle, spec: plan.spec, image: plan.image, base }, plan.images))
    }

    /// Reads what another process has looked at.
    ///
    /// # Errors
    /// Those of reading the file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = read_capped(path, PINNED_CAP)?;
        serde_json::from_slice(&text).context(|| format!("read {}", quote(path)))
    }

    /// Writes it down for other processes.
    ///
    /// # Errors
    /// Those of writing the file.
    pub(super) fn write(&self, directory: &Path, name: &str) -> Result<()> {
        let text = serde_json::to_vec(self).context(|| "write down what containers are made from")?;
        replace_file(directory, name, &text, Durability::Volatile)
    }

    fn plan(self, wish: Wish) -> Plan {
        let Self { bundle, spec, image, base } = self;
        Plan { spec, image, ..Plan::new(wish, bundle, Some(base)) }
    }
}

/// What lies between a base and an upper that belongs to no ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Upon {
    /// Nothing.
    #[default]
    Base,
    /// An entry of a ring, which is only read.
    Entry(RingRequest),
    /// What this container stands on, over the same base.
    Like(ContainerId),
}

/// Creates a container of a template, as [`load::create`] does others.
///
/// # Errors
/// As [`load::create`]; [`Kind::State`] if the base is another one, [`Kind::Unsupported`] for a ring.
pub(super) fn create_apart(
    place: &Place,
    wish: Wish,
    apart: Apart,
    adjust: impl FnOnce(&mut CreateRequest),
) -> Result<Created> {
    let operation = format!("create container '{}'", wish.id);
    let mut plan = plan_apart(place, wish, apart).context(|| operation.clone())?;
    load::check_mount_namespace(plan.spec.as_ref()).context(|| operation)?;
    load::claim_and_create(place, &mut plan, adjust)
}

fn plan_apart(place: &Place, wish: Wish, apart: Apart) -> Result<Plan> {
    let mut plan = match apart.pinned {
        Some(pinned) => pinned.plan(wish),
        None => load::plan(place, wish)?,
    };
    let base = base_of(&mut plan)?;
    if apart.base.is_some_and(|expected| expected != base.fingerprint) {
        return Err(Error::new(Kind::State, "look at its root file system", "it is not the one that was saved"));
    }
    plan.base = Some(base);
    plan.upon = apart.upon;
    plan.images = plan.images.or(apart.images);
    if apart.spec.is_some() {
        plan.spec = apart.spec;
    }
    Ok(plan)
}

/// What a container stands on that is in no ring, also where it would have written into its bundle.
fn base_of(plan: &mut Plan) -> Result<Base> {
    if let Some(ring) = &plan.wish.ring {
        let cause = format!("containers of templates are in none, and this one would be in '{}'", ring.ring);
        return Err(Error::new(Kind::Unsupported, "leave rings out", cause));
    }
    match (plan.base.take(), plan.spec.as_ref().and_then(|spec| spec.root().as_ref())) {
        (Some(base), _) => Ok(base),
        (None, root) => {
            let root = root.map_or(Path::new("rootfs"), |root| root.path().as_path());
            base::of_directory(&plan.bundle.join(root))
        }
    }
}

/// A run that belongs to no ring: its upper is thrown away at its end.
pub(super) fn scratch(place: &Place, store: &Store, plan: &Plan, base: Base, holder: Identity) -> Result<Run> {
    // Whoever makes one sandbox after the other takes dead ones away, too: not every one of them has to look at all runs.
    let looks = match &plan.upon {
        Upon::Base | Upon::Entry(_) => true,
        Upon::Like(_) => false,
    };
    if looks && gc::finds_dead_scratch(store)? {
        worker::start(place)?;
    }
    // The ring stays locked until the run is there, which keeps the layers.
    let mut volumes = Vec::new();
    let (_ring, layers) = match &plan.upon {
        Upon::Base => (None, Vec::new()),
        Upon::Entry(request) => {
            let mut locked = Ring::open(store, &request.ring)?.lock()?;
            locked.settle_for(&request.selector, "start from")?;
            let start = locked.find_start(&request.selector, &base, request.rebase)?;
            locked.check_ids(&start, id_map(plan.spec.as_ref()).as_deref())?;
            locked.ensure_layers(&start.layers, &format!("container '{}'", plan.wish.id))?;
            volumes = volume::plan(plan, request, start.entry.and_then(|seq| locked.state.entry(seq)))?;
            (Some(locked), start.layers)
        }
        Upon::Like(other) => (None, layers_of(place, store, other, &base)?),
    };
    let _lock = store.lock_against_collection()?;
    Run::create(
        store,
        RunRecord {
            version: 1,
            container: plan.wish.id.clone(),
            state_root: place.root.path().to_owned(),
            ring: None,
            parent: None,
            revives: None,
            layers,
            base: base.fingerprint,
            base_directories: base.directories,
            base_lasting: base.lasting,
            class: store.class(),
            id_map: None,
            mount_points: Vec::new(),
            holders: vec![holder],
            cgroups: Vec::new(),
            device: None,
            mount_namespace: None,
            mounted_at: None,
            volumes,
            started: Utc::now(),
        },
    )
}

/// The layers that another container stands on. Its run keeps them.
fn layers_of(place: &Place, store: &Store, container: &ContainerId, base: &Base) -> Result<Vec<LayerId>> {
    let operation = || format!("stand on what container '{container}' stands on");
    let attachment = save::attachment(place, container)?;
    let run = attachment.map(|attachment| Run::load(store, &attachment.run)).transpose()?.flatten();
    let run = run.ok_or_else(|| Error::new(Kind::State, operation(), "it has no run"))?;
    if run.record.base != base.fingerprint || run.record.base_directories != base.directories {
        return Err(Error::new(Kind::State, operation(), "its source is another one by now"));
    }
    Ok(run.record.layers)
}
