//! The mounting: always through file descriptors, so that nothing shows up in the host's mount table.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
};

use super::{Index, Parameter, Stack, Upper, plan_parameters};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::by_descriptor;
use crate::sys::mount::{Depth, set_attributes, set_propagation};
use crate::sys::xattr::OverlayClass;

/// The kernel copies at most this much of a parameter's text, its final NUL included.
const VALUE_MAX: usize = 256;

/// A mount that is attached nowhere: it exists as long as this value, or until it is attached.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// Asks the kernel for the overlay. `subject` is who it is for: `container 'web1'`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the kernel lacks an option or the upper's file system cannot hold one; else
    /// what the kernel said, with its own explanation.
    pub fn overlay(stack: &Stack, subject: &str) -> Result<Self> {
        make(stack, Index::Off).map_err(|failure| failure.explain(stack, subject))
    }

    /// A copy of a directory tree with all that is mounted in it, for the caller's own purposes. It is shared, in a group
    /// of its own: criu takes from it where a container's root was a slave of the host's.
    ///
    /// # Errors
    /// Those of open_tree(2) and mount_setattr(2).
    pub fn copy(directory: &Path) -> Result<Self> {
        let operation = || format!("copy the mount {}", quote(directory));
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let copy = open_tree(CWD, directory, flags).context(operation)?;
        set_propagation(&copy, MountPropagationFlags::PRIVATE, Depth::All).context(operation)?;
        set_propagation(&copy, MountPropagationFlags::SHARED, Depth::All).context(operation)?;
        Ok(Self(copy))
    }

    /// A directory without what is mounted in it, as an overlay that stands on it shows it.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn bare(directory: &Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, directory, flags).map(Self).context(|| format!("look into {}", quote(directory)))
    }

    /// What holds the mount, for whoever attaches it.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// Lets nobody write through the mount, nor run its programs with other rights, nor open its devices.
    ///
    /// # Errors
    /// Those of mount_setattr(2).
    pub fn restrict(&self) -> Result<()> {
        let flags =
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        set_attributes(&self.0, flags, MountAttrFlags::empty(), Depth::One).context(|| "make a mount read-only")
    }

    /// Attaches the mount at `directory`, in the caller's mount namespace.
    ///
    /// # Errors
    /// Those of move_mount(2).
    pub fn attach(self, directory: &Path) -> Result<()> {
        move_mount(&self.0, "", CWD, directory, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .context(|| format!("attach a file system at {}", quote(directory)))
    }

    /// The root of the mount, for looking into it without attaching it; good as long as this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        by_descriptor(&self.0)
    }
}

/// A mount that was detached by others.
impl From<OwnedFd> for Detached {
    fn from(mount: OwnedFd) -> Self {
        Self(mount)
    }
}

/// Whether anything can still write into `upper` through some overlay mount: a mount, a file descriptor, a working
/// directory, wherever it is. The kernel is asked by a mount of it with an index, which it refuses with EBUSY while
/// another mount of that upper lives.
///
/// `empty` is an empty directory on the same file system, or any that no mount writes into. The kernel notes it at the upper
/// as its origin, and leaves an index in the work directory; neither means anything to a mount without an index, which all others are.
///
/// # Errors
/// Those of the mount other than that the upper is in use.
pub fn is_held(upper: &Upper, empty: &Path, class: OverlayClass) -> Result<bool> {
    let stack = Stack { lowers: vec![empty.to_owned()], upper: Some(upper.clone()), class };
    match make(&stack, Index::On) {
        // Stale is what an earlier trial noted, over another directory; that the upper is free was found before that.
        Ok(_) | Err(Failure::System { errno: Errno::STALE, .. }) => Ok(false),
        // So it was where what a trial notes has no room.
        Err(Failure::System { errno: Errno::NOSPC | Errno::DQUOT, step, .. }) if step == CREATE => Ok(false),
        Err(Failure::System { errno: Errno::BUSY, .. }) => Ok(true),
        Err(failure) => Err(failure.explain(&stack, &format!("the test of {}", quote(&upper.directory)))),
    }
}

/// The step in which the kernel looks at upper and lowers.
const CREATE: &str = "create";

/// Why the kernel gave no mount.
enum Failure {
    Plan(Error),
    System { errno: Errno, step: String, log: Vec<String> },
}

fn make(stack: &Stack, index: Index) -> std::result::Result<Detached, Failure> {
    match make_by(stack, index, Lowers::OneByOne) {
        // Before 6.7 the kernel took all lowers in one parameter. If that is not it, the first failure tells more.
        Err(first @ Failure::System { errno: Errno::INVAL, .. }) => {
            make_by(stack, index, Lowers::Joined).map_err(|second| match second {
                Failure::System { errno: Errno::INVAL, .. } => first,
                other => other,
            })
        }
        result => result,
    }
}

/// How the kernel is given the lower directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lowers {
    /// A parameter each.
    OneByOne,
    /// In one parameter, with colons between: some sixty fit, by the numbers of their descriptors.
    Joined,
}

