//! Programs that outlive their caller and have nothing of it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::error::{Context, Result};

/// Starts this very program again, detached: own session, no descriptor of the caller's (engines wait for the end of
/// pipes that a child keeps open), no environment but a PATH, working directory `/`.
///
/// # Errors
/// Those of fork and exec.
pub fn spawn_self(arguments: &[OsString]) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("regen")
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: the closure runs between fork and exec and makes two system calls: it allocates nothing, takes no lock,
    // and touches no memory that another thread of the parent could have left half-written.
    unsafe { command.pre_exec(detach) };
    // Nobody waits for it: it becomes a child of init when this process ends.
    command.spawn().map(drop).context(|| "start the worker")
}

fn detach() -> std::io::Result<()> {
    rustix::process::setsid()?;
    // SAFETY: the call only marks descriptors to be closed by the exec that follows; none of them is used after it.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
