//! The pivot, and what comes after it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstatfs, major, openat, statat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, mount_move, unmount};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::file_system::clone_tree;
use super::mask::{self, Null};
use super::mount::{Late, Mounted, attach};
use super::plan::Plan;
use super::root::{Links, Make, Root, make_file};
use super::{Pivot, sysctl};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::mount::{Depth, set_attributes};
use crate::sys::mount_table::{self, Mount};

/// f_type of a devpts, from the kernel's magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;
/// Major numbers of the near ends of terminals, from the kernel's devices.txt.
const TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// A process whose root is the container's; what is to be read-only or hidden is not so yet.
#[derive(Debug)]
pub struct Entered {
    plan: Plan,
    root: Root,
    late: Late,
    null: Option<Null>,
}

impl Mounted {
    /// Makes the container's root `/`, and its working directory where it is missing; the host's mounts are gone
    /// afterwards.
    ///
    /// # Errors
    /// Those of pivot_root(2).
    pub fn enter(self) -> Result<Entered> {
        let Self { plan, root, late, null } = self;
        match plan.pivot {
            Pivot::Pivot => pivot(&root).map_err(|error| match error.errno() {
                Some(errno) if errno == Errno::INVAL.raw_os_error() => {
                    error.next("where the host's root is the initial ramdisk, give --no-pivot")
                }
                _ => error,
            })?,
            Pivot::Move => move_root(&root, &plan.rootfs)?,
        }
        make_working_directory(&root, plan.working_directory.as_deref())?;
        Ok(Entered { plan, root, late, null })
    }
}

/// The old root ends up mounted over the new one, where it is found by a descriptor and taken away: no directory has to
/// be made for it.
fn pivot(root: &Root) -> Result<()> {
    let operation = || "pivot_root into the root file system";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = openat(CWD, "/", flags, Mode::empty()).context(operation)?;
    fchdir(&root.0).context(operation)?;
    pivot_root(".", ".").context(operation)?;
    fchdir(&old).context(operation)?;
    // The unmounting must not reach the host; slaves still hear of what the host unmounts, and let go of it.
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context(operation)?;
    unmount(".", UnmountFlags::DETACH).context(|| "unmount the host's root")?;
    chdir("/").context(operation)
}

/// Moves the root over the host's. The host's mounts stay below it, out of sight; its /proc and /sys go, because a
/// process that gets hold of them could ask the kernel for more than its own would tell.
fn move_root(root: &Root, rootfs: &Path) -> Result<()> {
    let operation = || "move the root file system to '/'";
    let table = mount_table::read().context(operation)?;
    for Mount { point, kind, .. } in mount_table::parse(&table) {
        if matches!(kind, "proc" | "sysfs") && !point.starts_with(rootfs) && point != Path::new("/") {
            hide(&point).context(|| format!("unmount the host's {}", quote(&point)))?;
        }
    }
    fchdir(&root.0).context(operation)?;
    mount_move(".", "/").context(operation)?;
    chroot(".").context(operation)?;
    chdir("/").context(operation)
}

fn hide(point: &Path) -> Result<()> {
    match mount_change(point, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC) {
        // It was below another one that is gone already.
        Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
        result => result.context(|| "change its propagation")?,
    }
    match unmount(point, UnmountFlags::DETACH) {
        // Locked in a user namespace: then it is covered.
        Err(Errno::INVAL | Errno::PERM) => {
            let place = openat(CWD, point, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| "open it")?;
            attach(mask::empty_directory().context(|| "make a tmpfs")?, &place).context(|| "cover it")
        }
        result => result.context(|| "unmount it"),
    }
}

/// Every runtime makes the working directory of the first process if the image lacks it. Where it cannot be made, the
/// program's own start says what is missing.
fn make_working_directory(root: &Root, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    match root.open(path, Links::Follow) {
        Err(Errno::NOENT) => {}
        Ok(_) | Err(_) => return Ok(()),
    }
    let before = rustix::process::umask(Mode::empty());
    let made = root.make(path, Make::Directory, Links::Follow);
    rustix::process::umask(before);
    match made {
        Err(error) if error.errno() == Some(Errno::ROFS.raw_os_error()) => Ok(()),
        made => made.map(drop).context(|| format!("make working directory {}", quote(path))),
    }
}

impl Entered {
    /// The container's root, for what has to be opened in it by somebody else.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.0.as_fd()
    }

    /// Puts the near end of the container's terminal at /dev/console, by the descriptor, so that nothing that is called
    /// like it can be taken for it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no terminal of a devpts; those of the bind mount.
    pub fn attach_console(&self, terminal: BorrowedFd<'_>) -> Result<()> {
        let operation = || "put the terminal at '/dev/console'";
        let found = statat(terminal, "", AtFlags::EMPTY_PATH).context(operation)?;
        let device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
        let devpts = fstatfs(terminal).context(operation)?.f_type == DEVPTS_MAGIC;
        if !device || !devpts || !TERMINALS.contains(&major(found.st_rdev)) {
            return Err(Error::new(Kind::Invalid, operation(), "it is no pseudo-terminal"));
        }
        let dev = self.root.make(Path::new("/dev"), Make::Directory, Links::Refuse).context(operation)?;
        let place = make_file(&dev, Path::new("console")).context(operation)?;
        let tree = clone_tree(terminal, Depth::One).context(operation)?;
        attach(&tree, &place).context(operation)
    }

    /// Writes the settings of `linux.sysctl`, makes read-only what is to be, masks what is to be hidden, and gives the root
    /// its propagation.
    ///
    /// # Errors
    /// The path or setting, and what the kernel has against it.
    pub fn finish(self) -> Result<()> {
        let Self { plan, root, late, null } = self;
        for (path, mount) in &late {
            read_only(mount).context(|| format!("make {} read-only", quote(path)))?;
        }
        sysctl::apply(&plan.sysctls)?;
        if plan.read_only {
            read_only(&root.0).context(|| "make '/' read-only")?;
        }
        mask::make_read_only(&root, &plan.read_only_paths)?;
        if let Some(null) = null {
            mask::mask(&root, &plan.masked, null)?;
        }
        if let Some(word) = plan.propagation {
            mount_change("/", word).context(|| "set the propagation of '/'")?;
        }
        Ok(())
    }
}

fn read_only(mount: &OwnedFd) -> std::io::Result<()> {
    set_attributes(mount, MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty(), Depth::One)
}
