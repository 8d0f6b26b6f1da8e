//! Containers that are made apart from what they are made from: on an upper that is thrown away, in no ring.

use std::path::Path;

use chrono::Utc;
use oci_spec::runtime::Spec;

use super::load::{self, Plan, Wish};
use super::request::RingRequest;
use super::{Place, base, save, worker};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{ContainerId, LayerId};
use crate::ring::{Base, Ring, gc};
use crate::runtime::{CreateRequest, Created};
use crate::store::{Run, RunRecord, Store};
use crate::sys::process::Identity;

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

/// Creates a container of a template, as [`create`] does others.
///
/// # Errors
/// As [`create`]; [`Kind::State`] if the base is another one, [`Kind::Unsupported`] for a ring.
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
    let mut plan = load::plan(place, wish)?;
    if let Some(ring) = &plan.wish.ring {
        let cause = format!("containers of templates are in none, and this one would be in '{}'", ring.ring);
        return Err(Error::new(Kind::Unsupported, "leave rings out", cause));
    }
    let base = match (plan.base.take(), plan.spec.as_ref().and_then(|spec| spec.root().as_ref())) {
        (Some(base), _) => base,
        (None, root) => {
            let root = root.map_or(Path::new("rootfs"), |root| root.path().as_path());
            base::of_directory(&plan.bundle.join(root))?
        }
    };
    if apart.base.is_some_and(|expected| expected != base.fingerprint) {
        return Err(Error::new(Kind::State, "look at its root file system", "it is not the one that was saved"));
    }
    plan.base = Some(base);
    plan.upon = apart.upon;
    if apart.spec.is_some() {
        plan.spec = apart.spec;
    }
    Ok(plan)
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
    let (_ring, layers) = match &plan.upon {
        Upon::Base => (None, Vec::new()),
        Upon::Entry(request) => {
            let locked = Ring::open(store, &request.ring)?.lock()?;
            let start = locked.find_start(&request.selector, &base, request.rebase)?;
            locked.check_ids(&start, load::id_map(plan.spec.as_ref()).as_deref())?;
            locked.ensure_layers(&start.layers, &format!("container '{}'", plan.wish.id))?;
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
