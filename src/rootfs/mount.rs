//! The mounts, in the order of the specification, each onto an open place inside the root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstatfs, openat, readlink, statat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, mount_change, mount_remount, move_mount};

use super::file_system::{self, Made};
use super::mask::Null;
use super::option::{Change, Source};
use super::plan::{Form, Mount, Plan, is_emulated};
use super::root::{Links, Make, Root, file_type};
use super::{cgroup, copy};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::by_descriptor;
use crate::sys::mount::{Depth, set_attributes, set_propagation};

/// f_type of a procfs, from the kernel's magic.h.
const PROC_MAGIC: i64 = 0x9fa0;
/// The inode number of a procfs's root.
const PROC_ROOT: u64 = 1;

/// f_type of an selinuxfs, from the kernel's magic.h.
const SELINUX_MAGIC: i64 = 0xf97c_ff8c;

/// Mounts that become read-only last, because things are put into them first.
pub(super) type Late = Vec<(PathBuf, OwnedFd)>;

/// A root with everything mounted, not entered yet: the host is still there.
#[derive(Debug)]
pub struct Mounted {
    pub(super) plan: Plan,
    pub(super) root: Root,
    pub(super) late: Late,
    pub(super) null: Option<Null>,
}

impl Plan {
    /// Does everything up to the pivot: to be called by the first process in its new namespaces.
    ///
    /// # Errors
    /// The mount, device or path, and what the kernel has against it.
    pub fn mount(mut self) -> Result<Mounted> {
        let before = rustix::process::umask(Mode::empty());
        let result = self.mount_all();
        rustix::process::umask(before);
        let (root, late, null) = result?;
        Ok(Mounted { plan: self, root, late, null })
    }

    fn mount_all(&mut self) -> Result<(Root, Late, Option<Null>)> {
        let root = self.attach_root().context(|| format!("prepare the root file system {}", quote(&self.rootfs)))?;
        let mut mounts = std::mem::take(&mut self.mounts);
        let mut stage = Stage { plan: self, root, late: Vec::new() };
        for mount in &mut mounts {
            stage.mount(mount)?;
        }
        let Stage { root, late, .. } = stage;
        if let Some(devices) = &self.devices {
            devices.make(&root)?;
        }
        let null = if self.masked.is_empty() { None } else { Some(Null::find(&root)?) };
        Ok((root, late, null))
    }

    /// Cuts the namespace off from the host's as far as it is asked for, and makes the root a mount of its own.
    fn attach_root(&mut self) -> Result<Root> {
        let word = self.inherited();
        mount_change("/", word).context(|| "set the propagation of '/'")?;
        if !word.contains(MountPropagationFlags::REC) || word.contains(MountPropagationFlags::SHARED) {
            // pivot_root refuses a root whose parent is shared, and the host is to see nothing of it.
            let parent = crate::sys::fs::mount_point_of(&self.rootfs)?;
            mount_change(&parent, MountPropagationFlags::PRIVATE)
                .context(|| format!("make the mount {} private", quote(&parent)))?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (tree, point) = match (openat(CWD, &self.rootfs, flags, Mode::empty()), self.root_tree.take()) {
            (Ok(point), Some(tree)) => (tree, point),
            (Ok(point), None) => (file_system::clone_tree(&point, Depth::All).context(|| "bind it")?, point),
            // Of a root in a directory that only the creator may enter, there is nothing to see by its name.
            (Err(Errno::ACCESS), Some(tree)) => (tree, openat(CWD, "/", flags, Mode::empty()).context(|| "open '/'")?),
            (Err(errno), _) => return Err(errno).context(|| "open it"),
        };
        attach(&tree, &point).context(|| "attach it")?;
        Ok(Root(tree))
    }
}

/// Puts a mount that is attached nowhere onto an open place.
pub(super) fn attach(mount: impl AsFd, point: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", point, "", flags)
}

/// The root while it is filled.
pub(super) struct Stage<'a> {
    pub(super) plan: &'a Plan,
    pub(super) root: Root,
    late: Late,
}

