//! What a service manager passes to a program, and hears from it: open sockets (sd_listen_fds(3)), notes about how it goes
//! (sd_notify(3)). The same way a program passes what it holds to the one that replaces it.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::open_files;

const COUNT: &str = "LISTEN_FDS";
const FOR_WHOM: &str = "LISTEN_PID";
const NAMES: &str = "LISTEN_FDNAMES";
const NOTIFY: &str = "NOTIFY_SOCKET";
/// The first descriptor that is passed.
const FIRST: u32 = 3;

/// A descriptor that was passed.
#[derive(Debug)]
pub struct Passed {
    /// What the other side calls it; empty if it does not say.
    pub name: String,
    /// It.
    pub descriptor: OwnedFd,
}

/// The first descriptor that was not passed to this process: 3, if none was.
#[must_use]
pub fn first_unpassed() -> u32 {
    FIRST + count()
}

fn count() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number(FOR_WHOM) == Some(std::process::id()) { number(COUNT).unwrap_or(0) } else { 0 }
}

/// Takes what was passed to this process. Nothing is there the second time, and children see nothing of it.
///
/// Must be called single-threaded, and before anything is opened: a descriptor that was promised and not passed would
/// else be one of ours.
///
/// # Errors
/// [`Kind::Invalid`] if one is not open.
pub fn take_passed() -> Result<Vec<Passed>> {
    let last = FIRST + count();
    let names = std::env::var(NAMES).unwrap_or_default();
    for variable in [COUNT, FOR_WHOM, NAMES] {
        // SAFETY: the program is single-threaded, as the caller promises; nobody else reads the environment.
        unsafe { std::env::remove_var(variable) };
    }
    let mut names = names.split(':');
    let mut taken = Vec::new();
    for number in FIRST..last {
        let name = names.next().unwrap_or_default().to_owned();
        let raw = i32::try_from(number).unwrap_or(-1);
        // SAFETY: fcntl(F_SETFD) on any number changes a flag of a descriptor at most.
        if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            let operation = format!("take descriptor {number} ('{}')", name.escape_debug());
            return Err(io::Error::last_os_error()).context(|| operation).map_err(|error| {
                Error::new(Kind::Invalid, error.without_next_step(), format!("{COUNT} promises {}", last - FIRST))
            });
        }
        // SAFETY: it is open, as was just seen, and nobody in this process owns it: whoever started it says it is for us,
        // nothing was opened yet, and the variables that say so are gone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        taken.push(Passed { name, descriptor });
    }
    Ok(taken)
}

/// Tells whoever supervises this process: `READY=1`, `STOPPING=1`, `STATUS=…`, a line each. Without a supervisor nothing
/// is done.
///
/// # Errors
/// Those of socket(2), connect(2) and sendmsg(2).
pub fn notify(state: &str, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let Some(path) = std::env::var_os(NOTIFY).filter(|path| !path.is_empty()) else { return Ok(()) };
    let operation = || format!("notify the supervisor at '{}'", path.to_string_lossy().escape_debug());
    let address = match path.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name),
        _ => UnixAddr::new(Path::new(&path)),
    };
    let address = address.context(operation)?;
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &control[..] };
    let to = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context(operation)?;
    connect(to.as_raw_fd(), &address).context(operation)?;
    let text = [io::IoSlice::new(state.as_bytes())];
    sendmsg::<()>(to.as_raw_fd(), &text, control, MsgFlags::MSG_NOSIGNAL, None).context(operation)?;
    Ok(())
}

