//! Taking a snapshot: a container that lives only until it is saved.

use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use super::ready::Watch;
use super::record::{Record, Snapshot, origin};
use super::{check, settle};
use crate::bundle::bind::show;
use crate::cgroup::Manager;
use crate::criu::{Afterwards, Allowed, CgroupMode, next_step};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::image::process::Overrides;
use crate::ops::apart::{self, Apart};
use crate::ops::load::{Network, Supervised, Wish};
use crate::ops::warm::FUNCTION_INSIDE;
use crate::ops::{Place, save};
use crate::runtime::{self, CheckpointRequest, CreateRequest, Created, Images, Starter, Stdio};
use crate::service::ready::notify::Socket;
use crate::store::{Run, Store};
use crate::sys::fs::{by_descriptor, open_path};
use crate::sys::namespace;
use crate::template::definition::{Definition, MARK, Source};

const NOTIFY: &str = "notify";
const VARIABLE: &str = "NOTIFY_SOCKET=";
/// Where criu's log goes if it fails, beside the directory that was not made.
const LOG: &str = "take.log";

/// What a snapshot is taken of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The container that lives until it is taken.
    pub id: ContainerId,
    /// What that is made from, and every clone.
    pub source: Source,
    /// What it runs.
    pub process: Overrides,
    /// How long that may take to be ready.
    pub ready_timeout: Duration,
    /// Who makes the cgroup.
    pub cgroups: Manager,
    /// What says of the container, and of clones, that they are a template's: the value of
    /// [`MARK`].
    pub mark: Option<String>,
}

impl Recipe {
    /// That of a template, whose definition [`super::admit`] has let through.
    #[must_use]
    pub fn new(definition: &Definition, id: ContainerId, cgroups: Manager) -> Self {
        Self {
            id,
            source: definition.source.clone(),
            process: Overrides {
                command: definition.command.clone(),
                env: definition.env.clone(),
                workdir: definition.workdir.clone(),
                user: definition.user.clone(),
            },
            ready_timeout: definition.ready_timeout(),
            cgroups,
            mark: None,
        }
    }
}

/// Takes a snapshot into a directory that is not there yet. Its container is gone when this returns.
///
/// To be called in a process that does one thing at a time and has one thread.
///
/// # Errors
/// Those of [`check`] before anything is started; [`Kind::State`] if the program does not become ready; what criu says: its
/// log is then in `take.log` beside the directory. Nothing else is left.
pub fn take(place: &Place, recipe: &Recipe, directory: &Path) -> Result<Snapshot> {
    check()?;
    let operation = || format!("take a snapshot of container '{}'", recipe.id);
    if directory.exists() {
        return Err(Error::new(Kind::Exists, operation(), format!("{} is there already", quote(directory))));
    }
    let stage = Stage::make(directory).context(operation)?;
    let taken = fill(place, recipe, &stage.0).context(operation);
    if taken.is_err() {
        discard(place, &recipe.id);
    }
    taken?;
    stage.publish(directory).context(operation)?;
    Snapshot::open(directory)
}

/// The directory while it is filled; goes with this value.
struct Stage(PathBuf);

impl Stage {
    fn make(directory: &Path) -> Result<Self> {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = directory.with_file_name(format!(".{name}"));
        remove(&path)?;
        let make = |path: &Path| {
            DirBuilder::new().mode(0o700).create(path).context(|| format!("make directory {}", quote(path)))
        };
        make(&path)?;
        let stage = Self(path);
        make(&stage.0.join("images"))?;
        let function = stage.0.join("function");
        make(&function)?;
        // What clones see of it, as any user.
        fs::set_permissions(&function, std::os::unix::fs::PermissionsExt::from_mode(0o555))
            .context(|| format!("open {} to all", quote(&function)))?;
        Ok(stage)
    }

    fn publish(self, directory: &Path) -> Result<()> {
        fs::rename(&self.0, directory).context(|| format!("rename {}", quote(&self.0)))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!("{error}");
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", quote(path))),
    }
}

/// After a failure: the first error is the one that is told.
fn discard(place: &Place, id: &ContainerId) {
    match save::delete(place, id, true, None) {
        Err(error) if error.kind() != Kind::NotFound => {
            tracing::warn!("delete container '{id}' after a failure: {error}");
        }
        Ok(_) | Err(_) => {}
    }
}

