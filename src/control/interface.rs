//! What is behind the socket: interfaces, their methods, and what a method sees of the call.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::message::{Fault, Following, Mode, encode_answer, parse_parameters};
use super::peer::{Access, Peer};
use super::wire::Wire;
use crate::error::Context;

/// A set of methods under one name. It is called by many threads at once.
///
/// A method may take as long as it needs, and must hold nothing that others wait for while it answers: a caller may be
/// slow to read. When the daemon ends or is replaced, methods that wait in [`Call::wait`] are told; the others have a few
/// seconds, and are then cut off in the middle, as by a crash.
pub trait Interface: fmt::Debug + Send + Sync {
    /// Its name: `run.regen.Service`.
    fn name(&self) -> &'static str;

    /// Its description in varlink's language.
    fn description(&self) -> &'static str;

    /// What a caller has to be allowed for a method; `None` if there is no such method.
    fn access(&self, method: &str) -> Option<Access>;

    /// From where a method can be called. Unless an interface says otherwise, other nodes may look, and no more; the
    /// interfaces by which nodes work for each other say otherwise.
    fn reach(&self, method: &str) -> Reach {
        match self.access(method) {
            Some(Access::Read) => Reach::Everywhere,
            Some(Access::All | Access::Nothing) | None => Reach::Local,
        }
    }

    /// Does what a method says. Called for methods that [`Interface::access`] knows, by those who may.
    ///
    /// # Errors
    /// What the caller is told in place of an answer.
    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault>;
}

/// From where a method can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// From this machine.
    Local,
    /// From this machine, and from other nodes.
    Everywhere,
}

/// One call of a method.
#[derive(Debug)]
pub struct Call<'a> {
    pub(super) method: &'a str,
    pub(super) parameters: &'a str,
    pub(super) mode: Mode,
    pub(super) peer: &'a Peer,
    pub(super) wire: &'a Wire,
}

/// The last, or only, answer to a call.
#[derive(Debug)]
pub struct Answer {
    pub(super) parameters: Box<RawValue>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Why [`Call::wait`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// There is something to read.
    Ready,
    /// The time is over.
    TimedOut,
}

impl Call<'_> {
    /// The method's name, without the interface's.
    #[must_use]
    pub fn method(&self) -> &str {
        self.method
    }

    /// Who calls.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.peer
    }

    /// How often the caller wants to be answered.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The parameters. Those that the method does not know are passed over.
    ///
    /// # Errors
    /// [`Fault::InvalidParameter`]
    pub fn parameters<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Fault> {
        parse_parameters(self.parameters)
    }

    /// For methods that are of no use if they answer once.
    ///
    /// # Errors
    /// [`Fault::ExpectedMore`]
    pub fn expect_more(&self) -> Result<(), Fault> {
        match self.mode {
            Mode::More => Ok(()),
            Mode::Once | Mode::Oneway => Err(Fault::ExpectedMore),
        }
    }

    /// Sends an answer after which others follow. Callers who did not ask for more than one are not sent it.
    ///
    /// # Errors
    /// [`Fault::Gone`] if the caller is, or does not read.
    pub fn send(&self, parameters: &impl Serialize) -> Result<(), Fault> {
        match self.mode {
            Mode::More => self.wire.send(&encode_answer(parameters, Following::Something)?, &[]),
            Mode::Once | Mode::Oneway => Ok(()),
        }
    }

    /// Waits until there is something to read from `source`.
    ///
    /// # Errors
    /// [`Fault::Gone`] if the caller goes away meanwhile, or the daemon does: the method then ends.
    pub fn wait(&self, source: impl AsFd, limit: Option<Duration>) -> Result<Wake, Fault> {
        self.wire.wait(source.as_fd(), limit)
    }

    /// Waits until there is something to read from one of these.
    ///
    /// # Errors
    /// As [`Call::wait`].
    pub fn wait_any(&self, sources: &[BorrowedFd<'_>]) -> Result<(), Fault> {
        self.wire.wait_any(sources)
    }

    /// Waits so long.
    ///
    /// # Errors
    /// As [`Call::wait`].
    pub fn sleep(&self, time: Option<Duration>) -> Result<(), Fault> {
        self.wire.sleep(time)
    }

    /// The same for what is about to be over: a daemon that ends or is replaced gives it some time, as it does for methods that
    /// do not wait.
    ///
    /// # Errors
    /// [`Fault::Gone`] if the caller goes away meanwhile.
    pub fn wait_on(&self, source: impl AsFd) -> Result<(), Fault> {
        self.wire.wait_on(source.as_fd())
    }
}

impl Answer {
    /// An answer: an object.
    ///
    /// # Errors
    /// [`Fault::Own`] for what JSON cannot say.
    pub fn new(parameters: &impl Serialize) -> Result<Self, Fault> {
        let parameters = to_raw_value(parameters).context(|| "write an answer")?;
        Ok(Self { parameters, descriptors: Vec::new() })
    }

    /// With an open file. Answers say by index which they mean: the first is 0.
    #[must_use]
    pub fn with_descriptor(mut self, descriptor: OwnedFd) -> Self {
        self.descriptors.push(descriptor);
        self
    }

    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(OwnedFd::as_fd).collect()
    }
}
