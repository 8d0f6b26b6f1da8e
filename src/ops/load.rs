//! From a wish to a container that waits for `start`, on an entry of a ring or on a scratch upper.
//!
//! ```text
//!  Wish ──> plan: what is it made from ──> claim: ring and run are ours ──> mount and create ──> Live
//!                                              │ failure                       │ failure
//!                                              └── nothing was made            └── run released, ring as before
//! ```
//!
//! The overlay is mounted by this process in a mount namespace of its own, which the container inherits and the host
//! never sees: that works in the same way for every kernel, user namespace and length of chain.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use super::apart::{self, Upon};
use super::handover::{self, HandOver};
use super::id_map::id_map;
use super::request::{Create, Mode, RingRequest, choose, initial_keep, initial_limits};
use super::warm::wish::{self as clone, Wanted};
use super::{Place, base, fork, image, interval, memory, notify, volume, worker};
use crate::bundle::{Bundle, template};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{ContainerId, LayerId, RingName};
use crate::image::ImageSource;
use crate::image::process::{Overrides, process_config};
use crate::image::user::resolve_user;
use crate::image::{ImageConfig, process};
use crate::overlay::{Detached, Fate, PrivateNamespace, Stack, Upper};
use crate::ring::entry::Reason;
use crate::ring::{Base, Claim, Rebase, Ring};
use crate::runtime::{self, CreateRequest, Created, Stop};
use crate::store::{Run, Store, make_directory};
use crate::sys::lock::Lock;
use crate::sys::process::Identity;
use crate::sys::user_namespace::{is_initial, maps_group};

/// Below the state root, where creators attach root file systems, unseen by each other; no container is called so.
pub(super) const MOUNT_POINT: &str = "@rootfs";

/// What a container is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory with a config.json.
    Bundle(PathBuf),
    /// A directory that is its root file system, and is never written.
    Rootfs(PathBuf),
    /// An OCI image.
    Image(ImageSource),
}

/// A container that somebody wants.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Its id.
    pub id: ContainerId,
    /// What it is made from.
    pub source: Source,
    /// The ring it belongs to; if none, its annotations may name one.
    pub ring: Option<RingRequest>,
    /// The ring it belongs to if nothing else names one.
    pub default_ring: Option<RingRequest>,
    /// A container that goes on, and whose ring this one takes over if it belongs to the same.
    pub follows: Option<ContainerId>,
    /// What to run, for sources that are not bundles.
    pub process: Overrides,
    /// Whether it gets a terminal, for sources that are not bundles.
    pub terminal: bool,
    /// Whose network it has, for sources that are not bundles.
    pub network: Network,
    /// A datagram socket of the host's that its program finds by `NOTIFY_SOCKET`.
    pub notify: Option<PathBuf>,
    /// Whether this process stays and will seal its upper.
    pub supervised: Supervised,
}

/// Whose network a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// One of its own, with a loopback device only.
    Own,
    /// The host's: for services, which are reached under the host's addresses.
    Host,
}

/// Whether somebody waits for the end of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervised {
    /// The calling process does.
    Here,
    /// Whoever calls `delete` will.
    Elsewhere,
}

/// A container that was created.
#[derive(Debug)]
pub struct Live {
    /// What the runtime made.
    pub created: Created,
    /// What gives the ring back to the container that it was taken over from.
    pub handover: Option<HandOver>,
}

/// What the runtime keeps with a container so that its end finds its run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The store's directory.
    pub store: PathBuf,
    /// The run.
    pub run: LayerId,
    /// Its ring, if it has one.
    pub ring: Option<RingName>,
}

/// Creates a container. `adjust` puts the caller's terminal, pid file and the like into the request.
///
/// # Errors
/// What is wrong with the source, the ring, or the container; everything is then as it was before.
pub fn create(place: &Place, wish: Wish, adjust: impl FnOnce(&mut CreateRequest)) -> Result<Live> {
    let operation = format!("create container '{}'", wish.id);
    let mut plan = plan(place, wish).context(|| operation.clone())?;
    if plan.base.is_none() {
        let mut request = CreateRequest::new(plan.wish.id.clone(), plan.bundle, plan.spec.unwrap_or_default());
        adjust(&mut request);
        clone::note(plan.template.as_ref(), &mut request).context(|| operation.clone())?;
        return runtime::create(&place.root, request).map(|created| Live { created, handover: None });
    }
    check_mount_namespace(plan.spec.as_ref()).context(|| operation.clone())?;
    let handover = follow(place, &plan.wish).context(|| operation.clone())?;
    let created = claim_and_create(place, &mut plan, adjust);
    if let (Err(_), Some(handover)) = (&created, &handover) {
        handover::give_back(place, handover);
    }
    Ok(Live { created: created?, handover })
}

