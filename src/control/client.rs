//! A caller's end: connects to the daemon, calls, takes answers and the open files that come with them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::SOCKET;
use super::message::{Following, MESSAGE_MAX, Mode, Response, encode_call, error_from_wire};
use super::wire::wait;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::open_path;
use crate::sys::stream::{Sent, Stream};

/// Bytes that are read at once.
const CHUNK: usize = 32 << 10;

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    bytes: Vec<u8>,
    /// Files that came, with the place in `bytes` of the message that they belong to.
    descriptors: Vec<(usize, Vec<OwnedFd>)>,
    patience: Option<Duration>,
}

/// An answer, as it came.
#[derive(Debug)]
pub enum Reply {
    /// What was asked for.
    Answer {
        /// An object.
        parameters: Box<RawValue>,
        /// Files that came along; parameters name them by index.
        descriptors: Vec<OwnedFd>,
        /// Whether another answer follows.
        following: Following,
    },
    /// An error in its place.
    Refusal {
        /// Interface and name.
        name: String,
        /// What it carries, and its words as `message`, also where they came beside.
        parameters: Value,
    },
}

impl Client {
    /// Connects to the daemon of a state root.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no daemon, else those of connect(2).
    pub fn connect(root: &Path) -> Result<Self> {
        let connect = || Stream::connect(open_path(root)?, SOCKET);
        connect().map(Self::over).map_err(|error| {
            let operation = format!("connect to the daemon at {}", quote(root.join(SOCKET)));
            let nobody = error.errno() == Some(Errno::CONNREFUSED.raw_os_error());
            if nobody || error.kind() == Kind::NotFound {
                return Error::new(Kind::NotFound, operation, "nobody listens").next("start 'regen serve'");
            }
            error.during(operation)
        })
    }

    pub(super) fn over(stream: Stream) -> Self {
        Self { stream, bytes: Vec::new(), descriptors: Vec::new(), patience: None }
    }

