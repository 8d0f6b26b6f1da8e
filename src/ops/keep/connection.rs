//! Those who ask: any number of connections, none of which keeps the keeper waiting.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::error::{Context, Result};
use crate::service::message::{Command, Reply};
use crate::sys::channel::Channel;

/// Somebody who asks.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Channel,
    /// Whether they want to hear of every change.
    pub watches: bool,
    /// Whether there is nothing more to hear or say.
    pub ended: bool,
}

/// What came over a connection.
#[derive(Debug)]
pub(super) enum Heard {
    /// A command.
    Command(Command),
    /// What is no command of this protocol: why.
    Nonsense(String),
    /// Nothing more will come.
    End,
}

impl Connection {
    /// One that was just accepted.
    pub(super) fn new(channel: Channel) -> Result<Self> {
        let operation = || "let no message wait";
        let flags = fcntl_getfl(&channel).context(operation)?;
        fcntl_setfl(&channel, flags | OFlags::NONBLOCK).context(operation)?;
        Ok(Self { channel, watches: false, ended: false })
    }

    /// Takes the next message, when there is something to read. Descriptors that come along are closed.
    pub(super) fn hear(&self) -> Heard {
        match self.channel.receive() {
            Ok(Some(received)) => match serde_json::from_slice(&received.bytes) {
                Ok(command) => Heard::Command(command),
                Err(error) => Heard::Nonsense(error.to_string()),
            },
            Ok(None) => Heard::End,
            Err(error) => {
                tracing::debug!("a connection ends: {error}");
                Heard::End
            }
        }
    }

    /// Says something; `false` if it cannot be said now or ever: whoever does not read is not kept.
    pub(super) fn say(&self, reply: &Reply, sockets: &[BorrowedFd<'_>]) -> bool {
        let said = serde_json::to_vec(reply).context(|| "answer").and_then(|text| self.channel.send(&text, sockets));
        said.unwrap_or_else(|error| {
            tracing::debug!("an answer is not taken: {error}");
            false
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
