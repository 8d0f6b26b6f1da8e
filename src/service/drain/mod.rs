//! What an instance still has to do, seen from outside.
//!
//! No look takes part in a connection: a descriptor of one, once it is duplicated, can keep a program waiting for events
//! that are another's. The queues of listeners are asked through descriptors that the keeper has anyway, and connections
//! are known by the numbers of sockets, in `/proc/PID/fd` of the instance and in the tables of its network.
//!
//! One look proves nothing: a connection may be on its way from a queue to the program. And before the queue there is the
//! handshake, which belongs to the listener that got its first packet, whoever gets what is new since: see `handshake`.

mod connection;
mod handshake;

use std::time::Instant;

use self::handshake::Handshakes;
use super::address::Address;
use crate::error::Result;
use crate::sys::socket::{self, Family, Socket, Transport};

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What waits to be accepted or is about to, and datagram sockets in which something waits.
    pub waiting: u64,
    /// Connections that the program has open.
    pub connections: u64,
}

impl Look {
    /// How much there is to do in all; 0 for an instance that is quiet.
    #[must_use]
    pub fn total(self) -> u64 {
        self.waiting.saturating_add(self.connections)
    }
}

/// Looks at an instance, one after the other, from the moment on when what is new goes elsewhere.
#[derive(Debug, Default)]
pub struct Inspection {
    handshakes: Option<Handshakes>,
}

impl Inspection {
    /// Looks at its sockets, each with the address that it is for, and at all its processes.
    ///
    /// Datagram sockets without a port are passed over: instances share them, so what waits there may be another's.
    ///
    /// # Errors
    /// Those of asking sockets and of reading /proc: EACCES for processes that the caller may not trace.
    pub fn look<'a>(
        &mut self,
        sockets: impl IntoIterator<Item = (&'a Address, &'a Socket)>,
        processes: &[i32],
        now: Instant,
    ) -> Result<Look> {
        let sockets: Vec<&Socket> = sockets.into_iter().map(|(_, socket)| socket).collect();
        let places = places_of(&sockets)?;
        // In the order that connections go: what was not here yet is found there, not passed by.
        let opening = match &mut self.handshakes {
            Some(handshakes) => handshakes.left(&places, processes, now)?,
            none => none.insert(Handshakes::under_way(&places, processes, now)?).count(),
        };
        let mut waiting = opening;
        for socket in sockets {
            waiting += count_waiting(socket)?;
        }
        Ok(Look { waiting, connections: connection::count(&places, processes)? })
    }
}

fn places_of(sockets: &[&Socket]) -> Result<Vec<socket::Address>> {
    let mut places = Vec::new();
    for socket in sockets {
        if socket.transport()? != Some(Transport::Datagram) {
            places.push(socket.local()?);
        }
    }
    Ok(places)
}

fn count_waiting(socket: &Socket) -> Result<u64> {
    Ok(match (socket.family()?, socket.transport()?) {
        (Some(Family::Unix), Some(Transport::Datagram)) => 0,
        (Some(Family::V4 | Family::V6), Some(Transport::Stream)) if socket.is_listening()? => {
            u64::from(socket.queue()?.waiting)
        }
        _ => u64::from(socket.has_input()?),
    })
}

#[cfg(test)]
mod tests;
