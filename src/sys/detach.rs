//! Programs that outlive their caller and have nothing of it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::SigSet;

use crate::error::{Context, Result};
use crate::sys::channel::Channel;
use crate::sys::open_files;
use crate::sys::signal::with_mask;

/// Starts this very program again, detached: own session, no descriptor of the caller's (engines wait for the end of
/// pipes that a child keeps open), no environment but a PATH, working directory `/`, no signal blocked.
///
/// It is a child of the caller until that ends: for callers that end soon.
///
/// # Errors
/// Those of fork and exec.
pub fn spawn_self(arguments: &[OsString]) -> Result<()> {
    let mut command = command(OsStr::new("/proc/self/exe"), arguments);
    // SAFETY: the closure runs between fork and exec and makes two system calls: it allocates nothing, takes no lock,
    // and touches no memory that another thread of the parent could have left half-written.
    unsafe { command.pre_exec(detach) };
    // Nobody waits for it: it becomes a child of init when this process ends.
    command.spawn().map(drop).context(|| "start the worker")
}

/// As [`spawn_self`], for callers that live on: what is started is nobody's child but init's, so that the caller has
/// nothing to reap and its end means nothing to it. It has one end of a channel as descriptor 0.
///
/// # Errors
/// Those of fork and exec.
pub fn spawn_self_with(channel: Channel, arguments: &[OsString]) -> Result<()> {
    spawn_orphan(OsStr::new("/proc/self/exe"), arguments, channel)
}

fn spawn_orphan(program: &OsStr, arguments: &[OsString], channel: Channel) -> Result<()> {
    let operation = || "start a process that stands alone";
    let mut command = command(program, arguments);
    command.stdin(Stdio::from(OwnedFd::from(channel)));
    // SAFETY: the closure runs between fork and exec: it forks, which the C library makes safe to do once more in the
    // only thread of a forked process, and makes system calls; it allocates nothing and takes no lock of ours.
    unsafe { command.pre_exec(|| orphan().and_then(|()| detach())) };
    // The library waits until the pipe by which it hears of a failed exec is closed: by the exec of the grandchild.
    let mut intermediate = command.spawn().context(operation)?;
    intermediate.wait().map(drop).context(operation)
}

fn command(program: &OsStr, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command
        .arg0("regen")
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A daemon has blocked all of them, and a container would inherit that: nothing could tell its program to end.
    with_mask(&mut command, SigSet::empty());
    command
}

/// Goes on in a child; the caller's copy of this process ends.
fn orphan() -> io::Result<()> {
    // SAFETY: the caller is the only thread of a process that was forked to execute a program, and does so next.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: ends this process without running what its parent registered to run at its own end.
        _ => unsafe { libc::_exit(0) },
    }
}

fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    open_files::restore()?;
    // SAFETY: the call only marks descriptors to be closed by the exec that follows; none of them is used after it.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_started_alone_has_its_channel_and_is_nobodys_child() {
        let (ours, theirs) = Channel::pair().unwrap();
        spawn_orphan(OsStr::new("/bin/sh"), &["-c".into(), "exec >&0; echo $$; read x".into()], theirs).unwrap();
        let answer = String::from_utf8(ours.receive().unwrap().unwrap().bytes).unwrap();
        let pid: i32 = answer.trim().parse().unwrap();
        let directory = Path::new("/proc").join(answer.trim());
        let stat = std::fs::read_to_string(directory.join("stat")).unwrap();
        let fields: Vec<_> = stat.split_whitespace().collect();
        assert_ne!(fields[3], std::process::id().to_string(), "the parent");
        assert_eq!(fields[5], answer.trim(), "the session");
        assert_eq!(std::fs::read_link(directory.join("cwd")).unwrap(), Path::new("/"));
        assert_eq!(std::fs::read_dir(directory.join("fd")).unwrap().count(), 3);
        let process = crate::sys::process::Process::open(pid).unwrap().unwrap();
        assert_eq!(process.reap().unwrap(), None, "it is our child");
        drop(ours);
        assert!(process.wait_end(std::time::Duration::from_secs(20)).unwrap());
    }

    #[test]
    fn what_is_started_alone_has_no_signal_blocked() {
        let (ours, theirs) = Channel::pair().unwrap();
        let blocked = crate::sys::signal::Blocked::all().unwrap();
        // In the shell itself, which blocks them for a moment to start something.
        let script = "exec 3>&0; while read line; do case $line in SigBlk*) echo $line >&3; esac; done </proc/self/status; read x";
        spawn_orphan(OsStr::new("/bin/sh"), &["-c".into(), script.into()], theirs).unwrap();
        blocked.before().thread_set_mask().unwrap();
        let answer = String::from_utf8(ours.receive().unwrap().unwrap().bytes).unwrap();
        assert_eq!(answer.trim(), "SigBlk: 0000000000000000");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_leaves_no_process() {
        let (_ours, theirs) = Channel::pair().unwrap();
        let error = spawn_orphan(OsStr::new("/nonexistent"), &[], theirs).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::NotFound);
    }
}
