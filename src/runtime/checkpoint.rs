//! Checkpoint and restore: the processes of a container as files, and back.
//!
//! criu does both. What it is told about a container's outer world is decided here: which mounts come from outside, to
//! which cgroups the processes belong, and what their standard streams were. That is noted beside the images in
//! `descriptors.json`, as runc does, so that a restore can put the streams of its own caller in their place.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::SigSet;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Mount, Spec};

use crate::cgroup::{Cgroup, Manager};
use crate::criu::{self, Afterwards, Allowed, CgroupMode, Dump, PageServer, Restore};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::overlay::{Detached, PrivateNamespace};
use crate::rootfs;
use crate::runtime::record::{self, Record};
use crate::runtime::{Hold, StateRoot, Status, Stdio, hook, state};
use crate::sys::clone::Passed;
use crate::sys::fs::read_capped;
use crate::sys::process::Process;
use crate::sys::signal::Signal;

/// Where hosts mount cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";
const DESCRIPTORS: &str = "descriptors.json";
/// Three names of at most a path's length.
const DESCRIPTORS_MAX: u64 = 64 << 10;

/// Where images are, and what holds for a checkpoint as for a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// The images' directory; absolute.
    pub path: PathBuf,
    /// Where criu's log goes, if not there; absolute.
    pub work: Option<PathBuf>,
    /// What the processes may hold on to outside.
    pub allowed: Allowed,
    /// What is done with cgroups.
    pub cgroups: CgroupMode,
    /// The network namespace comes back empty.
    pub empty_network: bool,
    /// Pages are kept once only.
    pub deduplicate: bool,
}

impl Images {
    fn work(&self) -> &Path {
        self.work.as_deref().unwrap_or(&self.path)
    }

    /// Makes the directories that are missing; memory may hold secrets.
    fn make(&self) -> Result<()> {
        for directory in [&*self.path, self.work()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .context(|| format!("make directory {}", quote(directory)))?;
        }
        Ok(())
    }
}

/// A container that is to be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// Where to.
    pub images: Images,
    /// The images of the memory-only dump before, relative to the new ones.
    pub parent: Option<PathBuf>,
    /// What becomes of its processes.
    pub afterwards: Afterwards,
    /// Memory goes there instead.
    pub page_server: Option<PageServer>,
    /// Memory stays until it is asked for; the descriptor that is told, or -1.
    pub lazy_pages: Option<i32>,
}

/// What is at the place of a bind mount instead of its source.
#[derive(Debug)]
pub struct Tree {
    /// Where, in the container.
    pub destination: PathBuf,
    /// What.
    pub mount: Detached,
}

/// What a container is restored from, instead of being started.
#[derive(Debug)]
pub struct RestoreRequest {
    /// Where from.
    pub images: Images,
    /// Mounts that have no path.
    pub trees: Vec<Tree>,
    /// Another daemon gives memory when it is asked for.
    pub lazy_pages: bool,
    /// `TYPE:NAME` of the security profile that takes the place of the saved one.
    pub lsm_profile: Option<String>,
    /// The security context of mounts.
    pub lsm_mount_context: Option<String>,
    /// The signal mask of criu and hooks; the caller's own if none. For callers that block signals before.
    pub mask: Option<SigSet>,
}

/// Saves a container's processes. With [`Afterwards::Killed`] it is stopped afterwards.
///
/// # Errors
/// [`Kind::State`] with the words "container not running" if there is nothing to save; those of criu.
pub fn checkpoint(root: &StateRoot, id: &ContainerId, request: &CheckpointRequest) -> Result<()> {
    let operation = || format!("checkpoint container '{id}'");
    let _lock = record::lock(root, id)?;
    let record = Record::load(root, id)?;
    match state::status(&record)? {
        Status::Running | Status::Paused => {}
        status @ (Status::Creating | Status::Created | Status::Stopped) => {
            return Err(Error::new(Kind::State, operation(), format!("container not running: it is {status}")));
        }
    }
    let spec = record.spec()?;
    refuse(&record, &spec).and_then(|()| save((&record, &spec), request, None)).context(operation)
}

fn save((record, spec): (&Record, &Spec), request: &CheckpointRequest, kept: Option<BorrowedFd<'_>>) -> Result<()> {
    request.images.make()?;
    let pid = record.init()?.pid;
    let dump = plan_dump(record, spec, request, pid);
    note_descriptors(pid, &request.images.path)?;
    criu::dump(&dump, kept)
}

