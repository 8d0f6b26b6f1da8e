//! Making a container's cgroups, and the ways into them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags, openat};

use crate::cgroup::limit::{Scope, wanted_controllers};
use crate::cgroup::{Cgroup, Directory, Manager};
use crate::error::{Context, Error, Kind, Result, quote};

/// What became of the wish to make cgroups.
#[derive(Debug)]
pub enum Creation {
    /// They are there, with their limits; this is the way in. (With systemd: they will be, see [`Cgroup::admit`].)
    Made(Entrance),
    /// We may not, and nobody asked for limits: the container stays where we are. With the reason.
    Refused(Error),
}

/// What to do when cgroups may not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Fail.
    Fails,
    /// Go on without, unless limits are asked for.
    Skips,
}

impl Refusal {
    /// The host's root may make cgroups, or something is wrong; everybody else goes without, as with runc.
    #[must_use]
    pub fn of_caller() -> Self {
        let privileged = nix::unistd::geteuid().is_root() && !super::in_user_namespace();
        if privileged { Self::Fails } else { Self::Skips }
    }
}

/// Open descriptors by which a new process gets into cgroups that exist.
#[derive(Debug, Default)]
pub struct Entrance {
    unified: Option<File>,
    tasks: Vec<(File, PathBuf)>,
}

impl Entrance {
    /// The directory for clone3(2) with `CLONE_INTO_CGROUP`; none on version 1 and with systemd.
    #[must_use]
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Files that take in whoever writes `0` to them, in every hierarchy: for a process that gets them from somebody else.
    ///
    /// # Errors
    /// Those of opening and duplicating.
    pub fn files(&self) -> Result<Vec<OwnedFd>> {
        let operation = || "open the way into a cgroup";
        let mut files = Vec::new();
        if let Some(directory) = &self.unified {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            files.push(openat(directory, "cgroup.procs", flags, Mode::empty()).context(operation)?);
        }
        for (tasks, _) in &self.tasks {
            files.push(tasks.as_fd().try_clone_to_owned().context(operation)?);
        }
        Ok(files)
    }

    /// Moves the calling thread, which has to be its process's only one, into the cgroups of version 1. Nothing to do
    /// on version 2. To be called by the new process before it makes a cgroup namespace.
    ///
    /// # Errors
    /// What the kernel has against it: a limit of real-time scheduling, an empty cpuset.
    pub fn enter(&self) -> Result<()> {
        for (tasks, path) in &self.tasks {
            (&*tasks).write_all(b"0").context(|| format!("join cgroup {}", quote(path.parent().unwrap_or(path))))?;
        }
        Ok(())
    }
}

impl Cgroup {
    /// Makes the directories, with limits, before any process of the container exists. On failure nothing is left.
    ///
    /// # Errors
    /// [`Kind::Busy`] if one is there and has processes in it, or is frozen; those of the limits.
    pub fn create(&mut self, resources: Option<&LinuxResources>, refusal: Refusal) -> Result<Creation> {
        match self.manager {
            Manager::Systemd | Manager::Disabled => return Ok(Creation::Made(Entrance::default())),
            Manager::Cgroupfs => {}
        }
        let mut made = Vec::new();
        let result = self.fill(resources, refusal, &mut made);
        if result.is_err() {
            for path in made.iter().rev() {
                if let Err(error) = fs::remove_dir(path) {
                    tracing::warn!("remove cgroup {}: {error}", quote(path));
                }
            }
        }
        result
    }

