//! Making a container's cgroups, and the ways into them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;

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
        let mapped = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let initial = mapped.split_whitespace().eq(["0", "0", "4294967295"]);
        if nix::unistd::geteuid().is_root() && initial { Self::Fails } else { Self::Skips }
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
        self.check_free()?;
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
        _resources: Option<&LinuxResources>,
        refusal: Refusal,
        made: &mut Vec<PathBuf>,
    ) -> Result<Creation> {
        let mut kept = Vec::new();
        let mut refused = None;
        for directory in std::mem::take(&mut self.directories) {
            match make_directory(&directory, made) {
                Ok(()) => kept.push(directory),
                Err(error) if refusal == Refusal::Skips && is_refusal(&error) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        self.directories = kept;
        match refused {
            Some(error) if self.directories.is_empty() => Ok(Creation::Refused(error)),
            _ => self.open().map(Creation::Made),
        }
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

    /// With systemd: has it make the scope around this process, and limits what is in it. Otherwise nothing: the
    /// process came in by the [`Entrance`].
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without systemd.
    pub fn admit(&mut self, pid: i32, _resources: Option<&LinuxResources>) -> Result<()> {
        match self.manager {
            Manager::Cgroupfs | Manager::Disabled => Ok(()),
            Manager::Systemd => {
                Err(Error::new(Kind::Unsupported, format!("move process {pid} into a scope"), "not there yet"))
            }
        }
    }
}

/// Makes one directory, with its parents.
fn make_directory(directory: &Directory, made: &mut Vec<PathBuf>) -> Result<()> {
    let operation = || format!("make cgroup {}", quote(&directory.path));
    let mut missing: Vec<&Path> = Vec::new();
    for path in directory.path.ancestors() {
        match fs::create_dir(path) {
            Ok(()) => {
                made.push(path.to_owned());
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(path),
            Err(error) => return Err(error).context(operation),
        }
    }
    for path in missing.into_iter().rev() {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).context(operation),
            Err(_) => {}
            Ok(()) => made.push(path.to_owned()),
        }
    }
    Ok(())
}

fn is_refusal(error: &Error) -> bool {
    [Errno::EACCES, Errno::EPERM, Errno::EROFS].iter().any(|errno| error.errno() == Some(*errno as i32))
}

/// The text of our own `/proc/self/cgroup`.
pub(super) fn own_membership() -> Result<String> {
    fs::read_to_string("/proc/self/cgroup").context(|| "find our own cgroup")
}