fn make_by(stack: &Stack, index: Index, lowers: Lowers) -> std::result::Result<Detached, Failure> {
    let parameters = plan_parameters(stack, index).map_err(Failure::Plan)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| failure(errno, "open", None))?;
    // The kernel keeps these by path; the descriptors only need to live until the mount is made.
    let mut short = Vec::new();
    fsconfig_set_string(context.as_fd(), "source", "regen")
        .map_err(|errno| failure(errno, "set source", Some(&context)))?;
    for parameter in &parameters {
        match (parameter, lowers) {
            (Parameter::Directory("lowerdir+", _), Lowers::Joined) => {}
            _ => set(&context, parameter, &mut short)?,
        }
    }
    match lowers {
        Lowers::OneByOne => {
            fsconfig_create(context.as_fd()).map_err(|errno| failure(errno, CREATE, Some(&context)))?;
        }
        Lowers::Joined => create_joined(&context, &stack.lowers)?,
    }
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map(Detached)
        .map_err(|errno| failure(errno, "mount", Some(&context)))
}

/// Gives the lowers by descriptor number, relative to the directory of this process's descriptors.
fn create_joined(context: &OwnedFd, lowers: &[PathBuf]) -> std::result::Result<(), Failure> {
    let open = |path: &PathBuf| crate::sys::fs::open_path(path);
    let descriptors = lowers.iter().map(open).collect::<Result<Vec<_>>>().map_err(Failure::Plan)?;
    let numbers: Vec<_> = descriptors
        .iter()
        .filter_map(|descriptor| by_descriptor(descriptor).file_name().map(|name| name.to_string_lossy().into_owned()))
        .collect();
    let before = open(&PathBuf::from(".")).map_err(Failure::Plan)?;
    rustix::process::chdir("/proc/self/fd").map_err(|errno| failure(errno, "find its descriptors", None))?;
    let made = fsconfig_set_string(context.as_fd(), "lowerdir", numbers.join(":"))
        .and_then(|()| fsconfig_create(context.as_fd()))
        .map_err(|errno| failure(errno, CREATE, Some(context)));
    rustix::process::fchdir(&before).map_err(|errno| failure(errno, "go back", None))?;
    made
}

fn set(context: &OwnedFd, parameter: &Parameter, short: &mut Vec<File>) -> std::result::Result<(), Failure> {
    let result = match parameter {
        Parameter::Word(key, value) => fsconfig_set_string(context.as_fd(), *key, *value),
        Parameter::Flag(key) => fsconfig_set_flag(context.as_fd(), *key),
        Parameter::Directory(key, path) => {
            let path = shorten(path, short).map_err(Failure::Plan)?;
            fsconfig_set_string(context.as_fd(), *key, path.as_path())
        }
    };
    result.map_err(|errno| failure(errno, &format!("set {parameter}"), Some(context)))
}

/// A path that does not fit goes by way of a descriptor.
fn shorten(path: &Path, open: &mut Vec<File>) -> Result<PathBuf> {
    // In `lowerdir+` nothing is escaped, but a colon or backslash in `upperdir` once was: those go by descriptor too.
    let text = path.as_os_str().as_encoded_bytes();
    if text.len() < VALUE_MAX && !text.iter().any(|byte| b":,\\".contains(byte)) {
        return Ok(path.to_owned());
    }
    let file = crate::sys::fs::open_path(path)?;
    let short = by_descriptor(&file);
    open.push(file);
    Ok(short)
}

fn failure(errno: Errno, step: &str, context: Option<&OwnedFd>) -> Failure {
    let log = context.map(read_log).unwrap_or_default();
    Failure::System { errno, step: step.to_owned(), log }
}

/// What the kernel says about a failed fsconfig(2): messages like `e overlay: …`, one per read.
fn read_log(context: &OwnedFd) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        if length == 0 || messages.len() == 8 {
            break;
        }
        let text = String::from_utf8_lossy(&buffer[..length]);
        messages.push(text.trim().trim_start_matches("e ").trim_start_matches("w ").to_owned());
    }
    messages
}

impl Failure {
    fn explain(self, stack: &Stack, subject: &str) -> Error {
        let operation = format!("mount overlay for {subject}");
        match self {
            Self::Plan(error) => error.during(operation),
            Self::System { errno, step, log } => {
                let words = std::io::Error::from(errno);
                let error: Error = Err::<(), _>(words).context(|| operation.clone()).expect_err("it is an error");
                let mut cause = format!("{step}: {}", nix::errno::Errno::from_raw(errno.raw_os_error()).desc());
                if !log.is_empty() {
                    cause = format!("{cause} ({})", log.join("; "));
                }
                if errno == Errno::INVAL
                    && let Some(upper) = stack.upper_directory()
                {
                    cause = format!("{cause}; upper {}", quote(upper));
                }
                Error::new(error.kind(), operation, cause)
            }
        }
    }
}

/// A mount namespace of the caller's own, for mounts that only its children are to inherit.
///
/// Propagation stays as it is, so that a volume that a container shares with the host goes on being shared; only
/// the one mount under which something will be attached is made private, as container runtimes do with the parent
/// of a root file system. Works only while the process has one thread.
#[derive(Debug)]
pub struct PrivateNamespace {
    outer: File,
    root: File,
    directory: File,
}