impl Stage<'_> {
    fn mount(&mut self, mount: &mut Mount) -> Result<()> {
        let destination = mount.destination.clone();
        match mount.form.clone() {
            Form::Bind { source, .. } => {
                self.bind(mount, &source).context(|| format!("mount {} at {}", quote(source), quote(destination)))
            }
            Form::FileSystem { kind, source } => self
                .file_system(mount, &kind, &source)
                .context(|| format!("mount {} at {}", kind.escape_debug(), quote(destination))),
            Form::Cgroup => cgroup::mount(self, mount).context(|| format!("mount cgroups at {}", quote(destination))),
            Form::Change => self.change(mount).context(|| format!("change the mount at {}", quote(destination))),
        }
    }

    /// The place where a mount goes, made if it is missing, and one where it may go.
    pub(super) fn place(&self, mount: &Mount, make: Make) -> Result<OwnedFd> {
        let place = self.root.make(&mount.destination, make, mount.links())?;
        self.check_place(&mount.destination, &place)?;
        Ok(place)
    }

    /// Refuses a place in a procfs that a symlink led to. What is there is taken for the kernel's.
    fn check_place(&self, destination: &Path, place: &OwnedFd) -> Result<()> {
        let operation = || format!("look at {}", quote(destination));
        if fstatfs(place).context(operation)?.f_type != PROC_MAGIC
            || destination == Path::new("/proc")
            || is_emulated(destination)
        {
            return Ok(());
        }
        // A second procfs that the specification put somewhere else is the specification's.
        if !destination.starts_with("/proc") && self.root.open(destination, Links::Refuse).is_ok() {
            return Ok(());
        }
        let cause = "it cannot be mounted because it is inside /proc";
        Err(Error::new(Kind::Invalid, operation(), cause).next("remove the symlink that leads there"))
    }

    fn bind(&mut self, mount: &mut Mount, source: &Path) -> Result<()> {
        if mount.options.source == Source::CopySymlink
            && let Ok(target) = readlink(source, Vec::new())
        {
            return self.copy_symlink(mount, &target);
        }
        let tree = match mount.tree.take() {
            Some(tree) => tree,
            None => mount.open_source(source)?,
        };
        let make = match file_type(&tree).context(|| "look at the source")? {
            FileType::Directory => Make::Directory,
            _ => Make::File,
        };
        if mount.destination == Path::new("/proc") {
            check_is_proc(&tree)?;
        }
        let place = self.place(mount, make)?;
        self.put(mount, tree, &place)
    }

    fn copy_symlink(&self, mount: &Mount, target: &std::ffi::CStr) -> Result<()> {
        let (Some(parent), Some(name)) = (mount.destination.parent(), mount.destination.file_name()) else {
            return Err(Error::new(Kind::Invalid, "copy the symlink", "the root cannot be one"));
        };
        let parent = self.root.make(parent, Make::Directory, mount.links())?;
        match symlinkat(target, &parent, name) {
            Err(Errno::EXIST) if rustix::fs::readlinkat(&parent, name, Vec::new()).is_ok_and(|old| *old == *target) => {
                Ok(())
            }
            result => result.context(|| "copy the symlink"),
        }
    }

    fn file_system(&mut self, mount: &mut Mount, kind: &str, source: &str) -> Result<()> {
        let place = match self.root.open(&mount.destination, mount.links()) {
            Ok(covered) => {
                if kind == "tmpfs" {
                    inherit_mode(mount, &covered)?;
                }
                self.check_place(&mount.destination, &covered)?;
                covered
            }
            Err(_) => self.place(mount, Make::Directory)?,
        };
        self.label(mount, kind);
        if file_type(&place).context(|| "look at it")? != FileType::Directory {
            let cause = "a file system must be mounted on an ordinary directory";
            return Err(Error::new(Kind::Invalid, "look at it", cause));
        }
        let options = &mount.options;
        let made = file_system::make(kind, source, options, &place);
        let made = match made {
            // In a user namespace whose network namespace is the host's there is no sysfs of one's own.
            Err(error) if kind == "sysfs" && error.errno() == Some(Errno::PERM.raw_os_error()) => {
                let tree = file_system::open_source(Path::new("/sys"), Depth::All, Source::Follow)?;
                mount.change_attributes(&tree, MountAttrFlags::empty())?;
                Made::Detached(tree)
            }
            made => made?,
        };
        match made {
            Made::Detached(tree) => {
                if mount.options.copy_up {
                    copy::fill(&place, &tree, &mount.options.data).context(|| "copy what it covers")?;
                }
                self.put(mount, tree, &place)
            }
            Made::Attached => {
                let found = self.root.open(&mount.destination, mount.links()).context(|| "open it again")?;
                if mount.options.copy_up {
                    copy::fill(&place, &found, &mount.options.data).context(|| "copy what it covers")?;
                }
                self.settle(mount, found)
            }
        }
    }

    /// What the mount's files are labelled with, where the kernel has SELinux.
    fn label(&self, mount: &mut Mount, kind: &str) {
        if let Some(label) = &self.plan.label
            && !matches!(kind, "proc" | "sysfs")
            && rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|found| found.f_type == SELINUX_MAGIC)
        {
            mount.options.data.push(format!("context=\"{label}\""));
        }
    }

    /// Attaches a mount whose attributes are set.
    pub(super) fn put(&mut self, mount: &Mount, tree: OwnedFd, place: &OwnedFd) -> Result<()> {
        attach(&tree, place).context(|| "attach it")?;
        self.settle(mount, tree)
    }

    /// What is left once a mount is attached.
    fn settle(&mut self, mount: &Mount, tree: OwnedFd) -> Result<()> {
        for word in &mount.options.propagation {
            propagate(&tree, *word)?;
        }
        if mount.destination == Path::new("/") {
            self.root = Root(tree.try_clone().context(|| "keep it open")?);
        }
        if mount.is_read_only_late() {
            self.late.push((mount.destination.clone(), tree));
        }
        Ok(())
    }

    /// Changes what is mounted at a place.
    fn change(&mut self, mount: &Mount) -> Result<()> {
        let place = self.root.open(&mount.destination, mount.links()).context(|| "open it")?;
        self.check_place(&mount.destination, &place)?;
        if mount.options.remount && mount.options.bind.is_none() {
            let data = mount.options.data.join(",");
            mount_remount(by_descriptor(&place), mount.options.flags(), data).context(|| "remount it")?;
        } else {
            mount.change_attributes(&place, MountAttrFlags::empty())?;
        }
        self.settle(mount, place)
    }
}