    fn fill(
        &mut self,
        resources: Option<&LinuxResources>,
        refusal: Refusal,
        made: &mut Vec<PathBuf>,
    ) -> Result<Creation> {
        let default = LinuxResources::default();
        let resources = resources.unwrap_or(&default);
        let mut refused = None;
        for directory in std::mem::take(&mut self.directories) {
            match self.make_one(&directory, resources, made) {
                Ok(()) => self.directories.push(directory),
                Err(error) if refusal == Refusal::Skips && is_refusal(&error) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        self.limit(resources, Scope::All)?;
        match refused {
            Some(error) if self.directories.is_empty() => Ok(Creation::Refused(error)),
            _ => self.open().map(Creation::Made),
        }
    }

    fn make_one(&self, directory: &Directory, resources: &LinuxResources, made: &mut Vec<PathBuf>) -> Result<()> {
        let path = &directory.path;
        let before = made.len();
        make_directories(path, made).context(|| format!("make cgroup {}", quote(path)))?;
        if made.len() == before {
            let existing = Self { directories: vec![directory.clone()], ..self.clone() };
            existing.check_free()?;
        }
        if directory.is_unified() {
            return enable_controllers(path, resources);
        }
        if directory.controllers.split(',').any(|controller| controller == "cpuset") {
            inherit_cpuset(path).context(|| format!("prepare cgroup {}", quote(path)))?;
        }
        Ok(())
    }

    /// Refuses a place that is not ours to fill, and later to empty: a group with processes in it, or a frozen one.
    ///
    /// # Errors
    /// [`Kind::Busy`].
    pub fn check_free(&self) -> Result<()> {
        let operation = || format!("use cgroup {}", quote(&self.path));
        if let Some(pid) = self.processes()?.first() {
            let cause = format!("container's cgroup is not empty: process {pid} is in it");
            return Err(Error::new(Kind::Busy, operation(), cause).next("choose another linux.cgroupsPath"));
        }
        if self.is_frozen() {
            let cause = "container's cgroup unexpectedly frozen";
            return Err(Error::new(Kind::Busy, operation(), cause).next("thaw it or choose another linux.cgroupsPath"));
        }
        Ok(())
    }

    /// The way into cgroups that exist; for a further process.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if they are gone.
    pub fn open(&self) -> Result<Entrance> {
        let mut entrance = Entrance::default();
        for directory in &self.directories {
            let operation = || format!("open cgroup {}", quote(&directory.path));
            if directory.is_unified() {
                entrance.unified = Some(File::open(&directory.path).context(operation)?);
            } else {
                let path = directory.path.join("tasks");
                let file = File::options().write(true).open(&path).context(operation)?;
                entrance.tasks.push((file, path));
            }
        }
        Ok(entrance)
    }

    /// The way in for one more process of a container that runs. On version 2 the container may have made cgroups of
    /// its own below this one and given them controllers; then none but they take processes, and the new one goes where
    /// the container's first process is.
    ///
    /// # Errors
    /// As [`Cgroup::open`].
    pub fn open_beside(&self, init: i32) -> Result<Entrance> {
        let split = |path: &Path| fs::read_to_string(path.join(SUBTREE)).is_ok_and(|text| !text.trim().is_empty());
        match self.unified() {
            Some(path) if split(path) => {
                let mut beside = self.clone();
                beside.locate(init)?;
                beside.open()
            }
            Some(_) | None => self.open(),
        }
    }

    /// Existing cgroups below this one, by what `exec --cgroup` takes: `PATH`, or for some controllers of version 1 only
    /// `CONTROLLER[,CONTROLLER…]:PATH`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a path that leads out, [`Kind::NotFound`] for one that does not exist.
    pub fn below(&self, argument: &str) -> Result<Self> {
        let operation = || format!("find cgroup {} of the container", quote(argument));
        let (controllers, path) = match argument.split_once(':') {
            Some((controllers, path)) => (Some(controllers.split(',').collect::<Vec<_>>()), Path::new(path)),
            None => (None, Path::new(argument)),
        };
        let path = path.strip_prefix("/").unwrap_or(path);
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(Error::new(Kind::Invalid, operation(), "it leads out of the container's cgroup"));
        }
        let mut below = self.clone();
        for directory in &mut below.directories {
            let meant =
                controllers.as_ref().is_none_or(|list| directory.controllers.split(',').any(|c| list.contains(&c)));
            if meant {
                directory.path.push(path);
                fs::metadata(&directory.path).context(operation)?;
            }
        }
        Ok(below)
    }

    /// With systemd: has it make the scope around this process, and limits what is in it. Otherwise nothing: the
    /// process came in by the [`Entrance`].
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without systemd.
    pub fn admit(&mut self, pid: i32, resources: Option<&LinuxResources>) -> Result<()> {
        match self.manager {
            Manager::Cgroupfs | Manager::Disabled => Ok(()),
            Manager::Systemd => self.start_scope(pid, resources),
        }
    }
}

/// Makes a directory and those above it that are missing, and adds to the list what it made.
fn make_directories(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or(error)?;
            make_directories(parent, made)?;
            make_directories(path, made)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            made.push(path.to_owned());
            Ok(())
        }
    }
}

