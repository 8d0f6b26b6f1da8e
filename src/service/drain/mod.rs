//! What an instance still has to do, seen from outside.
//!
//! No look takes part in a connection: a descriptor of one, once it is duplicated, can keep a program waiting for events
//! that are another's. The queues of listeners are asked through descriptors that the keeper has anyway, and connections
//! are known by the numbers of sockets, in `/proc/PID/fd` of the instance and in the tables of its network.
//!
//! One look proves nothing: a connection may be on its way from a queue to the program. And before the queue there is the
//! handshake, which belongs to the listener that got its first packet, whoever gets what is new since: see [`Handshakes`].

mod connection;
mod handshake;

pub use handshake::Handshakes;

use super::address::Address;
use crate::error::Result;
use crate::sys::socket::{Family, Socket, Transport};

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What waits to be accepted, and datagram sockets in which something waits.
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

/// Looks at an instance: at its sockets, each with the address that it is for, and at all its processes.
///
/// Datagram sockets without a port are passed over: instances share them, so what waits there may be another's.
///
/// # Errors
/// Those of asking sockets and of reading /proc: EACCES for processes that the caller may not trace.
pub fn look<'a>(sockets: impl IntoIterator<Item = (&'a Address, &'a Socket)>, processes: &[i32]) -> Result<Look> {
    let mut waiting = 0;
    let mut places = Vec::new();
    for (_, socket) in sockets {
        let (family, transport) = (socket.family()?, socket.transport()?);
        waiting += match (family, transport) {
            (Some(Family::Unix), Some(Transport::Datagram)) => 0,
            (Some(Family::V4 | Family::V6), Some(Transport::Stream)) if socket.is_listening()? => {
                u64::from(socket.queue()?.waiting)
            }
            _ => u64::from(socket.has_input()?),
        };
        if transport != Some(Transport::Datagram) {
            places.push(socket.local()?);
        }
    }
    Ok(Look { waiting, connections: connection::count(&places, processes)? })
}

#[cfg(test)]
mod tests;
