//! A clone: a container whose processes are restored instead of started.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use oci_spec::runtime::{LinuxMemory, LinuxNamespaceType, LinuxResources, Spec};

use super::record::{Snapshot, origin};
use crate::cgroup::Manager;
use crate::criu::{Allowed, CgroupMode, next_step};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{ContainerId, Name};
use crate::image::process::Overrides;
use crate::metrics;
use crate::ops::apart::{self, Apart};
use crate::ops::load::{Network, Supervised, Wish};
use crate::ops::warm::FUNCTION_INSIDE;
use crate::ops::{Place, save, tally};
use crate::overlay::Detached;
use crate::runtime::{Created, Images, RestoreRequest, Starter, Stdio, Tree};
use crate::store::Store;
use crate::sys::namespace;

/// criu's log of a restore.
const LOG: &str = "restore.log";
/// The longest name of a machine.
const HOST_NAME_MAX: usize = 64;

/// A clone that somebody wants.
#[derive(Debug)]
pub struct Clone {
    /// Whose.
    pub template: Name,
    /// Its id.
    pub id: ContainerId,
    /// Its standard streams: pipes and character devices, see [`super::Streams`].
    pub stdio: Stdio,
    /// What it finds at /function: a mount that is attached nowhere.
    pub function: Option<OwnedFd>,
    /// The most memory, in bytes.
    pub memory: Option<u64>,
    /// Who makes the cgroup.
    pub cgroups: Manager,
    /// Whether the calling process stays and deletes it.
    pub supervised: Supervised,
    /// The signal mask for hooks and criu, for callers that block signals.
    pub mask: Option<SigSet>,
}

/// Restores a snapshot as a container, whose processes stand still until [`Created::start`]; they are children of the calling
/// process, which has one thread.
///
/// # Errors
/// [`Kind::Exists`] if the id is taken, [`Kind::State`] if the root file system is another one by now, what criu says.
pub fn clone(place: &Place, snapshot: &Snapshot, wanted: Clone) -> Result<Created> {
    let (template, began) = (wanted.template.clone(), Instant::now());
    let created = restore(place, snapshot, wanted);
    metrics::clone_restored(template.as_str(), metrics::Outcome::of(&created), began.elapsed());
    if let Ok(Some(store)) = Store::open_existing(&place.store) {
        tally::save(&store);
    }
    created
}

fn restore(place: &Place, snapshot: &Snapshot, wanted: Clone) -> Result<Created> {
    let id = wanted.id.clone();
    let operation = || format!("clone container '{id}'");
    let spec = plan(snapshot, &wanted).context(operation)?;
    let hostname = spec.hostname().clone();
    let own_name = own_host_name(&spec);
    let work = snapshot.directory().join("clones").join(id.as_str());
    let wish = wish(snapshot, &wanted).context(operation)?;
    let apart = Apart { spec: Some(spec), base: Some(snapshot.record().base.clone()), ..Apart::default() };
    let function =
        wanted.function.map(|tree| Tree { destination: FUNCTION_INSIDE.into(), mount: Detached::from(tree) });
    let mut request = restore_request(snapshot, &work, wanted.mask);
    request.trees.extend(function);
    let made = apart::create_apart(place, wish, apart, |made| {
        made.cgroups = wanted.cgroups;
        made.mask = wanted.mask;
        made.stdio = wanted.stdio;
        made.restore = Some(request);
        made.starter = Starter::Creator;
    });
    let created = made.map_err(|error| keep_log(snapshot, &work, error));
    clear(&work);
    let created = created?;
    if let Some(name) = hostname.filter(|_| own_name)
        && let Err(error) = rename_host(&created, &name)
    {
        if let Err(stuck) = save::delete(place, &id, true, None) {
            tracing::warn!("delete container '{id}' after a failure: {stuck}");
        }
        return Err(error.during(operation()));
    }
    Ok(created)
}

fn wish(snapshot: &Snapshot, wanted: &Clone) -> Result<Wish> {
    Ok(Wish {
        id: wanted.id.clone(),
        source: origin(&snapshot.record().source)?,
        ring: None,
        default_ring: None,
        follows: None,
        process: Overrides::default(),
        terminal: false,
        network: Network::Own,
        notify: None,
        supervised: wanted.supervised,
    })
}

fn restore_request(snapshot: &Snapshot, work: &Path, mask: Option<SigSet>) -> RestoreRequest {
    RestoreRequest {
        images: Images {
            path: snapshot.images(),
            work: Some(work.to_owned()),
            allowed: Allowed::default(),
            cgroups: CgroupMode::Ignore,
            empty_network: false,
            deduplicate: false,
        },
        trees: Vec::new(),
        lazy_pages: false,
        lsm_profile: None,
        lsm_mount_context: None,
        mask,
    }
}

/// What the specification of the saved container becomes for a clone: its root is written, /function and limits are its own,
/// and where the saved one was called as the container was, so is the clone.
fn plan(snapshot: &Snapshot, wanted: &Clone) -> Result<Spec> {
    let mut spec = snapshot.spec()?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in mounts.iter_mut().filter(|mount| mount.destination() == FUNCTION_INSIDE) {
        mount.set_source(Some(snapshot.empty_function()));
    }
    spec.set_mounts(Some(mounts));
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(false));
    }
    if spec.hostname().as_deref() == Some(snapshot.record().container.as_str()) {
        spec.set_hostname(Some(wanted.id.to_string()));
    }
    if let Some(bytes) = wanted.memory {
        limit_memory(&mut spec, bytes);
    }
    Ok(spec)
}

fn limit_memory(spec: &mut Spec, bytes: u64) {
    let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
    let Some(linux) = spec.linux_mut() else { return };
    let mut resources: LinuxResources = linux.resources().clone().unwrap_or_default();
    let mut memory: LinuxMemory = (*resources.memory()).unwrap_or_default();
    memory.set_limit(Some(limit));
    resources.set_memory(Some(memory));
    linux.set_resources(Some(resources));
}

fn own_host_name(spec: &Spec) -> bool {
    let spaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    spaces.into_iter().flatten().any(|space| space.typ() == LinuxNamespaceType::Uts)
}

fn rename_host(created: &Created, name: &str) -> Result<()> {
    let operation = || "name the host inside";
    let process =
        created.init.open()?.ok_or_else(|| Error::new(Kind::State, operation(), "its first process has ended"))?;
    let name = name.get(..HOST_NAME_MAX).unwrap_or(name);
    namespace::visit(&process, CloneFlags::CLONE_NEWUTS, || nix::unistd::sethostname(name)).context(operation)
}

/// Saves criu's log of a restore that failed from the clean-up.
fn keep_log(snapshot: &Snapshot, work: &Path, error: Error) -> Error {
    let log = snapshot.directory().join(LOG);
    match fs::rename(work.join(LOG), &log) {
        Ok(()) => error.next(next_step(&log)),
        Err(_) => error,
    }
}

fn clear(work: &Path) {
    match fs::remove_dir_all(work) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("remove {}: {error}", quote(work));
        }
        Ok(()) | Err(_) => {}
    }
}