impl Hold {
    /// Makes sure that the container's processes can be saved, and come back in another container on this machine, as far as
    /// its specification tells; and says which of its mounts come from outside.
    ///
    /// # Errors
    /// [`Kind::Unsupported`], with what cannot be taken along.
    pub fn check_checkpoint(&self) -> Result<Vec<PathBuf>> {
        criu::check()?;
        let record = self.record()?;
        let spec = record.spec()?;
        refuse(&record, &spec)?;
        refuse_namespaces(&spec)?;
        refuse_streams(record.init()?.pid)?;
        Ok(outside(&spec))
    }

    /// Saves the processes of the container, which go on afterwards as they did before: if they stood still, so they do
    /// again. criu has the descriptor open until it is done, also if we are killed.
    ///
    /// # Errors
    /// As [`checkpoint`].
    pub fn checkpoint(&self, request: &CheckpointRequest, kept: BorrowedFd<'_>) -> Result<()> {
        let record = self.record()?;
        let spec = record.spec()?;
        save((&record, &spec), request, Some(kept)).context(|| format!("checkpoint container '{}'", record.id))
    }
}

/// Where a container has mounts that come from outside.
#[must_use]
pub fn outside(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().iter().flatten().filter(|mount| !matches!(View::of(mount), View::Own));
    mounts.map(|mount| mount.destination().clone()).collect()
}

/// What belongs to others cannot be made anew for another container.
fn refuse_namespaces(spec: &Spec) -> Result<()> {
    let spaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut spaces = spaces.into_iter().flatten();
    let own_pids = |space: &LinuxNamespace| space.typ() == LinuxNamespaceType::Pid && space.path().is_none();
    let cause = if spaces.clone().any(|space| space.typ() == LinuxNamespaceType::User) {
        "it has a user namespace"
    } else if !spaces.clone().any(own_pids) {
        "it has no pid namespace of its own, in which its processes keep their numbers"
    } else if spaces.any(|space| space.path().is_some()) {
        "it joins a namespace that is there already"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Unsupported, "save its processes", cause).next("see linux.namespaces in its config.json"))
}

/// The terminal of whoever began the container, for one.
fn refuse_streams(pid: i32) -> Result<()> {
    let terminal =
        stream_names(pid).into_iter().find(|name| name.starts_with("/dev/pts/") || name.starts_with("/dev/tty"));
    let Some(terminal) = terminal else { return Ok(()) };
    let cause = format!("a standard stream of its is '{terminal}', a terminal outside of the container");
    Err(Error::new(Kind::Unsupported, "save its processes", cause).next("run it with pipes or /dev/null instead"))
}

/// What cannot be taken along, told before criu tells it in its own words.
fn refuse(record: &Record, spec: &Spec) -> Result<()> {
    if record.program.is_some() {
        let cause = "it was started from a template, and its first process is regen's own";
        return Err(Error::new(Kind::Unsupported, "save its processes", cause).next("run it without the template"));
    }
    let terminal = spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal).unwrap_or(false);
    if terminal {
        return Err(Error::new(Kind::Unsupported, "save its terminal", "its other end is outside of the container")
            .next("run it without a terminal ('terminal': false)"));
    }
    Ok(())
}

fn plan_dump(record: &Record, spec: &Spec, request: &CheckpointRequest, pid: i32) -> Dump {
    let CheckpointRequest { images, parent, afterwards, page_server, lazy_pages } = request.clone();
    let freezer = match &record.cgroup.manager {
        Manager::Disabled => None,
        Manager::Cgroupfs | Manager::Systemd => record.cgroup.directory("freezer").map(Path::to_owned),
    };
    Dump {
        pid,
        work: images.work().to_owned(),
        images: images.path,
        parent,
        afterwards,
        allowed: images.allowed,
        cgroups: images.cgroups,
        freezer,
        empty_network: images.empty_network,
        deduplicate: images.deduplicate,
        external_mounts: external_mounts(spec, &record.bundle, &record.cgroup)
            .into_iter()
            .map(|(point, _)| point)
            .collect(),
        page_server,
        lazy_pages,
    }
}

/// The mounts whose content is the host's: where, and what.
fn external_mounts(spec: &Spec, bundle: &Path, cgroup: &Cgroup) -> Vec<(PathBuf, PathBuf)> {
    let mounts = spec.mounts().iter().flatten();
    let source = |mount: &Mount| match View::of(mount) {
        View::Bind => mount.source().as_ref().map(|source| bundle.join(source)),
        View::Cgroups => shown_cgroup(spec, cgroup),
        View::Own => None,
    };
    mounts.filter_map(|mount| source(mount).map(|source| (mount.destination().clone(), source))).collect()
}

