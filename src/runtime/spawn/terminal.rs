//! The terminal of a process: made inside, from the container's own devices, and handed out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use super::plan::Terminal;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::channel::Channel;
use crate::sys::clone::replace_stream;
use crate::sys::tty::set_size;

/// Both ends of a new terminal.
#[derive(Debug)]
pub(super) struct Pair {
    /// What the maker of the process keeps or sends on.
    pub near: OwnedFd,
    /// What the process has as its standard streams.
    pub far: OwnedFd,
}

impl Terminal {
    /// Makes one in the root of the calling process. The far end is never looked for by its name, under which the
    /// container could have put something else (the class of CVE-2025-52565): the near end itself gives it.
    ///
    /// # Errors
    /// Those of opening `/dev/ptmx` and of the calls on it.
    pub(super) fn open(self) -> Result<Pair> {
        let operation = || "make a terminal in the container";
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let near =
            openat(CWD, "/dev/pts/ptmx", flags, Mode::empty()).context(|| "open '/dev/pts/ptmx'").context(operation)?;
        unlockpt(&near).context(operation)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let far = ioctl_tiocgptpeer(&near, flags).context(operation)?;
        if let Some((rows, columns)) = self.size {
            set_size(near.as_fd(), rows, columns)?;
        }
        Ok(Pair { near, far })
    }
}

/// Makes a terminal the calling process's controlling one, and its standard streams. It leads its session.
///
/// # Errors
/// Those of ioctl(TIOCSCTTY) and dup2(2).
pub(super) fn attach(far: BorrowedFd<'_>) -> Result<()> {
    ioctl_tiocsctty(far).context(|| "make the terminal the controlling one")?;
    (0..=2).try_for_each(|stream| replace_stream(far, stream))
}

/// Sends a terminal's near end to whoever listens at a console socket.
///
/// # Errors
/// Those of connect(2) and sendmsg(2).
pub(super) fn send(near: BorrowedFd<'_>, socket: &Path) -> Result<()> {
    let operation = || format!("send the terminal to console socket {}", quote(socket));
    let stream = UnixStream::connect(socket).context(operation)?;
    match Channel::from(OwnedFd::from(stream)).send(b"/dev/ptmx", &[near]).context(operation)? {
        true => Ok(()),
        false => Err(Error::new(Kind::System, operation(), "nobody reads it")),
    }
}