/// Frees the ring that is wished for, if the container before has it.
fn follow(place: &Place, wish: &Wish) -> Result<Option<HandOver>> {
    match (&wish.follows, &wish.ring) {
        (Some(old), Some(request)) => handover::prepare_for(place, old, &request.ring),
        (Some(_), None) | (None, _) => Ok(None),
    }
}

pub(super) fn claim_and_create(
    place: &Place,
    plan: &mut Plan,
    adjust: impl FnOnce(&mut CreateRequest),
) -> Result<Created> {
    let store = place.open_store()?;
    let operation = format!("create container '{}'", plan.wish.id);
    let mut run = claim(place, &store, plan).context(|| operation)?;
    plan.images = None;
    mount_and_create(place, &store, plan, &mut run, adjust).inspect_err(|_| {
        // Why it was not created is what is reported; a run that cannot be released is swept once its holder is dead.
        if let Err(stuck) = release(&store, &run) {
            tracing::warn!("release the run of container '{}': {stuck}", plan.wish.id);
        }
    })
}

/// A wish that was understood.
pub(super) struct Plan {
    pub wish: Wish,
    pub bundle: PathBuf,
    /// The bundle's specification; for other sources it depends on what is in the mounted root.
    pub spec: Option<Spec>,
    pub image: Option<ImageConfig>,
    /// What an overlay is to be put on; `None` if the container gets its root file system as it is.
    pub base: Option<Base>,
    /// What lies between the base and an upper that belongs to no ring.
    pub upon: Upon,
    /// What its program is to be a clone of.
    pub template: Option<Wanted>,
    /// Keeps the layers of its image until a run does.
    pub images: Option<Lock>,
}

impl Plan {
    pub(super) fn new(wish: Wish, bundle: PathBuf, base: Option<Base>) -> Self {
        Self { wish, bundle, spec: None, image: None, base, upon: Upon::Base, template: None, images: None }
    }
}

pub(super) fn plan(place: &Place, mut wish: Wish) -> Result<Plan> {
    let default_ring = wish.default_ring.take();
    match wish.source.clone() {
        Source::Bundle(directory) => {
            let mut bundle = Bundle::load(&directory)?;
            let annotations = bundle.spec.annotations().clone().unwrap_or_default();
            let template = clone::plan(place, &annotations, &mut bundle.spec)?;
            if wish.ring.is_none() {
                let environment = bundle.spec.process().as_ref().and_then(|process| process.env().clone());
                let environment = environment.unwrap_or_default();
                wish.ring = choose(&annotations, &environment, default_ring, &place.owner, &place.config.ring)?;
            }
            let base = wish.ring.is_some().then(|| base::of_directory(&bundle.rootfs())).transpose()?;
            let spec = override_process(bundle.spec, &wish);
            Ok(Plan { spec: Some(spec), template, ..Plan::new(wish, bundle.directory, base) })
        }
        Source::Rootfs(directory) => {
            wish.ring = wish.ring.or(default_ring);
            let base = base::of_directory(&directory)?;
            let bundle = base.directories.first().cloned().unwrap_or_default();
            Ok(Plan::new(wish, bundle, Some(base)))
        }
        Source::Image(source) => {
            wish.ring = wish.ring.or(default_ring);
            let store = place.open_store()?;
            let images = store.lock_images()?;
            let (base, config) = image::unpack(&store, &source, &place.config)?;
            let bundle = store.directory().to_owned();
            Ok(Plan { image: Some(config), images: Some(images), ..Plan::new(wish, bundle, Some(base)) })
        }
    }
}

/// What the caller says about a bundle's process goes before what the bundle says.
fn override_process(mut spec: Spec, wish: &Wish) -> Spec {
    let Overrides { command, env, workdir, user: _ } = &wish.process;
    let Some(process) = spec.process_mut() else { return spec };
    if !command.is_empty() {
        process.set_args(Some(command.clone()));
    }
    if !env.is_empty() {
        let mut all = process.env().clone().unwrap_or_default();
        all.extend(env.iter().cloned());
        process.set_env(Some(all));
    }
    if let Some(workdir) = workdir {
        process.set_cwd(workdir.into());
    }
    if wish.terminal {
        process.set_terminal(Some(true));
    }
    if let Some(socket) = &wish.notify {
        notify::bind(&mut spec, socket);
    }
    spec
}