/// What a mount shows.
enum View {
    /// Something of the host's.
    Bind,
    /// The container's cgroups.
    Cgroups,
    /// What only the container has.
    Own,
}

impl View {
    fn of(mount: &Mount) -> Self {
        let kind = mount.typ().as_deref();
        let option = |word: &String| word == "bind" || word == "rbind";
        if kind == Some("bind") || mount.options().iter().flatten().any(option) {
            Self::Bind
        } else if matches!(kind, Some("cgroup" | "cgroup2")) {
            Self::Cgroups
        } else {
            Self::Own
        }
    }
}

/// The directory of the host's that is bound where a container sees its cgroups, on version 2.
fn shown_cgroup(spec: &Spec, cgroup: &Cgroup) -> Option<PathBuf> {
    let own = match &cgroup.directories[..] {
        [] => None,
        [_] => Some(cgroup.unified()?),
        [_, _, ..] => return None,
    };
    let spaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let apart = spaces.into_iter().flatten().any(|space| space.typ() == LinuxNamespaceType::Cgroup);
    Some(own.filter(|_| apart).unwrap_or(Path::new(CGROUPS)).to_owned())
}

/// Writes down what the standard streams are, as the kernel names them: `pipe:[123]`.
fn note_descriptors(pid: i32, images: &Path) -> Result<()> {
    let path = images.join(DESCRIPTORS);
    let bytes = serde_json::to_vec(&stream_names(pid)).context(|| "name its standard streams")?;
    fs::write(&path, bytes).context(|| format!("write {}", quote(path)))
}

fn stream_names(pid: i32) -> [String; 3] {
    [0, 1, 2].map(|number| {
        let link = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap_or_default();
        link.to_string_lossy().into_owned()
    })
}

/// Streams of the saved processes that the caller's own take the place of: pipes, whose other ends are not saved.
fn inherited(images: &Path) -> Result<Vec<(i32, String)>> {
    let path = images.join(DESCRIPTORS);
    let operation = || format!("read {}", quote(&path));
    let bytes = read_capped(&path, DESCRIPTORS_MAX)
        .map_err(|error| error.next("name the directory that a checkpoint was written to with --image-path"))?;
    let names: Vec<String> = serde_json::from_slice(&bytes).context(operation)?;
    let pipes = (0_i32..3).zip(names).filter(|(_, name)| name.starts_with("pipe:["));
    Ok(pipes.collect())
}

/// What the caller gave for the standard streams, if anything, as criu gets it.
fn pass(given: &Stdio) -> Result<Vec<Passed>> {
    match given {
        Stdio::Inherit | Stdio::Pty => Ok(Vec::new()),
        Stdio::Files { stdin, stdout, stderr } => [stdin, stdout, stderr].into_iter().map(Passed::new).collect(),
    }
}

/// Brings the processes back, stopped, into the cgroups that were made for them. The root file system is on the path
/// of the record. Gives the first process.
pub(super) fn revive(
    record: &mut Record,
    spec: &Spec,
    directory: &Path,
    (mut request, stdio): (RestoreRequest, &Stdio),
) -> Result<Process> {
    let trees = std::mem::take(&mut request.trees);
    let images = &request.images;
    let passed = pass(stdio)?;
    let number = |stream: i32| usize::try_from(stream).ok().and_then(|index| passed.get(index)).map(Passed::number);
    let inherited = inherited(&images.path)?.into_iter();
    let inherited = inherited.map(|(stream, name)| (number(stream).unwrap_or(stream), name)).collect();
    images.make()?;
    rootfs::make_places(&record.rootfs, spec, &record.bundle)?;
    // criu wants a mount at the root, which nobody else has to see.
    let point = make_point(directory, "root")?;
    let namespace = PrivateNamespace::enter(&point)?;
    let attached = Detached::copy(&record.rootfs).and_then(|root| root.attach(&point));
    let restored = attached.and_then(|()| attach(trees, directory)).and_then(|sources| {
        let by_criu = record.cgroup.manager == Manager::Cgroupfs && images.cgroups != CgroupMode::Ignore;
        criu::restore(&Restore {
            images: images.path.clone(),
            work: images.work().to_owned(),
            root: point.clone(),
            allowed: images.allowed,
            cgroups: if by_criu { images.cgroups } else { CgroupMode::Ignore },
            cgroup_roots: if by_criu { cgroup_roots(&record.cgroup) } else { Vec::new() },
            empty_network: images.empty_network,
            deduplicate: images.deduplicate,
            external_mounts: replace(external_mounts(spec, &record.bundle, &record.cgroup), &sources),
            inherited,
            lazy_pages: request.lazy_pages,
            lsm_profile: request.lsm_profile.clone(),
            lsm_mount_context: request.lsm_mount_context.clone(),
            mask: request.mask,
        })
    });
    let left = namespace.leave();
    let pid = restored?;
    left?;
    let process = Process::open(pid)?
        .ok_or_else(|| Error::new(Kind::System, "open its first process", "it ended while it was restored"))?;
    let linux = spec.linux().as_ref();
    record.cgroup.admit(pid, linux.and_then(|linux: &Linux| linux.resources().as_ref()))?;
    for pid in descendants(pid) {
        record.cgroup.take(pid)?;
    }
    let hooks = spec.hooks().clone().unwrap_or_default();
    let state = hook::State::of(record, Status::Creating, Some(pid));
    hook::run("prestart", hook::prestart(&hooks), &state, hook::on_host(record, request.mask))?;
    let create_runtime = hooks.create_runtime().clone().unwrap_or_default();
    hook::run("createRuntime", &create_runtime, &state, hook::on_host(record, request.mask))?;
    Ok(process)
}

