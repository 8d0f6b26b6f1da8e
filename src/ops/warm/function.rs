//! A function's directory, mounted into a sandbox from outside before anything runs there.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::blank::FUNCTION_INSIDE;
use crate::error::{Context, Result};
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

fn enter_of(init: &Process) -> rustix::io::Result<()> {
    use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT)
}
