//! The sockets that clients of a service connect to.
//!
//! TCP and UDP sockets share their port, so that the next instance can have its own beside them; who gets what is new is
//! decided elsewhere ([`super::steer`]). Unix sockets cannot share a path: the next one is made under another name and
//! takes the path over when it is published, while the old one keeps what is connected to it.

mod file;
mod holder;

use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;

use self::file::SocketFile;
use super::address::{Address, Listen, UnixKind};
use crate::error::{Error, Kind, Result};
use crate::sys::socket::{self, Family, Socket, Transport};

/// How many connections may wait to be accepted (the kernel takes no more than `net.core.somaxconn`).
pub const BACKLOG: u32 = 4096;

/// Whether an instance of the service is at the address already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// Nobody may be there.
    Alone,
    /// One is, and is to be succeeded.
    Beside,
}

/// A socket of a service. Once it is dropped, what waits in it moves to whoever has the address then.
#[derive(Debug)]
pub struct Listener {
    listen: Listen,
    socket: Socket,
    file: Option<SocketFile>,
}

impl Listener {
    /// Makes one that listens, or receives. A unix socket can be connected to once it is published. Alone, it is first
    /// made sure that nobody else has the address: a port may be shared, and nobody would notice.
    ///
    /// # Errors
    /// [`Kind::Busy`] if somebody has the address, who is named where that can be learned; [`Kind::Exists`] for a path
    /// with a file that is no socket; [`Kind::NotFound`] for a path without a directory; [`Kind::Invalid`] for an address
    /// that this host does not have; else those of socket(2), bind(2) and listen(2), EACCES for a port of root's.
    pub fn make(listen: &Listen, company: Company) -> Result<Self> {
        let operation = || format!("listen on {}", listen.address);
        match &listen.address {
            Address::Tcp(address) => Self::of_port(listen, *address, Transport::Stream, company),
            Address::Udp(address) => Self::of_port(listen, *address, Transport::Datagram, company),
            Address::Auto => {
                let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let mut listener = Self::of_port(listen, any, Transport::Stream, Company::Beside)?;
                if let socket::Address::Internet(chosen) = listener.socket.local()? {
                    listener.listen.address = Address::Tcp(chosen);
                }
                Ok(listener)
            }
            Address::Unix(kind, path) => {
                let transport = transport_of(*kind);
                let socket = Socket::new(Family::Unix, transport)?;
                let file = SocketFile::bind(&socket, path, company).map_err(|error| error.during(operation()))?;
                if transport != Transport::Datagram {
                    socket.listen(BACKLOG)?;
                }
                Ok(Self { listen: listen.clone(), socket, file: Some(file) })
            }
        }
    }

    /// One that was made before, by an instance that is no more: what waits in it is served by the next. Programs may have
    /// set a backlog of their own, which is undone.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not of this address; else those of asking it and of listen(2).
    pub fn inherit(listen: &Listen, socket: Socket) -> Result<Self> {
        let operation = || format!("take over the socket of {}", listen.address);
        let refuse = |cause: String| Err(Error::new(Kind::Invalid, operation(), cause));
        let (transport, place) = (socket.transport()?, socket.local()?);
        let (wanted, is_there) = match &listen.address {
            Address::Tcp(address) => (Transport::Stream, place == socket::Address::Internet(*address)),
            Address::Udp(address) => (Transport::Datagram, place == socket::Address::Internet(*address)),
            Address::Auto => return refuse("its port was not chosen".to_owned()),
            // The name that it was bound to is not the one that it has.
            Address::Unix(kind, _) => (transport_of(*kind), socket.family()? == Some(Family::Unix)),
        };
        if transport != Some(wanted) || !is_there {
            return refuse(format!("it is another one, at {place}"));
        }
        if wanted != Transport::Datagram {
            socket.listen(BACKLOG).map_err(|error| error.during(operation()))?;
        }
        let file = match &listen.address {
            Address::Unix(_, path) => SocketFile::present(path)?,
            Address::Tcp(_) | Address::Udp(_) | Address::Auto => None,
        };
        Ok(Self { listen: listen.clone(), socket, file })
    }

    /// One that a program made itself, as it is.
    #[must_use]
    pub fn of_program(listen: &Listen, socket: Socket) -> Self {
        Self { listen: listen.clone(), socket, file: None }
    }

    /// Where it is, with the port that was chosen for `auto`.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Puts a unix socket to its path, in place of the one that is there: who connects from now on comes here. The mode
    /// and owner of the old file stay; a new one may be connected to by everybody. Others are where they are.
    ///
    /// # Errors
    /// As for [`Listener::make`], if somebody took the path meanwhile; else those of chmod(2), chown(2) and rename(2).
    pub fn publish(&mut self) -> Result<()> {
        let operation = || format!("listen on {}", self.listen.address);
        match &mut self.file {
            Some(file) => file.publish().map_err(|error| error.during(operation())),
            None => Ok(()),
        }
    }

    /// Removes the file of a unix socket, if the path is not somebody else's by now. For the end of a service.
    ///
    /// # Errors
    /// Those of lstat(2) and unlink(2).
    pub fn withdraw(&mut self) -> Result<()> {
        self.file.take().map_or(Ok(()), SocketFile::remove)
    }

    fn of_port(listen: &Listen, address: SocketAddr, transport: Transport, company: Company) -> Result<Self> {
        let explain = |error| holder::explain(format!("listen on {}", listen.address), error, address, transport);
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        // Connections of the past do not keep a TCP port; among UDP sockets the option would take it from another.
        let new = || {
            let socket = Socket::new(family, transport)?;
            if transport == Transport::Stream {
                socket.reuse_address()?;
            }
            Ok(socket)
        };
        if company == Company::Alone {
            new().and_then(|socket: Socket| socket.bind(&address.into())).map_err(&explain)?;
        }
        let socket = new().map_err(&explain)?;
        socket.share_port()?;
        socket.bind(&address.into()).map_err(&explain)?;
        if transport == Transport::Stream {
            socket.listen(BACKLOG).map_err(explain)?;
        }
        Ok(Self { listen: listen.clone(), socket, file: None })
    }
}

fn transport_of(kind: UnixKind) -> Transport {
    match kind {
        UnixKind::Stream => Transport::Stream,
        UnixKind::Seqpacket => Transport::SeqPacket,
        UnixKind::Datagram => Transport::Datagram,
    }
}

fn is(error: &Error, errno: Errno) -> bool {
    error.errno() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests;
