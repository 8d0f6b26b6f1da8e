//! mount_setattr(2), which rustix lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// Whether a change is for one mount or also for all that are mounted below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// This mount.
    One,
    /// This mount and all below it.
    All,
}

/// Switches attributes of the mount whose root `mount` refers to: first those in `clear` off, then those in `set` on.
/// All others stay. Since Linux 5.12.
///
/// # Errors
/// EPERM for an attribute that a more privileged user namespace has locked, EINVAL if `mount` is no mount's root or
/// an access time is set without clearing all of them, ENOSYS on older kernels.
pub fn set_attributes(mount: impl AsFd, set: MountAttrFlags, clear: MountAttrFlags, depth: Depth) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: set.bits().into(), attr_clr: clear.bits().into(), propagation: 0, userns_fd: 0 };
    change(mount.as_fd(), &attributes, depth)
}

/// Changes how mounts and unmounts below `mount` reach other namespaces. `word` is one of shared, private, slave and
/// unbindable; its `REC` bit is ignored, `depth` counts.
///
/// # Errors
/// EINVAL if `mount` is no mount's root or `word` is more than one, ENOSYS before Linux 5.12.
pub fn set_propagation(mount: impl AsFd, word: MountPropagationFlags, depth: Depth) -> io::Result<()> {
    let word = word.difference(MountPropagationFlags::REC | MountPropagationFlags::SILENT);
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: word.bits().into(), userns_fd: 0 };
    change(mount.as_fd(), &attributes, depth)
}

/// Shows the files of a mount with their owners mapped by a user namespace. Only for a mount that is not attached yet.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN over the file system, if the mount is attached or mapped already, or the namespace is
/// the initial one; EINVAL if the file system cannot do it; ENOSYS before Linux 5.12.
pub fn set_id_map(mount: impl AsFd, user_namespace: impl AsFd, depth: Depth) -> io::Result<()> {
    let number = user_namespace.as_fd().as_raw_fd().cast_unsigned();
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(number),
    };
    change(mount.as_fd(), &attributes, depth)
}

fn change(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, depth: Depth) -> io::Result<()> {
    let flags = match depth {
        Depth::One => libc::AT_EMPTY_PATH,
        Depth::All => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    // SAFETY: the path is a NUL-terminated empty string, the structure lives across the call and its size is given;
    // the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
