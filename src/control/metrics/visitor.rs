//! One who scrapes: a connection that is never waited for.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::http::{HEAD_MAX, Status, Wanted, page, parse_head, refusal};

/// How long a request may take to arrive.
const READING: Duration = Duration::from_secs(5);
/// How long an answer may take to be read.
const WRITING: Duration = Duration::from_secs(10);
/// How long to wait for the other side to close: closed before, it might not see the end of the answer.
const LEAVING: Duration = Duration::from_secs(1);
/// Bytes that are thrown away meanwhile.
const DRAINED: usize = 64 << 10;

/// A connection that is closed in two steps.
pub(super) trait Stream: Read + Write + AsFd + fmt::Debug + Send {
    /// Says that nothing more comes.
    fn finish(&self);
}

impl Stream for TcpStream {
    fn finish(&self) {
        // Whoever is gone needs no end.
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Stream for UnixStream {
    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Visitor {
    stream: Box<dyn Stream>,
    state: State,
    until: Instant,
}

/// How far it is.
#[derive(Debug)]
enum State {
    Reading(Vec<u8>),
    Writing { bytes: Vec<u8>, sent: usize },
    Leaving { drained: usize },
}

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It does.
    Stay,
    /// It is over.
    Go,
}

impl Visitor {
    /// Somebody who has just come, on a connection that does not block.
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, state: State::Reading(Vec::new()), until: Instant::now() + READING }
    }

    /// What to wait for.
    pub(super) fn events(&self) -> PollFlags {
        match self.state {
            State::Reading(_) | State::Leaving { .. } => PollFlags::IN,
            State::Writing { .. } => PollFlags::OUT,
        }
    }

    /// When its time is over.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Goes as far as it can without waiting.
    pub(super) fn advance(&mut self, numbers: &mut dyn FnMut() -> Option<String>) -> Next {
        let gone = |error: &std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Next::Stay,
            _ => Next::Go,
        };
        loop {
            match &mut self.state {
                State::Reading(head) => {
                    let mut room = [0; HEAD_MAX];
                    match self.stream.read(&mut room[head.len()..]) {
                        Ok(0) => return Next::Go,
                        Ok(length) => head.extend_from_slice(&room[head.len()..][..length]),
                        Err(error) => return gone(&error),
                    }
                    let bytes = match parse_head(head) {
                        Wanted::Unknown => continue,
                        Wanted::Page => numbers().map_or_else(|| refusal(Status::Failed), |text| page(&text)),
                        Wanted::Refusal(status) => refusal(status),
                    };
                    self.enter(State::Writing { bytes, sent: 0 }, WRITING);
                }
                State::Writing { bytes, sent } => match self.stream.write(&bytes[*sent..]) {
                    Ok(length) => *sent += length,
                    Err(error) => return gone(&error),
                },
                State::Leaving { drained } => match self.stream.read(&mut [0; 4096]) {
                    Ok(0) => return Next::Go,
                    Ok(length) if *drained + length > DRAINED => return Next::Go,
                    Ok(length) => *drained += length,
                    Err(error) => return gone(&error),
                },
            }
            if let State::Writing { bytes, sent } = &self.state
                && *sent == bytes.len()
            {
                self.stream.finish();
                self.enter(State::Leaving { drained: 0 }, LEAVING);
            }
        }
    }

    fn enter(&mut self, state: State, time: Duration) {
        self.state = state;
        self.until = Instant::now() + time;
    }
}

impl AsFd for Visitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Visitor, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (Visitor::new(Box::new(ours)), theirs)
    }

    fn answer(visitor: &mut Visitor, theirs: &mut UnixStream, numbers: &str) -> String {
        let mut text = String::new();
        let mut room = [0; 4096];
        loop {
            let next = visitor.advance(&mut || Some(numbers.to_owned()));
            match theirs.read(&mut room).unwrap() {
                0 => break,
                length => text.push_str(std::str::from_utf8(&room[..length]).unwrap()),
            }
            assert_eq!(next, Next::Stay, "it was cut off after {text}");
        }
        text
    }

    #[test]
    fn a_request_may_come_in_pieces_and_an_answer_be_longer_than_a_buffer() {
        let (mut visitor, mut theirs) = pair();
        assert_eq!(visitor.advance(&mut || panic!("nobody has asked")), Next::Stay);
        theirs.write_all(b"GET /metrics HT").unwrap();
        assert_eq!(visitor.advance(&mut || panic!("nobody has asked")), Next::Stay);
        theirs.write_all(b"TP/1.1\r\n\r\n").unwrap();
        let long = "x".repeat(4 << 20);
        let text = answer(&mut visitor, &mut theirs, &long);
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with(&long));
        assert_eq!(visitor.advance(&mut || None), Next::Stay, "the other side may still look");
        drop(theirs);
        assert_eq!(visitor.advance(&mut || None), Next::Go);
    }

    #[test]
    fn nobody_sends_without_end() {
        let (mut visitor, mut theirs) = pair();
        theirs.write_all(&[b'a'; HEAD_MAX + 1]).unwrap();
        let text = answer(&mut visitor, &mut theirs, "");
        assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
        let mut next = Next::Stay;
        for _ in 0..100 {
            let _ = theirs.write_all(&[b'a'; 4096]);
            next = visitor.advance(&mut || None);
        }
        assert_eq!(next, Next::Go);
    }

    #[test]
    fn numbers_that_cannot_be_had_are_an_error() {
        let (mut visitor, mut theirs) = pair();
        theirs.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        visitor.advance(&mut || None);
        let mut text = vec![0; 12];
        theirs.read_exact(&mut text).unwrap();
        assert_eq!(text, b"HTTP/1.1 500");
    }
}