/// Without a mount namespace of its own a container's overlay would be the host's.
pub(super) fn check_mount_namespace(spec: Option<&Spec>) -> Result<()> {
    let Some(spec) = spec else { return Ok(()) };
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    let own = namespaces.iter().any(|space| space.typ() == LinuxNamespaceType::Mount && space.path().is_none());
    if own {
        return Ok(());
    }
    Err(Error::new(Kind::Unsupported, "put it into a ring", "it has no new mount namespace of its own")
        .next("add {\"type\": \"mount\"} to linux.namespaces"))
}

fn claim(place: &Place, store: &Store, plan: &mut Plan) -> Result<Run> {
    let base = plan.base.take().unwrap_or_default();
    let mut mount_points = match &plan.spec {
        Some(spec) => mount_points(spec),
        None => mount_points(&template::run(Path::new("/"), &template::RunOptions::default())),
    };
    // The runtime makes it if it is not there.
    mount_points.extend(working_directory(plan));
    let holder = Identity::of(nix::unistd::getpid().as_raw())?;
    let request = match plan.wish.ring.clone() {
        None => return apart::scratch(place, store, plan, base, holder),
        Some(request) => match request.mode {
            Mode::Exclusive => request,
            Mode::Fork => fork::own_ring(store, plan, &base, &request)?,
            Mode::Readonly => {
                plan.upon = Upon::Entry(request);
                return apart::scratch(place, store, plan, base, holder);
            }
        },
    };
    let claim = Claim {
        container: plan.wish.id.clone(),
        state_root: place.root.path().to_owned(),
        base,
        id_map: id_map(plan.spec.as_ref()),
        mount_points,
        volumes: Vec::new(),
        revives: None,
        holder,
    };
    let claimed = claim_ring(place, store, (&request, plan), claim);
    claimed.inspect_err(|_| fork::discard_unused(store, &request.ring))
}

fn claim_ring(place: &Place, store: &Store, (request, plan): (&RingRequest, &Plan), mut claim: Claim) -> Result<Run> {
    let ring = open_ring(place, store, request)?;
    let mut locked = ring.lock()?;
    locked.settle("use")?;
    request.limit(&mut locked.state);
    let start = locked.find_start(&request.selector, &claim.base, request.rebase)?;
    locked.check_ids(&start, claim.id_map.as_deref())?;
    locked.ensure_layers(&start.layers, &format!("container '{}'", claim.container))?;
    let entry = start.entry.and_then(|seq| locked.state.entry(seq));
    claim.volumes = volume::plan(plan, request, entry)?;
    claim.revives = memory::wanted(&locked, request, &claim.base)?;
    // What appears there is the container's, not an engine's.
    claim.mount_points.retain(|point| claim.volumes.iter().all(|volume| volume.place != *point));
    let run = locked.claim(claim, start)?;
    // What a fork began with is packed elsewhere, or will be.
    if locked.state.entries.iter().any(|entry| entry.manifest.is_none() && entry.reason != Reason::Fork) {
        worker::start(place)?;
    }
    Ok(run)
}

fn open_ring(place: &Place, store: &Store, request: &RingRequest) -> Result<Ring> {
    match request.create {
        Create::Always => {
            let defaults = &place.config.ring;
            let (limits, keep) = (initial_limits(request, defaults), initial_keep(request, defaults));
            Ring::open_or_create(store, &request.ring, limits, keep)
        }
        Create::Never => Ring::open(store, &request.ring),
    }
}

fn release(store: &Store, run: &Run) -> Result<()> {
    match &run.record.ring {
        Some(ring) => {
            let mut locked = Ring::open(store, ring)?.lock()?;
            locked.release(run)?;
            locked.remove_unused()
        }
        None => run.remove(),
    }
}

fn mount_and_create(
    place: &Place,
    store: &Store,
    plan: &Plan,
    run: &mut Run,
    adjust: impl FnOnce(&mut CreateRequest),
) -> Result<Created> {
    let id = &plan.wish.id;
    let stack = Stack {
        lowers: run.record.lowers(store),
        upper: Some(Upper { directory: run.upper(), work: run.work(), fate: fate(run) }),
        class: run.record.class,
    };
    let volumes = volume::Prepared::make(store, run, fate(run))?;
    let overlay = Detached::overlay(&stack, &format!("container '{id}'"))?;
    let device = std::fs::metadata(overlay.path()).context(|| format!("look at the root of container '{id}'"))?.dev();
    // One directory serves all containers: what is attached there is seen by nobody but their creators.
    let mount_point = place.root.path().join(MOUNT_POINT);
    make_directory(&mount_point)?;
    let namespace = PrivateNamespace::enter(&mount_point)?;
    let created = overlay.attach(&mount_point).and_then(|()| {
        let mut request = request(store, plan, run, &mount_point)?;
        request.mounted.extend(volumes.mount()?);
        adjust(&mut request);
        clone::note(plan.template.as_ref(), &mut request)?;
        memory::bring_back(store, run, &mut request)?;
        runtime::create(&place.root, request)
    });
    let left = namespace.leave();
    let created = created.map_err(|error| memory::explain(run, error))?;
    let noted = left
        .and_then(|()| note_container(run, plan.wish.supervised, &created, device))
        .and_then(|()| interval::start(place, plan.wish.ring.as_ref(), (run, &created.cgroup)));
    match noted {
        Ok(()) => Ok(created),
        Err(error) => {
            runtime::stop(&place.root, id, Stop::Kill)?;
            runtime::remove(&place.root, id, Stop::Kill)?;
            Err(error)
        }
    }
}

