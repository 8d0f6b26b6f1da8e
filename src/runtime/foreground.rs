//! The foreground: signals go to the container, bytes between the terminals, and the status comes back.
//!
//! The order that never hangs: signals are blocked into a descriptor and the process has a pidfd *before* it is
//! started, so that neither its end nor a signal can come between looking and waiting. All waiting is one poll(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::{Created, Pty, StateRoot, create, kill};
use crate::sys::process::{ExitStatus, Process};
use crate::sys::signal::{Blocked, Signal};
use crate::sys::tty::{RawMode, copy_size};

/// Bytes on their way in one direction; poll(2) promises that a pipe takes this many without blocking.
const CHUNK: usize = 4096;

/// Control-D: end of file, for whoever reads the terminal line by line.
const END_OF_FILE: u8 = 4;

/// Has a container started that this process created for itself, and stays with it until its first process has ended.
///
/// `signals` were blocked before the creation ([`super::CreateRequest::mask`] is what was in force before); each that
/// arrives is sent on. The caller deletes the container, whatever this returns.
///
/// # Errors
/// Those of [`super::start()`] and of the system calls in between; the terminal is restored in any case.
pub fn wait_foreground(
    root: &StateRoot,
    id: &ContainerId,
    (created, signals): (&Created, Blocked),
    start: impl FnOnce() -> Result<()>,
) -> Result<ExitStatus> {
    let init = create::open_init(created)?;
    if let Some(pty) = &created.pty {
        copy_size(io::stdin().as_fd(), pty.as_fd())?;
    }
    start()?;
    attend(&init, signals, created.pty.as_ref(), |signal| {
        if matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT | Signal::HUP)
            && let Err(error) = kill::note(root, id, signal)
        {
            tracing::warn!("note the request to stop '{id}': {error}");
        }
    })
}

/// Stays with a child until it has ended. `forwarded` hears of each signal that is sent on.
pub(super) fn attend(
    process: &Process,
    signals: Blocked,
    pty: Option<&Pty>,
    forwarded: impl Fn(Signal),
) -> Result<ExitStatus> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let _raw = match pty {
        Some(_) => RawMode::enter(stdin.as_fd())?,
        None => None,
    };
    let mut relay = match pty {
        Some(pty) => Some(Relay::new(pty.as_fd(), stdin.as_fd(), stdout.as_fd())?),
        None => None,
    };
    if let Some(pty) = pty {
        copy_size(stdin.as_fd(), pty.as_fd())?;
    }
    loop {
        let ended = wait(process, &signals, relay.as_ref())?;
        while let Some(arrived) = signals.take()? {
            match arrived.signal {
                Signal::CHLD | Signal::PIPE => {}
                Signal::WINCH => {
                    if let Some(pty) = pty {
                        copy_size(stdin.as_fd(), pty.as_fd())?;
                    }
                }
                signal => {
                    process.signal(signal)?;
                    forwarded(signal);
                }
            }
        }
        if let Some(relay) = &mut relay {
            relay.turn()?;
        }
        if ended {
            break;
        }
    }
    if let Some(relay) = &mut relay {
        relay.drain();
    }
    process.reap()?.ok_or_else(|| Error::new(Kind::System, "take the exit status", "another process has taken it"))
}

/// Waits for anything to do. Whether the process has ended.
fn wait(process: &Process, signals: &Blocked, relay: Option<&Relay<'_>>) -> Result<bool> {
    let mut polled = vec![PollFd::new(process, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    let mut limit = None;
    if let Some(relay) = relay {
        limit = relay.watch(&mut polled);
    }
    loop {
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) => return Ok(!polled[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "wait for the container"),
        }
    }
}

/// Bytes between our standard streams and a container's terminal.
struct Relay<'fd> {
    terminal: BorrowedFd<'fd>,
    stdin: BorrowedFd<'fd>,
    stdout: BorrowedFd<'fd>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Standard input may still bring something.
    open: bool,
    /// Nobody inside has the terminal open just now.
    unattended: bool,
    /// Nobody reads our standard output any more; what comes is thrown away, so that the container does not block.
    unread: bool,
}

