//! The mounts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsmount, fsopen, move_mount,
};

use super::plan::Plan;
use super::root::Root;
use crate::error::{Context, Result};

/// A root with everything mounted, not entered yet: the host is still there.
#[derive(Debug)]
pub struct Mounted {
    pub(super) plan: Plan,
    pub(super) root: Root,
}

impl Plan {
    /// Does everything up to the pivot: to be called by the first process in its new namespaces.
    ///
    /// # Errors
    /// The mount, device or path, and what the kernel has against it.
    pub fn mount(self) -> Result<Mounted> {
        let root =
            rustix::fs::open(&self.rootfs, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).context(|| "")?;
        Ok(Mounted { plan: self, root: Root(root) })
    }
}

/// Puts a mount that is attached nowhere onto an open place.
pub(super) fn attach(mount: impl AsFd, point: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", point, "", flags)
}

/// A procfs of the caller's namespaces that is attached nowhere.
pub(super) fn detached_proc() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}