    /// How long to wait for the next bytes of an answer, or for room for those of a call; for ever if nothing is said.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    /// Calls a method and takes its answer, with the files that come along.
    ///
    /// # Errors
    /// What the daemon answers: errors of regen as they were there, with kind, words and next step.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<(T, Vec<OwnedFd>)> {
        self.send(method, parameters, Mode::Once)?;
        let (answer, descriptors, _) = self.receive()?.parse(method)?;
        Ok((answer, descriptors))
    }

    /// Calls a method that answers more than once, and gives each answer to `each`.
    ///
    /// # Errors
    /// As [`Client::call`], and those of `each`, after which the connection is of no use any more.
    pub fn stream<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        mut each: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        self.send(method, parameters, Mode::More)?;
        loop {
            let (answer, _, following) = self.receive()?.parse(method)?;
            each(answer)?;
            match following {
                Following::Something => {}
                Following::Nothing => return Ok(()),
            }
        }
    }

    /// Sends a call. Answers come in the order of the calls.
    ///
    /// # Errors
    /// For parameters that are no object, or are too large, and those of sendmsg(2). A daemon that has gone is told of
    /// by [`Client::receive`]: it may have said why.
    pub fn send(&mut self, method: &str, parameters: &impl Serialize, mode: Mode) -> Result<()> {
        let parameters = serde_json::to_value(parameters).context(|| format!("call {method}"))?;
        let message = encode_call(method, &parameters, mode)?;
        if message.len() > MESSAGE_MAX {
            let cause = format!("its parameters have {} bytes, at most {MESSAGE_MAX} are possible", message.len());
            return Err(Error::new(Kind::Invalid, format!("call {method}"), cause));
        }
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            match self.stream.send(rest, &[])? {
                Sent::Bytes(count) => rest = &rest[count..],
                Sent::Full => self.await_stream(PollFlags::OUT, &format!("call {method}"))?,
                Sent::Gone => break,
            }
        }
        Ok(())
    }

    /// Waits so long for something of the next answer to come; `false` if nothing did.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn await_reply(&self, limit: Duration) -> Result<bool> {
        Ok(self.bytes.contains(&0) || wait(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(limit))?)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// [`Kind::Damaged`] for what is no answer, else those of recvmsg(2) and of a daemon that has gone.
    pub fn receive(&mut self) -> Result<Reply> {
        let operation = || "read the daemon's answer";
        let mut searched = 0;
        let end = loop {
            if let Some(found) = self.bytes[searched..].iter().position(|byte| *byte == 0) {
                break searched + found;
            }
            searched = self.bytes.len();
            if searched > MESSAGE_MAX {
                return Err(Error::new(Kind::Damaged, operation(), format!("it has more than {MESSAGE_MAX} bytes")));
            }
            self.fill()?;
        };
        let mut message = self.bytes.split_off(end + 1);
        std::mem::swap(&mut message, &mut self.bytes);
        let descriptors = self.descriptors_before(message.len());
        let response: Response = serde_json::from_slice(&message[..end])
            .map_err(|error| Error::new(Kind::Damaged, operation(), error.to_string()))?;
        let following = response.following();
        let empty = || RawValue::from_string("{}".to_owned()).context(operation);
        let parameters = response.parameters.map_or_else(empty, Ok)?;
        let Some(name) = response.error else { return Ok(Reply::Answer { parameters, descriptors, following }) };
        let mut parameters: Value = serde_json::from_str(parameters.get()).context(operation)?;
        if let (Some(message), Some(object)) = (response.message, parameters.as_object_mut()) {
            object.insert("message".to_owned(), message.into());
        }
        Ok(Reply::Refusal { name, parameters })
    }

    fn await_stream(&self, what: PollFlags, operation: &str) -> Result<()> {
        if wait(&mut [PollFd::new(&self.stream, what)], self.patience)? {
            return Ok(());
        }
        let waited = self.patience.unwrap_or_default().as_secs_f64();
        Err(Error::new(Kind::System, operation, format!("nothing has happened for {waited} s")))
    }

    fn fill(&mut self) -> Result<()> {
        let mut chunk = [0; CHUNK];
        self.await_stream(PollFlags::IN, "read the daemon's answer")?;
        let (count, descriptors) = self.stream.receive(&mut chunk)?;
        if count == 0 {
            let cause = "it has closed the connection";
            return Err(Error::new(Kind::System, "read the daemon's answer", cause).next("see the daemon's log"));
        }
        let chunk = &chunk[..count];
        if !descriptors.is_empty() {
            // They came with the first byte of a message, and that is the last one that begins in here.
            let whole = chunk.strip_suffix(&[0]).unwrap_or(chunk);
            let begin = whole.iter().rposition(|byte| *byte == 0).map_or(0, |nul| nul + 1);
            self.descriptors.push((self.bytes.len() + begin, descriptors));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// Takes the files of a message that was cut off the front and had this length.
    fn descriptors_before(&mut self, length: usize) -> Vec<OwnedFd> {
        let mut taken = Vec::new();
        for (place, descriptors) in std::mem::take(&mut self.descriptors) {
            match place.checked_sub(length) {
                Some(place) => self.descriptors.push((place, descriptors)),
                None => taken.extend(descriptors),
            }
        }
        taken
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Reply {
    /// What it says, with the files that came along.
    ///
    /// # Errors
    /// What the daemon answers: errors of regen as they were there, with kind, words and next step.
    pub fn parse<T: DeserializeOwned>(self, method: &str) -> Result<(T, Vec<OwnedFd>, Following)> {
        match self {
            Self::Refusal { name, parameters } => Err(error_from_wire(&name, &parameters)),
            Self::Answer { parameters, descriptors, following } => {
                let answer = serde_json::from_str(parameters.get()).map_err(|error| {
                    Error::new(Kind::Damaged, format!("read the answer of {method}"), error.to_string())
                })?;
                Ok((answer, descriptors, following))
            }
        }
    }
}