/// Replaces this process by a program that gets these descriptors, as [`take_passed`] takes them. The signal mask stays,
/// and the limit of open files is what it was before [`open_files::raise`].
/// Only returns on failure, and then everything is as it was: what is put in order for the program is a copy of the
/// table of descriptors.
pub fn replace_process(program: &Path, arguments: &[OsString], passed: &[(&str, BorrowedFd<'_>)]) -> Error {
    let operation = || format!("execute {}", crate::error::quote(program));
    let outcome = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || execute(program, arguments, passed));
        thread.map(|thread| thread.join().unwrap_or_else(|_| io::Error::other("the thread for it panicked")))
    });
    let error = match outcome {
        Ok(error) | Err(error) => error,
    };
    match Err::<(), _>(error).context(operation) {
        Ok(()) => Error::new(Kind::System, operation(), "unknown"),
        Err(error) => error,
    }
}

/// Only returns on failure. To be called on a thread that ends after that.
fn execute(program: &Path, arguments: &[OsString], passed: &[(&str, BorrowedFd<'_>)]) -> io::Error {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let prepare = || {
        let program = text(program.as_os_str())?;
        let arguments: Vec<CString> = arguments.iter().map(|argument| text(argument)).collect::<io::Result<_>>()?;
        let variables: Vec<CString> = environment(passed).iter().map(|entry| text(entry)).collect::<io::Result<_>>()?;
        // The other threads keep the table that they know.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
        arrange(passed)?;
        open_files::restore()?;
        Ok((program, arguments, variables))
    };
    let outcome = match prepare() {
        Ok((program, arguments, variables)) => match nix::unistd::execve(&program, &arguments, &variables) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        },
        Err(error) => error,
    };
    // This process goes on.
    open_files::raise();
    outcome
}

fn environment(passed: &[(&str, BorrowedFd<'_>)]) -> Vec<OsString> {
    let ours = |name: &OsStr| [COUNT, FOR_WHOM, NAMES].iter().any(|variable| name == *variable);
    let assignment = |name: &OsStr, value: &OsStr| {
        let mut entry = name.to_owned();
        entry.push("=");
        entry.push(value);
        entry
    };
    let kept = std::env::vars_os().filter(|(name, _)| !ours(name));
    let mut entries: Vec<OsString> = kept.map(|(name, value)| assignment(&name, &value)).collect();
    let names: Vec<&str> = passed.iter().map(|(name, _)| *name).collect();
    entries.push(format!("{COUNT}={}", passed.len()).into());
    entries.push(format!("{FOR_WHOM}={}", std::process::id()).into());
    entries.push(format!("{NAMES}={}", names.join(":")).into());
    entries
}

/// Puts descriptors to 3 and up, over whatever is there, and lets them survive an execution. For a table that is a copy.
fn arrange(passed: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
    let count = i32::try_from(passed.len()).map_err(io::Error::other)?;
    let first = FIRST.cast_signed();
    let mut apart = Vec::with_capacity(passed.len());
    for (_, descriptor) in passed {
        // SAFETY: fcntl(F_DUPFD_CLOEXEC) makes another name for a descriptor that is borrowed for the call.
        let copy = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first + count) };
        if copy == -1 {
            return Err(io::Error::last_os_error());
        }
        apart.push(copy);
    }
    for (place, copy) in (first..).zip(apart) {
        // SAFETY: this thread's table is its own and nothing in this thread uses a descriptor after this, so whatever was
        // called `place` in it is missed by nobody.
        if unsafe { libc::dup2(copy, place) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_program_that_cannot_be_executed_leaves_every_descriptor_in_its_place() {
        let file = tempfile::tempfile().unwrap();
        let seen = |number: i32| std::fs::read_link(format!("/proc/self/fd/{number}"));
        let three = seen(3);
        let error = replace_process(Path::new("/does/not/exist"), &["x".into()], &[("a", file.as_fd()); 4]);
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        // Another test may open and close meanwhile, but nobody makes this file a number's.
        if let (Ok(before), Ok(after)) = (three, seen(3)) {
            assert!(before == after || !after.to_string_lossy().contains("/#"), "{before:?} {after:?}");
        }
    }

    #[test]
    fn what_is_for_another_process_is_not_taken() {
        // The test process was not started with descriptors of its own.
        assert_eq!(first_unpassed(), FIRST);
    }
}
