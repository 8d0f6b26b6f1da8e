//! The daemon's end of one connection: messages in, messages out, and how long that may take.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::interface::Wake;
use super::limit::{Limits, Share};
use super::message::Fault;
use crate::error::{Context, Result};
use crate::sys::stream::{Read, Sent, Stream};

/// Bytes that are read at once.
const CHUNK: usize = 8 << 10;

/// The daemon's end of one connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    /// Readable for good once the daemon wants its connections to come to an end.
    stop: Arc<OwnedFd>,
    limits: Limits,
}

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A message, without its NUL.
    Message(Vec<u8>),
    /// Nothing, and nothing will.
    End,
    /// Nothing yet, and the daemon wants to stop.
    Stop,
}

/// What was read and is no whole message yet, or comes after one.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// So many of them are known to have no NUL.
    searched: usize,
    share: Share,
}

impl Inbox {
    pub(super) fn new(share: Share) -> Self {
        Self { bytes: Vec::new(), searched: 0, share }
    }

    /// The first whole message.
    fn take(&mut self) -> Option<Vec<u8>> {
        let Some(found) = self.bytes[self.searched..].iter().position(|byte| *byte == 0) else {
            self.searched = self.bytes.len();
            return None;
        };
        // What follows it is less than what is read at once.
        let rest = self.bytes.split_off(self.searched + found + 1);
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.pop();
        self.searched = 0;
        Some(message)
    }

    fn add(&mut self, bytes: &[u8], limits: &Limits) -> std::result::Result<(), Fault> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > limits.message && !self.bytes[..=limits.message].contains(&0) {
            let message = format!("a call has at most {} bytes", limits.message);
            let parameters = serde_json::json!({"message": message, "limit": limits.message});
            return Err(Fault::Closing { name: "MessageTooLarge", parameters });
        }
        if self.share.grow_to(self.bytes.len()) {
            return Ok(());
        }
        Err(Fault::closing("OutOfResources", "too many large calls are being received; try again later"))
    }
}

impl Wire {
    pub(super) fn new(stream: Stream, stop: Arc<OwnedFd>, limits: Limits) -> Self {
        Self { stream, stop, limits }
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// A fault after which the connection is to be closed.
    pub(super) fn next(&self, inbox: &mut Inbox) -> std::result::Result<Incoming, Fault> {
        // The message before is done with.
        inbox.share.shrink_to(inbox.bytes.len());
        loop {
            if let Some(message) = inbox.take() {
                return Ok(Incoming::Message(message));
            }
            // Who has sent half a message is to finish it, also when we want to stop.
            let (idle, limit) = (inbox.bytes.is_empty(), Some(self.limits.silence));
            let mut sources = vec![PollFd::new(&self.stream, PollFlags::IN)];
            if idle {
                sources.push(PollFd::new(&self.stop, PollFlags::IN));
            }
            if !wait(&mut sources, if idle { None } else { limit })? {
                let message = format!("nothing came for {} s in the middle of a call", self.limits.silence.as_secs());
                return Err(Fault::closing("MessageIncomplete", message));
            }
            if idle && !sources[1].revents().is_empty() {
                return Ok(Incoming::Stop);
            }
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk)? {
                Read::Bytes(count) => inbox.add(&chunk[..count], &self.limits)?,
                Read::Nothing => {}
                Read::End => return Ok(Incoming::End),
            }
        }
    }

    /// Sends a message, with descriptors.
    ///
    /// # Errors
    /// [`Fault::Gone`] if the other end is, or does not read.
    pub(super) fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::result::Result<(), Fault> {
        let (mut rest, mut beside) = (message, descriptors);
        while !rest.is_empty() {
            match self.stream.send(rest, beside)? {
                Sent::Bytes(count) => (rest, beside) = (&rest[count..], &[]),
                Sent::Gone => return Err(Fault::Gone),
                Sent::Full => {
                    let mut sources = [PollFd::new(&self.stream, PollFlags::OUT)];
                    if !wait(&mut sources, Some(self.limits.silence))? {
                        return Err(Fault::Gone);
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for something to read from `source`, as long as caller and daemon are there.
    pub(super) fn wait(&self, source: BorrowedFd<'_>, limit: Option<Duration>) -> std::result::Result<Wake, Fault> {
        let mut sources =
            [self.hang_up(), PollFd::from_borrowed_fd(source, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        if !wait(&mut sources, limit)? {
            return Ok(Wake::TimedOut);
        }
        let gone = [0, 2].iter().any(|index| !sources[*index].revents().is_empty());
        if gone { Err(Fault::Gone) } else { Ok(Wake::Ready) }
    }

    /// The same for several, without an end.
    pub(super) fn wait_any(&self, sources: &[BorrowedFd<'_>]) -> std::result::Result<(), Fault> {
        let others = sources.iter().map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN));
        let mut sources: Vec<_> =
            [self.hang_up(), PollFd::new(&self.stop, PollFlags::IN)].into_iter().chain(others).collect();
        wait(&mut sources, None)?;
        if sources[..2].iter().all(|source| source.revents().is_empty()) { Ok(()) } else { Err(Fault::Gone) }
    }

    /// Waits so long, as long as caller and daemon are there.
    pub(super) fn sleep(&self, time: Option<Duration>) -> std::result::Result<(), Fault> {
        let mut sources = [self.hang_up(), PollFd::new(&self.stop, PollFlags::IN)];
        if wait(&mut sources, time)? { Err(Fault::Gone) } else { Ok(()) }
    }

    /// Waits for something to read from `source`, as long as the caller is there: a daemon that wants to stop waits for it.
    pub(super) fn wait_on(&self, source: BorrowedFd<'_>) -> std::result::Result<(), Fault> {
        let mut sources = [self.hang_up(), PollFd::from_borrowed_fd(source, PollFlags::IN)];
        wait(&mut sources, None)?;
        if sources[0].revents().is_empty() { Ok(()) } else { Err(Fault::Gone) }
    }

    /// No event but those that are always told: the other end is gone. What it sends meanwhile is for later.
    fn hang_up(&self) -> PollFd<'_> {
        PollFd::new(&self.stream, PollFlags::empty())
    }
}

/// Waits for one of these; `false` if the time is over before.
pub(super) fn wait(sources: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<bool> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    loop {
        match poll(sources, limit.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "wait for a connection"),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