/// Makes a directory of version 1 and moves a process into it.
pub(super) fn join(path: &Path, controllers: &str, pid: i32) -> Result<()> {
    let operation = || format!("move process {pid} into cgroup {}", quote(path));
    make_directories(path, &mut Vec::new()).context(operation)?;
    if controllers.split(',').any(|controller| controller == "cpuset") {
        inherit_cpuset(path).context(operation)?;
    }
    fs::write(path.join("cgroup.procs"), pid.to_string()).context(operation)
}

fn is_refusal(error: &Error) -> bool {
    [Errno::EACCES, Errno::EPERM, Errno::EROFS].iter().any(|errno| error.errno() == Some(*errno as i32))
}

/// A fresh cpuset of version 1 is empty, and takes no process. It gets what its parent has, which may be as empty.
fn inherit_cpuset(path: &Path) -> io::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if !fs::read_to_string(path.join(name))?.trim().is_empty() {
            continue;
        }
        let parent = path.parent().filter(|parent| parent.join(name).exists()).ok_or(io::ErrorKind::NotFound)?;
        if fs::read_to_string(parent.join(name))?.trim().is_empty() {
            inherit_cpuset(parent)?;
        }
        fs::write(path.join(name), fs::read_to_string(parent.join(name))?.trim())?;
    }
    Ok(())
}

/// Version 2: hands every controller down the path to the new cgroup, and insists on those that limits are asked of.
fn enable_controllers(path: &Path, resources: &LinuxResources) -> Result<()> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).take_while(|one| one.join(SUBTREE).exists()).collect();
    above.reverse();
    let mut failure = None;
    for parent in above {
        if let Err(error) = enable_for_children(parent) {
            failure = Some((parent, error));
        }
    }
    let there = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    let wanted = wanted_controllers(resources)?;
    let Some(missing) = wanted.into_iter().find(|one| !there.split_whitespace().any(|word| word == *one)) else {
        return check_type(path);
    };
    let operation = || format!("enable controller {missing} for cgroup {}", quote(path));
    match failure {
        // cgroup-v2.rst, "No Internal Process Constraint".
        Some((parent, error)) if error.kind() == io::ErrorKind::ResourceBusy => {
            let error = Err::<(), _>(error).context(operation);
            let next = format!("{} has processes of its own: choose another linux.cgroupsPath", quote(parent));
            error.map_err(|error| error.next(next))
        }
        Some((_, error)) => Err(error).context(operation),
        None => Err(Error::new(Kind::Unsupported, operation(), "the kernel or an upper cgroup does not offer it")
            .next("leave the limit out or enable the controller")),
    }
}

const SUBTREE: &str = "cgroup.subtree_control";

/// All at once, or as many as will.
fn enable_for_children(parent: &Path) -> io::Result<()> {
    let there = fs::read_to_string(parent.join("cgroup.controllers"))?;
    let enabled = fs::read_to_string(parent.join(SUBTREE))?;
    let missing: Vec<String> = there
        .split_whitespace()
        .filter(|one| !enabled.split_whitespace().any(|word| word == *one))
        .map(|one| format!("+{one}"))
        .collect();
    let set = |words: &str| fs::write(parent.join(SUBTREE), words);
    if missing.is_empty() || set(&missing.join(" ")).is_ok() {
        return Ok(());
    }
    let mut result = Ok(());
    for word in &missing {
        result = set(word).and(result);
    }
    result
}

/// A group below a threaded one takes only threads.
fn check_type(path: &Path) -> Result<()> {
    let kind = fs::read_to_string(path.join("cgroup.type")).unwrap_or_default();
    match kind.trim() {
        "" | "domain" | "domain threaded" => Ok(()),
        kind => {
            let operation = format!("use cgroup {}", quote(path));
            let cause = format!("its type is '{kind}', because a cgroup above it is threaded");
            Err(Error::new(Kind::Unsupported, operation, cause).next("choose another linux.cgroupsPath"))
        }
    }
}

/// The text of our own `/proc/self/cgroup`.
pub(super) fn own_membership() -> Result<String> {
    fs::read_to_string("/proc/self/cgroup").context(|| "find our own cgroup")
}
