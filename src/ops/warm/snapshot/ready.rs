//! Waiting until a program says that it is ready.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};

use crate::error::{Context, Error, Kind, Result};
use crate::service::ready::notify::Socket;
use crate::sys::process::Process;

/// What a line of standard output says that stands for the same message on the notify socket.
const LINE: &[u8] = b"READY=1";
/// How much of what it prints is kept, for the error message.
const TAIL: usize = 4096;
/// The longest line that is shown of it.
const SHOWN: usize = 300;

/// A program that is to become ready, as far as it is heard.
#[derive(Debug)]
pub(super) struct Watch {
    pub notify: Socket,
    /// The near ends of its standard output and error; they never block.
    pub output: [OwnedFd; 2],
}

/// What was printed last, on one of the streams.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Whether a whole line says that the program is ready.
    fn add(&mut self, bytes: &[u8]) -> bool {
        let from = self.0.iter().rposition(|byte| *byte == b'\n').map_or(0, |index| index + 1);
        self.0.extend_from_slice(bytes);
        let complete = self.0.iter().rposition(|byte| *byte == b'\n').unwrap_or(from).max(from);
        let mut lines = self.0.get(from..complete).unwrap_or_default().split(|byte| *byte == b'\n');
        let ready = lines.any(|line| line.strip_suffix(b"\r").unwrap_or(line) == LINE);
        let excess = self.0.len().saturating_sub(TAIL);
        self.0.drain(..excess);
        ready
    }

    fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().rfind(|line| !line.trim().is_empty())?;
        Some(line.trim().chars().filter(|c| !c.is_control()).take(SHOWN).collect())
    }
}

impl Watch {
    /// Waits until the program says `READY=1`: on its notify socket, or as a line of its standard output.
    ///
    /// # Errors
    /// [`Kind::State`] if it ends before, or the time is over: with the last line that it printed.
    pub(super) fn wait(&self, process: &Process, limit: Duration) -> Result<()> {
        let operation = "wait until its program is ready";
        let mut deadline = Instant::now() + limit;
        let mut tails = [Tail::default(), Tail::default()];
        let fail = |cause: String, tails: &[Tail; 2]| {
            let said = tails[1].last_line().or_else(|| tails[0].last_line());
            let cause = said.map_or(cause.clone(), |line| format!("{cause}; it said '{line}'"));
            Err(Error::new(Kind::State, operation, cause)
                .next("let it say READY=1 by sd_notify(3), or in a line of its standard output"))
        };
        loop {
            let (ended, print) = self.look(process, deadline)?;
            while let Some(said) = self.notify.hear()? {
                if said.ready {
                    return Ok(());
                }
                deadline = said.extend.map_or(deadline, |time| deadline.max(Instant::now() + time));
            }
            for (stream, tail) in self.output.iter().zip(&mut tails) {
                if print && drain(stream, tail)? {
                    return Ok(());
                }
            }
            if ended {
                let how = process.reap()?.map_or_else(String::new, |status| format!(" {status}"));
                return fail(format!("it ended{how} before"), &tails);
            }
            if Instant::now() >= deadline {
                return fail(format!("it was not within {} s", limit.as_secs_f32()), &tails);
            }
        }
    }

    /// Waits for anything. Whether the program has ended, and whether it may have printed something.
    fn look(&self, process: &Process, deadline: Instant) -> Result<(bool, bool)> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut polled = vec![PollFd::new(process, PollFlags::IN), PollFd::new(&self.notify, PollFlags::IN)];
        polled.extend(self.output.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
        match poll(&mut polled, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "wait for its program"),
        }
        let came = |index: usize| polled.get(index).is_some_and(|one| !one.revents().is_empty());
        // Of a stream that it has closed there is nothing to wait for, but its own end comes soon or never.
        let closed = |index: usize| polled.get(index).is_some_and(|one| one.revents() == PollFlags::HUP);
        if closed(2) || closed(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok((came(0), came(0) || came(2) || came(3)))
    }
}

/// Reads what is there. Whether it says that the program is ready.
fn drain(stream: impl AsFd, tail: &mut Tail) -> Result<bool> {
    let mut ready = false;
    let mut chunk = [0; TAIL];
    loop {
        match read(&stream, &mut chunk) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(ready),
            Ok(count) => ready |= tail.add(&chunk[..count]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "read what its program prints"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_says_it_however_it_arrives() {
        let ready = |parts: &[&str]| {
            let mut tail = Tail::default();
            parts.iter().any(|part| tail.add(part.as_bytes()))
        };
        assert!(ready(&["READY=1\n"]) && ready(&["warm\nREA", "DY=1\r", "\n"]));
        assert!(ready(&[&"x".repeat(TAIL * 2), "\nREADY=1\n"]));
        for other in ["READY=1", "NOT READY=1\n", "READY=10\n", "READY=1 \n"] {
            assert!(!ready(&[other]), "{other:?}");
        }
    }

    #[test]
    fn the_last_line_is_shown_without_what_moves_a_terminal() {
        let mut tail = Tail::default();
        tail.add(b"first\nError: \x1b[31mno such class\n\n");
        assert_eq!(tail.last_line().unwrap(), "Error: [31mno such class");
        assert_eq!(Tail::default().last_line(), None);
    }
}
