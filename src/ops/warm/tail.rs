//! The last that a loading program said, for whoever asks why it is not ready.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Result};

/// How many bytes are kept.
const KEPT: usize = 16 << 10;
/// How many lines are told.
const LINES: usize = 5;
/// How many bytes of a line are told.
const WIDTH: usize = 300;
/// As much as is taken at once.
const CHUNK: usize = 16 << 10;
/// How often before somebody else gets a turn.
const TURNS: usize = 8;

/// What a program prints, of which the end is kept.
#[derive(Debug)]
pub(super) struct Tail {
    source: Option<OwnedFd>,
    kept: VecDeque<u8>,
}

impl Tail {
    /// A tail, and where the program prints to.
    ///
    /// # Errors
    /// Those of pipe(2).
    pub(super) fn new() -> Result<(Self, OwnedFd)> {
        let operation = || "make a pipe for the output of a template";
        let (source, sink) = pipe_with(PipeFlags::CLOEXEC).context(operation)?;
        let flags = fcntl_getfl(&source).context(operation)?;
        fcntl_setfl(&source, flags | OFlags::NONBLOCK).context(operation)?;
        Ok((Self { source: Some(source), kept: VecDeque::new() }, sink))
    }

    /// What to wait for, until nobody prints any more.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// Takes what was printed, without waiting. Returns whether more can come.
    pub(super) fn take(&mut self) -> bool {
        let mut chunk = [0; CHUNK];
        for _ in 0..TURNS {
            let Some(source) = &self.source else { return false };
            match rustix::io::read(source, &mut chunk) {
                Ok(count) if count > 0 => self.keep(&chunk[..count]),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => self.source = None,
            }
        }
        true
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
    }

    /// The last lines, in one.
    pub(super) fn last_words(&self) -> String {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LINES));
        last.map(|line| shorten(line)).collect::<Vec<_>>().join("; ")
    }
}

fn shorten(line: &str) -> String {
    let shown: String = line.chars().take(WIDTH).filter(|c| !c.is_control()).collect();
    if line.chars().count() > WIDTH { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn the_end_of_what_was_printed_is_told_in_one_line() {
        let (mut tail, sink) = Tail::new().unwrap();
        let mut sink = File::from(sink);
        for number in 0..2000 {
            writeln!(sink, "line {number}\n").unwrap();
            assert!(tail.take());
        }
        assert!(tail.kept.len() <= KEPT);
        assert_eq!(tail.last_words(), "line 1995; line 1996; line 1997; line 1998; line 1999");
        sink.write_all(&[0x1b, b'x', 0xff]).unwrap();
        sink.write_all("y".repeat(1000).as_bytes()).unwrap();
        drop(sink);
        while tail.take() {}
        let words = tail.last_words();
        assert!(words.ends_with('…') && words.len() < 500 && !words.contains('\x1b'), "{words}");
        assert!(tail.source().is_none());
    }

    #[test]
    fn who_said_nothing_has_no_last_words() {
        let (tail, _sink) = Tail::new().unwrap();
        assert_eq!(tail.last_words(), "");
    }
}