impl Mount {
    /// Whether it stays writable until everything is in its place.
    fn is_read_only_late(&self) -> bool {
        let filled = matches!(&self.form, Form::FileSystem { kind, .. } if kind == "tmpfs");
        let late = filled || self.destination == Path::new("/dev");
        late && self.options.this.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY)
    }

    /// A detached copy of the source of a bind mount, with the attributes that the options ask for.
    ///
    /// # Errors
    /// A missing source by its path; an attribute that is not to be had.
    pub(super) fn open_source(&self, source: &Path) -> Result<OwnedFd> {
        let Form::Bind { depth, .. } = &self.form else {
            return Err(Error::new(Kind::Invalid, "open the source", "it is no bind mount"));
        };
        let tree = file_system::open_source(source, *depth, self.options.source)?;
        let except = match self.is_read_only_late() {
            true => MountAttrFlags::MOUNT_ATTR_RDONLY,
            false => MountAttrFlags::empty(),
        };
        self.change_attributes(&tree, except)?;
        Ok(tree)
    }

    /// Sets what the options say, all but `except`.
    pub(super) fn change_attributes(&self, tree: &OwnedFd, except: MountAttrFlags) -> Result<()> {
        let this = Change { set: self.options.this.set.difference(except), clear: self.options.this.clear };
        for (change, depth) in [(this, Depth::One), (self.options.all, Depth::All)] {
            if !change.is_none() {
                change_unlocked(tree, change, depth).context(|| "set its flags")?;
            }
        }
        Ok(())
    }
}

/// What a more privileged namespace has locked cannot be loosened, and is left as tight as it is.
pub(super) fn change_unlocked(tree: &OwnedFd, change: Change, depth: Depth) -> std::io::Result<()> {
    match set_attributes(tree, change.set, change.clear, depth) {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            let set = change.set.difference(MountAttrFlags::MOUNT_ATTR__ATIME);
            set_attributes(tree, set, MountAttrFlags::empty(), depth)
        }
        result => result,
    }
}

/// Applies a propagation word to an attached mount.
pub(super) fn propagate(tree: &OwnedFd, word: MountPropagationFlags) -> Result<()> {
    let depth = if word.contains(MountPropagationFlags::REC) { Depth::All } else { Depth::One };
    set_propagation(tree, word, depth).context(|| "set its propagation")
}

/// A tmpfs has the mode of the directory that it covers, unless its options say another.
fn inherit_mode(mount: &mut Mount, covered: &OwnedFd) -> Result<()> {
    if mount.options.data.iter().any(|word| word.split(',').any(|word| word.starts_with("mode="))) {
        return Ok(());
    }
    let found = statat(covered, "", rustix::fs::AtFlags::EMPTY_PATH).context(|| "look at what it covers")?;
    mount.options.data.push(format!("mode={:o}", found.st_mode & 0o7777));
    Ok(())
}

/// Programs, and runtimes that enter the container, believe what /proc says.
pub(super) fn check_is_proc(tree: &OwnedFd) -> Result<()> {
    let operation = || "look at the source";
    let root = statat(tree, "", rustix::fs::AtFlags::EMPTY_PATH).context(operation)?.st_ino == PROC_ROOT;
    if root && fstatfs(tree).context(operation)?.f_type == PROC_MAGIC {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, operation(), "it cannot be mounted at /proc because it is not of type proc"))
}