fn fill(place: &Place, recipe: &Recipe, stage: &Path) -> Result<()> {
    let (streams, watch, input) = streams(stage)?;
    let mut spec = Spec::default();
    let created = apart::create_apart(place, wish(recipe, stage)?, Apart::default(), |request| {
        prepare(&mut request.spec, &stage.join("function"));
        mark(&mut request.spec, recipe);
        spec = request.spec.clone();
        adjust(request, recipe, streams);
    })?;
    refuse(&spec)?;
    let process = created.init.open()?.ok_or_else(|| {
        Error::new(Kind::State, format!("start container '{}'", recipe.id), "its first process has ended")
    })?;
    created.start(&place.root, &recipe.id)?;
    watch.wait(&process, recipe.ready_timeout)?;
    settle::settle(&place.root, &recipe.id)?;
    if let Some(inside) = strip(&mut spec, &stage.join(NOTIFY)) {
        // Its other end is not saved.
        let unmount = || umount2(&inside, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        namespace::visit(&process, CloneFlags::CLONE_NEWNS, unmount).context(|| "take the notify socket away")?;
    }
    checkpoint(place, recipe, stage)?;
    // Whoever reads it from now on is a clone.
    drop(input);
    note(place, recipe, stage, &spec, created)?;
    let socket = stage.join(NOTIFY);
    fs::remove_file(&socket).context(|| format!("remove {}", quote(&socket)))?;
    save::delete(place, &recipe.id, true, None).map(drop)
}

/// The far ends for the program, and the near ends: each of its standard streams is a pipe of its own.
fn streams(stage: &Path) -> Result<(Stdio, Watch, OwnedFd)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe");
    let ((stdin, input), (output, stdout), (errors, stderr)) = (pipe()?, pipe()?, pipe()?);
    for stream in [&output, &errors] {
        fcntl_setfl(stream, OFlags::NONBLOCK).context(|| "make a pipe")?;
    }
    // Its path may be longer than an address: the directory is named by its descriptor.
    let directory = open_path(stage)?;
    let notify = Socket::bind(&by_descriptor(&directory).join(NOTIFY))?;
    Ok((Stdio::Files { stdin, stdout, stderr }, Watch { notify, output: [output, errors] }, input))
}

fn wish(recipe: &Recipe, stage: &Path) -> Result<Wish> {
    Ok(Wish {
        id: recipe.id.clone(),
        source: origin(&recipe.source)?,
        ring: None,
        default_ring: None,
        follows: None,
        process: recipe.process.clone(),
        terminal: false,
        network: Network::Own,
        notify: Some(stage.join(NOTIFY)),
        supervised: Supervised::Here,
    })
}

fn adjust(request: &mut CreateRequest, recipe: &Recipe, streams: Stdio) {
    request.cgroups = recipe.cgroups;
    request.starter = Starter::Creator;
    request.stdio = streams;
}

fn mark(spec: &mut Spec, recipe: &Recipe) {
    let Some(mark) = &recipe.mark else { return };
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.insert(MARK.to_owned(), mark.clone());
    spec.set_annotations(Some(annotations));
}

/// Makes the specification one that many containers can have: nobody sits in front of it, it writes nothing, and nothing
/// in it is of one container alone.
fn prepare(spec: &mut Spec, function: &Path) {
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(true));
    }
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(false));
    }
    // What shows a container its cgroups is bound to those that it had.
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(None);
        let spaces = linux.namespaces().clone().unwrap_or_default().into_iter();
        linux.set_namespaces(Some(spaces.filter(|space| space.typ() != LinuxNamespaceType::Cgroup).collect()));
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let cgroups = |mount: &Mount| matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"));
    mounts.retain(|mount| mount.destination() != FUNCTION_INSIDE && !cgroups(mount));
    spec.set_mounts(Some(mounts));
    show(spec, function, FUNCTION_INSIDE, &[]);
}

/// What criu cannot bring back more than once.
fn refuse(spec: &Spec) -> Result<()> {
    let spaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut spaces = spaces.into_iter().flatten();
    let own = |kind| spaces.clone().any(|space| space.typ() == kind && space.path().is_none());
    let cause = if spaces.clone().any(|space| space.typ() == LinuxNamespaceType::User) {
        "it has a user namespace"
    } else if !own(LinuxNamespaceType::Pid) {
        "it has no pid namespace of its own, in which its processes keep their numbers"
    } else if spaces.any(|space| space.path().is_some()) {
        "it joins a namespace that is there already"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Unsupported, "look at its specification", cause)
        .next("change linux.namespaces in config.json"))
}