/// A run that is in no ring leaves nothing.
fn fate(run: &Run) -> Fate {
    match run.record.ring {
        Some(_) => Fate::Kept,
        None => Fate::ThrownAway,
    }
}

/// From now on the container's own process answers for the run.
fn note_container(run: &mut Run, supervised: Supervised, created: &Created, device: u64) -> Result<()> {
    let own = std::mem::take(&mut run.record.holders);
    run.record.holders.push(created.init.clone());
    if supervised == Supervised::Here {
        run.record.holders.extend(own);
    }
    run.record.cgroups = created.cgroup.paths();
    run.record.device = Some(device);
    let namespace = format!("/proc/{}/ns/mnt", created.init.pid);
    // Only for naming who keeps it.
    run.record.mount_namespace = std::fs::metadata(namespace).ok().map(|metadata| metadata.ino());
    run.write()
}

fn request(store: &Store, plan: &Plan, run: &Run, root: &Path) -> Result<CreateRequest> {
    let wish = &plan.wish;
    let mut spec = match &plan.spec {
        Some(spec) => spec.clone(),
        None => template::run(root, &run_options(plan, root)?),
    };
    if let (Some(socket), None) = (&wish.notify, &plan.spec) {
        notify::bind(&mut spec, socket);
    }
    let mut spec_root = spec.root().clone().unwrap_or_default();
    spec_root.set_path(root.to_owned());
    spec.set_root(Some(spec_root));
    let mut request = CreateRequest::new(wish.id.clone(), plan.bundle.clone(), spec);
    let attachment =
        Attachment { store: store.directory().to_owned(), run: run.id().clone(), ring: run.record.ring.clone() };
    request.attachment = Some(serde_json::to_value(attachment).context(|| "note the container's run")?);
    Ok(request)
}

/// The process of a container without a bundle: what the image says, and over it what the caller says.
fn run_options(plan: &Plan, root: &Path) -> Result<template::RunOptions> {
    let wish = &plan.wish;
    let plain = ImageConfig::empty();
    let process = process_config(plan.image.as_ref().unwrap_or(&plain), &wish.process).map_err(|error| {
        if plan.image.is_none() && wish.process.command.is_empty() {
            return Error::new(Kind::Usage, "decide what to run", "no command was given").next("give one after '--'");
        }
        error
    })?;
    let process::Process { args, mut env, cwd, user } = process;
    let user = resolve_user(root, &user)?;
    if let Some(home) = user.home.filter(|_| !env.iter().any(|entry| entry.starts_with("HOME="))) {
        env.push(format!("HOME={home}"));
    }
    Ok(template::RunOptions {
        args,
        env,
        cwd: cwd.into(),
        uid: user.uid,
        gid: user.gid,
        additional_gids: user.additional_gids,
        terminal: wish.terminal,
        hostname: wish.id.to_string(),
        network: match wish.network {
            Network::Own => template::Network::Own,
            Network::Host if is_initial() => template::Network::Host,
            Network::Host => template::Network::Foreign,
        },
        no_tty_group: !maps_group(template::TTY_GROUP),
    })
}

fn working_directory(plan: &Plan) -> Option<PathBuf> {
    let image = || plan.image.as_ref().map(|image| image.config.working_dir.clone());
    match &plan.spec {
        Some(spec) => spec.process().as_ref().map(|process| process.cwd().clone()),
        None => plan.wish.process.workdir.clone().or_else(image).map(PathBuf::from),
    }
}

/// Where the runtime and the engine put something, as opposed to the container's program.
fn mount_points(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().clone().unwrap_or_default();
    mounts.into_iter().map(|mount| mount.destination().clone()).filter(|path| path != Path::new("/")).collect()
}

/// The rebase that a flag asks for.
#[must_use]
pub fn rebase(allowed: bool) -> Rebase {
    if allowed { Rebase::Allowed } else { Rebase::Refused }
}
