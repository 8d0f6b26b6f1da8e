//! Sockets of services: made, bound, listening, asked what waits in them, and taken over from other programs.
//!
//! A [`Socket`] is one of ours or a duplicate of somebody else's: both are one open file with one set of options, so what
//! is set here holds for the program that made it.

mod address;
mod file;
mod option;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, Uid, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

pub use self::address::{Address, PATH_LIMIT};
pub use self::option::{Rights, copy_options};
use crate::error::{Context, Error, Kind, Result};

/// The kind of addresses that a socket takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// AF_INET
    V4,
    /// AF_INET6
    V6,
    /// AF_UNIX
    Unix,
}

/// What goes through a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// SOCK_STREAM: connections that carry bytes.
    Stream,
    /// SOCK_DGRAM: single messages, no connections.
    Datagram,
    /// SOCK_SEQPACKET: connections that keep messages apart (unix only).
    SeqPacket,
}

/// How full the accept queue of a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Connections that are established and wait to be accepted.
    pub waiting: u32,
    /// How many may wait.
    pub backlog: u32,
}

/// A socket by descriptor, which is close-on-exec.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A new one without an address. One of version 6 takes connections of version 6 only (`IPV6_V6ONLY`), so that an
    /// address of version 4 stays free for others; [`Socket::take_both_versions`] undoes that before it is bound.
    ///
    /// # Errors
    /// Those of socket(2): EAFNOSUPPORT where the kernel has no IPv6.
    pub fn new(family: Family, transport: Transport) -> Result<Self> {
        let operation = || format!("make a socket ({})", describe(family, transport));
        let (domain, kind) = (domain_of(family), type_of(transport));
        let socket = socket_with(domain, kind, SocketFlags::CLOEXEC, None).context(operation)?;
        if family == Family::V6 {
            sockopt::set_ipv6_v6only(&socket, true).context(operation)?;
        }
        Ok(Self(socket))
    }

    /// One of version 6 takes connections of version 4 too, as mapped addresses. Before it is bound.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn take_both_versions(&self) -> Result<()> {
        sockopt::set_ipv6_v6only(&self.0, false).context(|| "let a socket take both versions of IP")
    }

    /// Whether it takes connections of version 4 on an address of version 6.
    ///
    /// # Errors
    /// Those of getsockopt(2), such as that of a socket of another family.
    pub fn takes_both_versions(&self) -> Result<bool> {
        sockopt::ipv6_v6only(&self.0).map(|only| !only).context(|| "ask a socket for its versions of IP")
    }

    /// Sets `SO_REUSEPORT`: sockets of one owner that have it share an address. It may also be set on one that listens;
    /// the next one that is bound to its address then joins it.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn share_port(&self) -> Result<()> {
        sockopt::set_socket_reuseport(&self.0, true).context(|| "let a socket share its port")
    }

    /// Whether it has `SO_REUSEPORT`.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn shares_port(&self) -> Result<bool> {
        sockopt::socket_reuseport(&self.0).context(|| "ask whether a socket shares its port")
    }

    /// Sets `SO_REUSEADDR`: connections do not keep the port from the next listener. A connection has the option from
    /// the listener that it came to.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn reuse_address(&self) -> Result<()> {
        sockopt::set_socket_reuseaddr(&self.0, true).context(|| "let a socket reuse its address")
    }

    /// Whether it has `SO_REUSEADDR`.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn reuses_address(&self) -> Result<bool> {
        sockopt::socket_reuseaddr(&self.0).context(|| "ask whether a socket reuses its address")
    }

    /// Makes root the owner of the socket. The kernel lets only sockets of one owner share a port, and the owner is
    /// that of the open file, not the user that opened it: after this call sockets of several users share one.
    ///
    /// # Errors
    /// Those of fchown(2): EPERM for who is not root.
    pub fn give_to_root(&self) -> Result<()> {
        rustix::fs::fchown(&self.0, Some(Uid::ROOT), None).context(|| "make root the owner of a socket")
    }

    /// Whether a call on it returns at once instead of waiting (`O_NONBLOCK`, for all who share it).
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn set_nonblocking(&self) -> Result<()> {
        let operation = || "let no call on a socket wait";
        let flags = fcntl_getfl(&self.0).context(operation)?;
        fcntl_setfl(&self.0, flags | OFlags::NONBLOCK).context(operation)
    }

    /// Gives it an address. A datagram socket receives from now on.
    ///
    /// # Errors
    /// Those of bind(2), of which callers decide by [`Error::errno`]: EADDRINUSE, EACCES for a port below 1024,
    /// EADDRNOTAVAIL for an address that this host does not have.
    pub fn bind(&self, address: &Address) -> Result<()> {
        let operation = || format!("bind a socket to {address}");
        address.apply(operation, |address| rustix::net::bind(&self.0, address))
    }

    /// Takes connections from now on, of which `backlog` may wait (the kernel takes no more than
    /// `net.core.somaxconn`). On one that listens already it only sets the number.
    ///
    /// # Errors
    /// Those of listen(2): EADDRINUSE too.
    pub fn listen(&self, backlog: u32) -> Result<()> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        rustix::net::listen(&self.0, backlog).context(|| format!("listen on {}", self.name()))
    }

    /// Connects it, from the address that it is bound to, if it is.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(&self, address: &Address) -> Result<()> {
        let operation = || format!("connect to {address}");
        address.apply(operation, |address| rustix::net::connect(&self.0, address))
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// Those of fcntl(F_DUPFD_CLOEXEC).
    pub fn duplicate(&self) -> Result<Self> {
        self.0.try_clone().map(Self).context(|| "duplicate a socket")
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// Those of getsockname(2); [`Kind::Unsupported`] for a family that has no services here.
    pub fn local(&self) -> Result<Address> {
        let operation = || "ask for a socket's address";
        let address = rustix::net::getsockname(&self.0).context(operation)?;
        Address::from_kernel(address).ok_or_else(|| Error::new(Kind::Unsupported, operation(), "an unknown family"))
    }

    /// Its family; `None` for one that has no services here.
    ///
    /// # Errors
    /// Those of getsockopt(2): ENOTSOCK for what is no socket.
    pub fn family(&self) -> Result<Option<Family>> {
        let family = sockopt::socket_domain(&self.0).context(|| "ask for a socket's family")?;
        Ok([Family::V4, Family::V6, Family::Unix].into_iter().find(|known| domain_of(*known) == family))
    }

    /// What goes through it; `None` for a kind that has no services here, such as raw packets.
    ///
    /// # Errors
    /// Those of getsockopt(2): ENOTSOCK for what is no socket.
    pub fn transport(&self) -> Result<Option<Transport>> {
        let kind = sockopt::socket_type(&self.0).context(|| "ask for a socket's type")?;
        let known = [Transport::Stream, Transport::Datagram, Transport::SeqPacket];
        Ok(known.into_iter().find(|known| type_of(*known) == kind))
    }

    /// The number of its protocol (`IPPROTO_TCP`, `IPPROTO_UDP`, …); 0 for unix sockets.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn protocol(&self) -> Result<u32> {
        let protocol = sockopt::socket_protocol(&self.0).context(|| "ask for a socket's protocol")?;
        Ok(protocol.map_or(0, |protocol| protocol.as_raw().get()))
    }

    /// Whether it is one end of a connection.
    ///
    /// # Errors
    /// Those of getpeername(2), apart from ENOTCONN.
    pub fn is_connected(&self) -> Result<bool> {
        match rustix::net::getpeername(&self.0) {
            Ok(peer) => Ok(peer.is_some()),
            Err(Errno::NOTCONN) => Ok(false),
            Err(errno) => Err(errno).context(|| "ask for a socket's peer"),
        }
    }

    /// Lets whoever closes it last go on at once, and not wait until the peer has taken what was sent (`SO_LINGER`).
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn close_at_once(&self) -> Result<()> {
        sockopt::set_socket_linger(&self.0, None).context(|| "let a socket be closed at once")
    }

    /// Whether it takes connections.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn is_listening(&self) -> Result<bool> {
        sockopt::socket_acceptconn(&self.0).context(|| "ask whether a socket listens")
    }

    /// The accept queue of a TCP listener.
    ///
    /// # Errors
    /// Those of getsockopt(2): EOPNOTSUPP for what is not TCP; [`Kind::State`] for one that does not listen.
    pub fn queue(&self) -> Result<Queue> {
        let operation = || format!("ask for the accept queue of {}", self.name());
        if !self.is_listening()? {
            return Err(Error::new(Kind::State, operation(), "it does not listen"));
        }
        // Of a listener these two fields count connections (tcp_get_info in net/ipv4/tcp.c), of others segments.
        let info = option::tcp_info(self.0.as_fd()).context(operation)?;
        Ok(Queue { waiting: info.tcpi_unacked, backlog: info.tcpi_sacked })
    }

    /// Whether something waits in it, of any kind of socket: a connection to be accepted, or a message to be received.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn has_input(&self) -> Result<bool> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut sockets = [PollFd::new(&self.0, PollFlags::IN)];
            return match poll(&mut sockets, Some(&now)) {
                Ok(_) => Ok(sockets[0].revents().contains(PollFlags::IN)),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno).context(|| format!("look at what waits in {}", self.name())),
            };
        }
    }

    /// The memory in bytes that messages take which were received and not yet read (more than their length). Of a
    /// datagram socket 0 means that nothing waits.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn received_memory(&self) -> Result<u32> {
        option::received_memory(self.0.as_fd()).context(|| format!("ask what waits in {}", self.name()))
    }

    /// The number by which `/proc/PID/fd` and `/proc/net/*` know it.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn inode(&self) -> Result<u64> {
        fstat(&self.0).map(|status| status.st_ino).context(|| "ask for a socket's number")
    }

    /// Its address for messages.
    fn name(&self) -> String {
        self.local().map_or_else(|_| "a socket".to_owned(), |address| address.to_string())
    }
}

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.0
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sets an option of the level `SOL_SOCKET` that is a number.
pub(super) fn set_option(socket: BorrowedFd<'_>, name: i32, value: i32) -> std::io::Result<()> {
    option::set(socket, libc::SOL_SOCKET, name, value)
}

fn domain_of(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
        Family::Unix => AddressFamily::UNIX,
    }
}

fn type_of(transport: Transport) -> SocketType {
    match transport {
        Transport::Stream => SocketType::STREAM,
        Transport::Datagram => SocketType::DGRAM,
        Transport::SeqPacket => SocketType::SEQPACKET,
    }
}

fn describe(family: Family, transport: Transport) -> String {
    let family = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
        Family::Unix => "unix",
    };
    let transport = match transport {
        Transport::Stream => "stream",
        Transport::Datagram => "datagram",
        Transport::SeqPacket => "seqpacket",
    };
    format!("{family} {transport}")
}

#[cfg(test)]
mod tests;