fn make_point(directory: &Path, name: &str) -> Result<PathBuf> {
    let point = directory.join(name);
    fs::DirBuilder::new().mode(0o700).create(&point).context(|| format!("make directory {}", quote(&point)))?;
    Ok(point)
}

/// Gives mounts a path, where criu finds them and nobody else: for which places, and that path.
fn attach(trees: Vec<Tree>, directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let attach = |(index, tree): (usize, Tree)| {
        let point = make_point(directory, &format!("mount{index}"))?;
        tree.mount.attach(&point)?;
        Ok((tree.destination, point))
    };
    trees.into_iter().enumerate().map(attach).collect()
}

fn replace(mounts: Vec<(PathBuf, PathBuf)>, sources: &[(PathBuf, PathBuf)]) -> Vec<(PathBuf, PathBuf)> {
    let source = |place: &Path| sources.iter().find(|(other, _)| other == place).map(|(_, source)| source.clone());
    mounts.into_iter().map(|(place, old)| (place.clone(), source(&place).unwrap_or(old))).collect()
}

/// Where the saved cgroups begin now.
fn cgroup_roots(cgroup: &Cgroup) -> Vec<(String, PathBuf)> {
    let below = |path: &Path| Path::new("/").join(path.strip_prefix(CGROUPS).unwrap_or(path));
    match cgroup.unified() {
        Some(path) if cgroup.directories.len() == 1 => vec![(String::new(), below(path))],
        _ => vec![(String::new(), Path::new("/").join(&cgroup.path))],
    }
}

/// A process and all that descend from it; they are stopped, so none is missed.
fn descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    found
}

/// Lets restored processes go on.
pub(super) fn go_on(record: &Record) -> Result<()> {
    for pid in descendants(record.init()?.pid) {
        if let Some(process) = Process::open(pid)? {
            process.signal(Signal::CONT)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup;

    #[test]
    fn only_binds_come_from_outside_and_relative_ones_from_the_bundle() {
        let spec: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.2.0", "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
            {"destination": "/data", "type": "none", "source": "d", "options": ["ro", "rbind"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/hosts"},
        ]}))
        .unwrap();
        let id = "c".parse().unwrap();
        let request = cgroup::Request { id: &id, path: None, manager: Manager::Disabled };
        let found = external_mounts(&spec, Path::new("/b"), &cgroup::plan(request).unwrap());
        let pair = |point: &str, source: &str| (PathBuf::from(point), PathBuf::from(source));
        let cgroups = pair(CGROUPS, CGROUPS);
        assert_eq!(found, [cgroups, pair("/data", "/b/d"), pair("/etc/hosts", "/run/hosts")]);
        assert_eq!(outside(&spec), found.into_iter().map(|(point, _)| point).collect::<Vec<_>>());
    }

    #[test]
    fn pipes_are_replaced_and_other_streams_are_not() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(DESCRIPTORS), r#"["/dev/null", "pipe:[7]", "socket:[8]"]"#).unwrap();
        assert_eq!(inherited(directory.path()).unwrap(), [(1, "pipe:[7]".to_owned())]);
        fs::remove_file(directory.path().join(DESCRIPTORS)).unwrap();
        assert!(inherited(directory.path()).unwrap_err().to_string().contains("--image-path"));
    }
}
