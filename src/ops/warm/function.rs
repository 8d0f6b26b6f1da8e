//! What is done in a sandbox's file system from outside, before anything runs there.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MoveMountFlags, move_mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::FUNCTION_INSIDE;
use crate::error::{Context, Result, quote};
use crate::sys::fs::open_path;
use crate::sys::process::Process;

/// Puts a detached mount on `/function` in the mount namespace of a process. The caller has to be its process's only
/// thread: it goes there and comes back.
///
/// # Errors
/// Those of setns(2) and move_mount(2).
pub(super) fn mount(init: &Process, function: BorrowedFd<'_>) -> Result<()> {
    let operation = || "mount the function into the sandbox";
    let own = File::open("/proc/self/ns/mnt").context(operation)?;
    enter_of(init).context(operation)?;
    let moved = move_mount(function, "", CWD, FUNCTION_INSIDE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    let back = move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount));
    // What comes next must not be done in there.
    back.context(|| "come back from the sandbox's mounts")?;
    moved.context(operation)
}

/// Opens a directory in the root file system of a process, where no link leads out of it.
///
/// # Errors
/// Those of openat2(2).
pub(super) fn open_directory(init: &Process, path: &Path) -> Result<OwnedFd> {
    let operation = || format!("open directory {} in the sandbox", quote(path));
    let root = open_path(Path::new(&format!("/proc/{}/root", init.pid()))).context(operation)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS).context(operation)
}

fn enter_of(init: &Process) -> rustix::io::Result<()> {
    use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT)
}