impl<'fd> Relay<'fd> {
    fn new(terminal: BorrowedFd<'fd>, stdin: BorrowedFd<'fd>, stdout: BorrowedFd<'fd>) -> Result<Self> {
        let operation = || "relay the container's terminal";
        let flags = fcntl_getfl(terminal).context(operation)?;
        fcntl_setfl(terminal, flags | OFlags::NONBLOCK).context(operation)?;
        let (input, output) = (Vec::new(), Vec::new());
        Ok(Self { terminal, stdin, stdout, input, output, open: true, unattended: false, unread: false })
    }

    /// Says what to wait for: each direction reads only when it has written what it had. Returns a time limit where
    /// one is needed: a terminal that nobody has open reports that without end, so it is left alone for a while.
    fn watch<'poll>(&self, polled: &mut Vec<PollFd<'poll>>) -> Option<Timespec>
    where
        'fd: 'poll,
    {
        let mut terminal = PollFlags::empty();
        if self.output.is_empty() {
            terminal |= PollFlags::IN;
        } else {
            polled.push(PollFd::from_borrowed_fd(self.stdout, PollFlags::OUT));
        }
        if !self.input.is_empty() {
            terminal |= PollFlags::OUT;
        } else if self.open {
            polled.push(PollFd::from_borrowed_fd(self.stdin, PollFlags::IN));
        }
        if self.unattended {
            return Some(Timespec { tv_sec: 0, tv_nsec: 50_000_000 });
        }
        if !terminal.is_empty() {
            polled.push(PollFd::from_borrowed_fd(self.terminal, terminal));
        }
        None
    }

    /// Moves what can be moved now without blocking.
    fn turn(&mut self) -> Result<()> {
        self.read_terminal();
        self.write_stdout();
        self.read_stdin();
        self.write_terminal();
        Ok(())
    }

    fn read_terminal(&mut self) {
        if !self.output.is_empty() {
            return;
        }
        let mut buffer = [0_u8; CHUNK];
        match rustix::io::read(self.terminal, &mut buffer) {
            Ok(0) | Err(Errno::IO) => self.unattended = true,
            Ok(count) => {
                self.unattended = false;
                self.output.extend_from_slice(&buffer[..count]);
            }
            Err(Errno::AGAIN | Errno::INTR) => self.unattended = false,
            Err(_) => self.unattended = true,
        }
    }

    fn write_stdout(&mut self) {
        if self.output.is_empty() {
            return;
        }
        if self.unread {
            self.output.clear();
            return;
        }
        if !is_ready(self.stdout, PollFlags::OUT) {
            return;
        }
        match rustix::io::write(self.stdout, &self.output) {
            Ok(count) => drop(self.output.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.unread = true,
        }
    }

    fn read_stdin(&mut self) {
        if !self.open || !self.input.is_empty() || !is_ready(self.stdin, PollFlags::IN) {
            return;
        }
        let mut buffer = [0_u8; CHUNK];
        match rustix::io::read(self.stdin, &mut buffer) {
            Ok(0) => {
                self.open = false;
                self.input.push(END_OF_FILE);
            }
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.open = false,
        }
    }

    fn write_terminal(&mut self) {
        if self.input.is_empty() {
            return;
        }
        match rustix::io::write(self.terminal, &self.input) {
            Ok(count) => drop(self.input.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody inside will read it.
            Err(_) => self.input.clear(),
        }
    }

    /// The last words: what the terminal still holds once the process has ended.
    fn drain(&mut self) {
        loop {
            while !self.output.is_empty() {
                let mut polled = [PollFd::from_borrowed_fd(self.stdout, PollFlags::OUT)];
                if !self.unread && poll(&mut polled, None).is_err() {
                    self.unread = true;
                }
                self.write_stdout();
            }
            self.read_terminal();
            if self.output.is_empty() {
                return;
            }
        }
    }
}

fn is_ready(descriptor: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}