/// Takes the notify socket out of a specification. Where it is inside.
fn strip(spec: &mut Spec, socket: &Path) -> Option<PathBuf> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let index = mounts.iter().position(|mount| mount.source().as_deref() == Some(socket))?;
    let mount = mounts.remove(index);
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.retain(|entry| !entry.starts_with(VARIABLE));
        process.set_env(Some(env));
    }
    Some(mount.destination().clone())
}

fn checkpoint(place: &Place, recipe: &Recipe, stage: &Path) -> Result<()> {
    let images = stage.join("images");
    let request = CheckpointRequest {
        images: Images {
            path: images.clone(),
            work: None,
            allowed: Allowed::default(),
            cgroups: CgroupMode::Ignore,
            empty_network: false,
            deduplicate: false,
        },
        parent: None,
        afterwards: Afterwards::Killed,
        page_server: None,
        lazy_pages: None,
    };
    runtime::checkpoint(&place.root, &recipe.id, &request).map_err(|error| {
        let log = stage.with_file_name(LOG);
        match fs::copy(images.join("dump.log"), &log) {
            Ok(_) => error.next(next_step(&log)),
            Err(_) => error,
        }
    })
}

/// Writes down what clones need to know.
fn note(place: &Place, recipe: &Recipe, stage: &Path, spec: &Spec, created: Created) -> Result<()> {
    drop(created);
    let operation = || format!("find the root file system of container '{}'", recipe.id);
    let lost = || Error::new(Kind::State, operation(), "somebody has deleted it");
    let attachment = save::attachment(place, &recipe.id)?.ok_or_else(lost)?;
    let store = Store::open_existing(&attachment.store)?.ok_or_else(lost)?;
    let run = Run::load(&store, &attachment.run)?.ok_or_else(lost)?;
    Record::new(recipe.id.clone(), recipe.source.clone(), run.record.base)?.write(stage, spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(namespaces: &serde_json::Value) -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.2.0",
            "root": {"path": "r"},
            "process": {"terminal": true, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=1", "NOTIFY_SOCKET=/n"]},
            "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
                {"destination": "/function", "type": "tmpfs", "source": "x"},
                {"destination": "/n", "type": "bind", "source": "/stage/notify"}],
            "linux": {"cgroupsPath": "/one", "namespaces": namespaces}}))
        .unwrap()
    }

    #[test]
    fn a_template_writes_nothing_and_has_nothing_of_one_container_alone() {
        let mut spec = spec(&json!([{"type": "cgroup"}]));
        prepare(&mut spec, Path::new("/stage/function"));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        assert_eq!(spec.process().as_ref().unwrap().terminal(), Some(false));
        let linux = spec.linux().clone().unwrap();
        assert!(linux.cgroups_path().is_none() && linux.namespaces().clone().unwrap().is_empty());
        let mounts = spec.mounts().clone().unwrap();
        assert_eq!(mounts.len(), 2);
        let functions: Vec<_> = mounts.iter().filter(|mount| mount.destination() == FUNCTION_INSIDE).collect();
        assert!(functions.len() == 1 && functions[0].source().as_deref() == Some(Path::new("/stage/function")));
        assert_eq!(strip(&mut spec, Path::new("/stage/notify")).as_deref(), Some(Path::new("/n")));
        assert_eq!(spec.process().as_ref().unwrap().env().clone().unwrap(), ["A=1"]);
        assert_eq!(strip(&mut spec, Path::new("/stage/notify")), None);
    }

    #[test]
    fn what_cannot_come_back_twice_is_refused() {
        let cause = |namespaces| refuse(&spec(&namespaces)).map_err(|error| error.to_string());
        cause(json!([{"type": "pid"}, {"type": "mount"}, {"type": "network"}])).unwrap();
        assert!(cause(json!([{"type": "mount"}])).unwrap_err().contains("pid namespace"));
        assert!(cause(json!([{"type": "pid"}, {"type": "user"}])).unwrap_err().contains("user namespace"));
        let joined = json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}]);
        assert!(cause(joined).unwrap_err().contains("joins a namespace"));
    }
}
