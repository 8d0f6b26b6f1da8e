//! Those who ask a keeper: a bounded number, none of which keeps it waiting.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::ids::ContainerId;
use crate::sys::channel::{Channel, LIMIT, Listener, Now};
use crate::template::message::{CONNECTIONS, decode, encode};

/// How long somebody may be connected without asking for anything while others wait to be let in.
const PATIENCE: Duration = Duration::from_secs(1);

/// Somebody who asks.
#[derive(Debug)]
pub(super) struct Caller {
    channel: Channel,
    /// When they were last heard, or said something to.
    heard: Instant,
    /// Whether a request of theirs waits for a sandbox.
    pub waits: bool,
    /// Whether they want to hear of every change.
    pub watches: bool,
    /// Containers that go when they go.
    pub attended: Vec<ContainerId>,
}

/// What came from somebody.
#[derive(Debug)]
pub(super) enum Heard<T> {
    /// This, and what came along.
    Message(T, Vec<OwnedFd>),
    /// What is no message of the protocol: why.
    Nonsense(Error),
    /// Nothing yet.
    Nothing,
    /// Nothing more will come.
    End,
}

/// Those who are connected to one socket.
#[derive(Debug)]
pub(super) struct Callers {
    listener: Option<Listener>,
    callers: BTreeMap<u64, Caller>,
    number: u64,
    room: Vec<u8>,
}

impl Callers {
    /// Nobody yet, at this socket.
    pub(super) fn new(listener: Listener) -> Result<Self> {
        listener.never_wait()?;
        Ok(Self { listener: Some(listener), callers: BTreeMap::new(), number: 0, room: vec![0; LIMIT] })
    }

    /// The socket at which they come, as long as anybody is let in.
    pub(super) fn door(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Lets nobody in any more.
    pub(super) fn close_door(&mut self) {
        self.listener = None;
    }

    /// Whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        self.callers.len() < CONNECTIONS
    }

    /// Lets the next one in; `None` if nobody waits. Only root is listened to.
    ///
    /// # Errors
    /// Those of accept(2): there are too many open files.
    pub(super) fn admit(&mut self) -> Result<Option<u64>> {
        loop {
            let Some(channel) = self.listener.as_ref().map(Listener::accept_now).transpose()?.flatten() else {
                return Ok(None);
            };
            if !matches!(channel.peer_user(), Ok(0)) {
                continue;
            }
            self.number += 1;
            let caller = Caller { channel, heard: Instant::now(), waits: false, watches: false, attended: Vec::new() };
            self.callers.insert(self.number, caller);
            return Ok(Some(self.number));
        }
    }

    /// Somebody, if they are still there.
    pub(super) fn get(&mut self, number: u64) -> Option<&mut Caller> {
        self.callers.get_mut(&number)
    }

    /// Takes what somebody says.
    pub(super) fn hear<T: DeserializeOwned>(&mut self, number: u64) -> Heard<T> {
        let Some(caller) = self.callers.get_mut(&number) else { return Heard::Nothing };
        match caller.channel.receive_now(&mut self.room) {
            Ok(Now::Message(received)) => {
                caller.heard = Instant::now();
                match decode(&received.bytes) {
                    Ok(message) => Heard::Message(message, received.descriptors),
                    Err(error) => Heard::Nonsense(error),
                }
            }
            Ok(Now::Nothing) => Heard::Nothing,
            Ok(Now::End) => Heard::End,
            // The message stays where it is, or is lost: nobody could go on from here.
            Err(error) => {
                tracing::debug!("a connection ends: {error}");
                Heard::End
            }
        }
    }

    /// Says something; `false` if it cannot be said now or ever: whoever does not read is not kept.
    pub(super) fn say<T: Serialize>(&mut self, number: u64, message: &T) -> bool {
        let Some(caller) = self.callers.get_mut(&number) else { return false };
        caller.heard = Instant::now();
        encode(message).and_then(|bytes| caller.channel.send_now(&bytes)).unwrap_or_else(|error| {
            tracing::debug!("an answer is not taken: {error}");
            false
        })
    }

    /// Ends a connection; what goes with it.
    pub(super) fn dismiss(&mut self, number: u64) -> Vec<ContainerId> {
        self.callers.remove(&number).map(|caller| caller.attended).unwrap_or_default()
    }

    /// Who is connected, and wants nothing for a while, though others wait.
    pub(super) fn idler(&self, now: Instant) -> Option<u64> {
        let idle = self.callers.iter().filter(|(_, caller)| {
            let free = !caller.waits && !caller.watches && caller.attended.is_empty();
            free && now.saturating_duration_since(caller.heard) >= PATIENCE
        });
        idle.min_by_key(|(_, caller)| caller.heard).map(|(number, _)| *number)
    }

    /// Who wants to hear of every change.
    pub(super) fn watchers(&self) -> Vec<u64> {
        self.callers.iter().filter(|(_, caller)| caller.watches).map(|(number, _)| *number).collect()
    }

    /// Everybody.
    pub(super) fn everybody(&self) -> Vec<u64> {
        self.callers.keys().copied().collect()
    }

    /// How many containers go when somebody goes.
    pub(super) fn attended(&self) -> usize {
        self.callers.values().map(|caller| caller.attended.len()).sum()
    }
}

impl Caller {
    /// When they were last heard, or said something to.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }
}

impl AsFd for Caller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