impl PrivateNamespace {
    /// Enters a new mount namespace in which nothing that is attached at `target` reaches the outer one.
    ///
    /// # Errors
    /// Those of unshare(2) and of the change of propagation; the caller is then still outside.
    pub fn enter(target: &Path) -> Result<Self> {
        let operation = || "enter a private mount namespace";
        let outer = File::open("/proc/self/ns/mnt").context(operation)?;
        let root = crate::sys::fs::open_path(Path::new("/")).context(operation)?;
        let directory = crate::sys::fs::open_path(Path::new(".")).context(operation)?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context(operation)?;
        let namespace = Self { outer, root, directory };
        match namespace.isolate(target) {
            Ok(()) => Ok(namespace),
            Err(error) => match namespace.leave() {
                Ok(()) => Err(error),
                Err(stuck) => Err(Error::new(Kind::System, "leave a private mount namespace", stuck.to_string())),
            },
        }
    }

    fn isolate(&self, target: &Path) -> Result<()> {
        let parent = crate::sys::fs::mount_point_of(target)?;
        mount_change(&parent, MountPropagationFlags::PRIVATE)
            .context(|| format!("make the mount {} private", quote(&parent)))
    }

    /// Goes back; whatever nobody else inherited is unmounted by the kernel.
    ///
    /// # Errors
    /// Those of setns(2), chroot(2) and fchdir(2).
    pub fn leave(self) -> Result<()> {
        let operation = || "leave the private mount namespace";
        nix::sched::setns(&self.outer, nix::sched::CloneFlags::CLONE_NEWNS).context(operation)?;
        // The way back leads to the namespace's root, which in a chroot is not the caller's.
        rustix::process::fchdir(&self.root).context(operation)?;
        rustix::process::chroot(".").context(operation)?;
        rustix::process::fchdir(&self.directory).context(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Fate;
    use super::*;
    use std::fs;

    /// Uppers cannot lie on an overlay, which /tmp may be; where it is none, tests use it like a store.
    fn layout() -> (tempfile::TempDir, Stack) {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let stack = Stack {
            lowers: vec![path("top"), path("base")],
            upper: Some(Upper { directory: path("upper"), work: path("work"), fate: Fate::Kept }),
            class: OverlayClass::Trusted,
        };
        (directory, stack)
    }

    #[test]
    fn privileged_the_uppermost_lower_wins_and_writes_reach_the_upper() {
        let (directory, stack) = layout();
        fs::write(stack.lowers[0].join("f"), "top").unwrap();
        fs::write(stack.lowers[1].join("f"), "base").unwrap();
        let mount = Detached::overlay(&stack, "test").unwrap();
        let root = mount.path();
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "top");
        fs::write(root.join("g"), "new").unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("upper/g")).unwrap(), "new");
    }

    #[test]
    fn privileged_a_file_descriptor_holds_the_upper_until_it_is_closed() {
        let (directory, stack) = layout();
        let upper = stack.upper.clone().unwrap();
        let trial = |name: &str| {
            let empty = directory.path().join(name);
            fs::create_dir(&empty).unwrap();
            is_held(&upper, &empty, OverlayClass::Trusted).unwrap()
        };
        let mount = Detached::overlay(&stack, "test").unwrap();
        let file = File::create(mount.path().join("kept")).unwrap();
        drop(mount);
        assert!(trial("a"), "an open file of the unmounted overlay can still be written");
        drop(file);
        assert!(!trial("b"));
        assert!(!trial("c"), "a trial leaves nothing that the next one trips over");
        Detached::overlay(&stack, "test").unwrap();
    }

    #[test]
    fn privileged_the_older_kernels_way_shows_the_same() {
        let (directory, mut stack) = layout();
        fs::write(stack.lowers[0].join("f"), "top").unwrap();
        fs::write(stack.lowers[1].join("f"), "base").unwrap();
        for n in 0..50 {
            let lower = directory.path().join(format!("a lower: with, everything {n}"));
            fs::create_dir(&lower).unwrap();
            fs::write(lower.join(format!("g{n}")), "").unwrap();
            stack.lowers.push(lower);
        }
        let Ok(mount) = make_by(&stack, Index::Off, Lowers::Joined) else { panic!("the kernel refused") };
        assert_eq!(fs::read_to_string(mount.path().join("f")).unwrap(), "top");
        assert!((0..50).all(|n| mount.path().join(format!("g{n}")).exists()));
    }

    #[test]
    fn privileged_long_paths_go_by_descriptor() {
        let (directory, mut stack) = layout();
        let long = directory.path().join("x".repeat(200)).join("y".repeat(200));
        fs::create_dir_all(&long).unwrap();
        fs::write(long.join("deep"), "").unwrap();
        stack.lowers.push(long);
        let mount = Detached::overlay(&stack, "test").unwrap();
        assert!(mount.path().join("deep").exists());
    }
}
