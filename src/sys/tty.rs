//! Terminals: the caller's, put into raw mode and always restored, and the container's, received over a socket.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::error::{Context, Error, Kind, Result};

/// The caller's terminal in raw mode; dropping it restores what was there, however the caller leaves.
#[derive(Debug)]
pub struct RawMode<'fd> {
    terminal: BorrowedFd<'fd>,
    before: Termios,
}

impl<'fd> RawMode<'fd> {
    /// Raw mode for `terminal`; `None` if it is no terminal.
    ///
    /// # Errors
    /// Those of tcsetattr(3).
    pub fn enter(terminal: BorrowedFd<'fd>) -> Result<Option<Self>> {
        let Ok(before) = tcgetattr(terminal) else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw).context(|| "put the terminal into raw mode")?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // The terminal may be gone with its window; there is nothing left to restore then.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Gives the container's terminal the size of the caller's. Nothing happens if the caller has none.
///
/// # Errors
/// Those of ioctl(TIOCSWINSZ).
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    match tcgetwinsize(from) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => set_size(to, size.ws_row, size.ws_col),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Sets a terminal's size in characters.
///
/// # Errors
/// Those of ioctl(TIOCSWINSZ).
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context(|| "set the size of the container's terminal")
}

/// Gives the controlling terminal, which is standard input, up for another session to have. The caller leads its session,
/// is alone in it, and has blocked all signals: those that the kernel sends because of it are taken away.
///
/// # Errors
/// Those of ioctl(TIOCNOTTY).
pub fn give_up() -> Result<()> {
    let operation = || "give the controlling terminal up";
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(0, libc::TIOCNOTTY) };
    if result == -1 {
        return Err(std::io::Error::last_os_error()).context(operation);
    }
    let mut set = SigSet::empty();
    set.add(Signal::SIGHUP);
    set.add(Signal::SIGCONT);
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    for _ in 0..2 {
        // SAFETY: set and time live across the call, and nothing is written without a place for it. That no signal waits is
        // no error.
        unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const now) };
    }
    Ok(())
}

/// Takes the next connection and the one descriptor that comes over it.
///
/// # Errors
/// If nothing comes within `limit`, or what comes is no descriptor.
pub fn receive_descriptor(listener: &UnixListener, limit: Duration) -> Result<OwnedFd> {
    let operation = || "receive the container's terminal";
    let timeout =
        Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: limit.subsec_nanos().into() };
    let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout)).context(operation)?;
    if ready == 0 {
        return Err(Error::new(Kind::System, operation(), "it was never sent"));
    }
    let (stream, _) = listener.accept().context(operation)?;
    let mut buffer = [0_u8; 4096];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<UnixAddr>(stream.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags).context(operation)?;
    for control in message.cmsgs().context(operation)? {
        if let ControlMessageOwned::ScmRights(numbers) = control
            && let Some(number) = numbers.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows its number.
            return Ok(unsafe { OwnedFd::from_raw_fd(*number) });
        }
    }
    Err(Error::new(Kind::System, operation(), "the message carries no descriptor"))
}
