//! Signals by name and number, and their way into a descriptor.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};

/// A signal number, 1 to 64, or 0, which only asks whether the process is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

/// The highest real-time signal.
const MAX: i32 = 64;
/// The C library keeps 32 and 33 for itself, so its real-time signals begin here.
const RT_MIN: i32 = 34;

impl Signal {
    /// Ends a process, and cannot be caught.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// Asks a process to end.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// The window's size changed.
    pub const WINCH: Self = Self(libc::SIGWINCH);
    /// SIGCONT
    pub const CONT: Self = Self(libc::SIGCONT);
    /// A child ended.
    pub const CHLD: Self = Self(libc::SIGCHLD);
    /// Somebody writes to a pipe that nobody reads.
    pub const PIPE: Self = Self(libc::SIGPIPE);
    /// The terminal is gone.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// Control-C.
    pub const INT: Self = Self(libc::SIGINT);
    /// Control-\.
    pub const QUIT: Self = Self(libc::SIGQUIT);

    /// The number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    /// From a number that the kernel gave.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        (0..=MAX).contains(&number).then_some(Self(number))
    }
}

impl FromStr for Signal {
    type Err = Error;

    /// `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`, `SIGRTMAX-1`.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            let shown: String = text.chars().take(40).collect();
            Error::new(Kind::Invalid, format!("read signal '{}'", shown.escape_debug()), "unknown signal")
                .next("give a name such as TERM or a number from 1 to 64")
        };
        if let Ok(number) = text.parse::<i32>() {
            return Self::from_number(number).filter(|signal| signal.0 > 0 || text == "0").ok_or_else(refuse);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let real_time = |base: i32, offset: &str, sign: i32| match offset {
            "" => Some(base),
            digits => digits.parse::<u8>().ok().map(|number| base + sign * i32::from(number)),
        };
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            real_time(RT_MIN, rest.strip_prefix('+').unwrap_or(rest), 1)
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            real_time(MAX, rest.strip_prefix('-').unwrap_or(rest), -1)
        } else {
            match name {
                "IOT" => Some(libc::SIGABRT),
                "POLL" => Some(libc::SIGIO),
                "CLD" => Some(libc::SIGCHLD),
                _ => nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32),
            }
        };
        let in_range = |number: &i32| match name.starts_with("RT") {
            true => (RT_MIN..=MAX).contains(number),
            false => true,
        };
        number.filter(in_range).map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(named) => f.write_str(named.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

/// Signal 0 is no signal for rustix, and a real-time signal has no name there; the kernel takes both.
pub(super) fn send(pidfd: BorrowedFd<'_>, signal: Signal) -> std::result::Result<(), Errno> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is borrowed for the call, a null info is allowed and means "as kill(2)", flags are 0.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal.0, info, 0) };
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        _ => Ok(()),
    }
}

/// Every signal is blocked while this lives, and comes out of a descriptor instead of interrupting anything.
///
/// The mask is inherited over fork and exec: whoever starts a foreign program meanwhile restores `before()` in it.
#[derive(Debug)]
pub struct Blocked {
    descriptor: SignalFd,
    before: SigSet,
}

/// A signal that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    /// Which one.
    pub signal: Signal,
    /// The kernel itself sent it (a key on the terminal, a child's end), not a process.
    pub from_kernel: bool,
}

impl Blocked {
    /// Blocks every signal that may be blocked, except those that a fault of ours raises.
    ///
    /// # Errors
    /// Those of sigmask and signalfd.
    pub fn all() -> Result<Self> {
        use nix::sys::signal::Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
        let operation = || "block signals";
        let mut set = SigSet::all();
        for fault in [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS] {
            set.remove(fault);
        }
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&set), Some(&mut before)).context(operation)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&set, flags).context(operation)?;
        Ok(Self { descriptor, before })
    }

    /// The mask that was in force before.
    #[must_use]
    pub fn before(&self) -> SigSet {
        self.before
    }

    /// The next signal that arrived; `None` if none is waiting.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn take(&self) -> Result<Option<Arrived>> {
        let info = self.descriptor.read_signal().context(|| "read a signal")?;
        Ok(info.and_then(|info| {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(Signal::from_number)?;
            Some(Arrived { signal, from_kernel: info.ssi_code > 0 })
        }))
    }
}

impl AsFd for Blocked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Gives the calling thread what a fresh program expects: `mask`, and SIGPIPE with its default action (the Rust
/// runtime ignores it, and that is inherited over exec).
///
/// # Errors
/// Those of sigmask and sigaction.
pub fn restore_for_exec(mask: &SigSet) -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, sigaction};
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(nix::sys::signal::Signal::SIGPIPE, &default) }.context(|| "reset SIGPIPE")?;
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(mask), None).context(|| "restore the signal mask")
}

/// Gives the calling thread's process the default action for every signal: one that whoever started us had ignored (nohup(1), a
/// shell's background) would be ignored by every program after it.
///
/// # Errors
/// Those of sigaction.
pub fn reset_actions() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, Signal as Number, sigaction};
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for number in Number::iterator().filter(|number| !matches!(number, Number::SIGKILL | Number::SIGSTOP)) {
        // SAFETY: the default action runs no code of ours.
        unsafe { sigaction(number, &default) }.context(|| format!("reset {number}"))?;
    }
    Ok(())
}

/// Lets a command begin with this signal mask instead of ours.
pub fn with_mask(command: &mut Command, mask: SigSet) {
    let set = move || Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?);
    // SAFETY: the closure runs between fork and exec and makes one system call: it allocates nothing, takes no lock,
    // and touches no memory that another thread of the parent could have left half-written.
    unsafe { command.pre_exec(set) };
}

/// The mask in force now.
///
/// # Errors
/// Those of sigmask.
pub fn current_mask() -> Result<SigSet> {
    SigSet::thread_get_mask().context(|| "read the signal mask")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_taken_in_every_usual_spelling() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigterm", 15),
            ("15", 15),
            ("0", 0),
            ("KILL", 9),
            ("WINCH", 28),
            ("RTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("RTMAX-1", 63),
            ("64", 64),
            ("IOT", 6),
            ("POLL", 29),
        ] {
            assert_eq!(text.parse::<Signal>().unwrap().number(), number, "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "SIG", "NOPE", "65", "-1", "-0", "+9x", "RTMIN+40", "RTMAX-40", "TERM ", "9.0"] {
            assert!(text.parse::<Signal>().is_err(), "{text:?} was taken");
        }
    }
}
