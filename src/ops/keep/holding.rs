//! The sockets of an instance, as its keeper holds them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::predecessor::targets_of;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::{self, Intercept, StateRoot};
use crate::service::address::{Address, Listen, UnixKind};
use crate::service::definition::Handover;
use crate::service::message::Order;
use crate::sys::process::Process;
use crate::sys::socket::{self, Family, Socket, Transport};
use crate::sys::steer::{self, Targets, steer};

/// How many connections may wait while nobody accepts them.
const BACKLOG: u32 = 4096;

/// What is held.
#[derive(Debug)]
pub(super) struct Holding {
    handover: Handover,
    /// The addresses, with chosen ports.
    listen: Vec<Listen>,
    held: Vec<Held>,
}

/// One socket.
#[derive(Debug)]
struct Held {
    listen: Listen,
    socket: Socket,
    /// The map that it is in.
    targets: Option<Targets>,
    serving: Serving,
}

/// Who gets new connections at the address of a socket.
#[derive(Debug)]
enum Serving {
    /// The socket itself.
    Itself,
    /// Another instance, which has this map, if it could be had.
    Other(Option<Targets>),
}

/// A connection of our own to the instance.
#[derive(Debug)]
pub(super) enum Probe {
    /// It never waits; the instance's host is called so.
    Connection(TcpStream, String),
    /// Where another instance serves, and this kernel or this user knows no way to get past it.
    Impossible,
}

impl Holding {
    /// Takes what was inherited, and makes what is missing.
    pub(super) fn prepare(order: &Order, inherited: Vec<OwnedFd>) -> Result<Self> {
        let handover = order.definition.handover;
        let mut holding = Self { handover, listen: Vec::new(), held: Vec::new() };
        if handover == Handover::Intercept {
            return Err(Error::new(Kind::Unsupported, "intercept binds", "not yet"));
        }
        let mut inherited: Vec<(usize, Socket)> =
            order.inherited.iter().copied().zip(inherited.into_iter().map(Socket::from)).collect();
        let mut maps = match &order.beside {
            Some(other) => targets_of(&order.root, other).unwrap_or_else(|error| {
                tracing::debug!("{error}");
                Vec::new()
            }),
            None => Vec::new(),
        };
        for (index, listen) in order.listen.iter().enumerate() {
            let mut map = || {
                let place = maps.iter().position(|(address, _)| *address == listen.address)?;
                Some(maps.swap_remove(place).1)
            };
            let (socket, targets, serving) = match inherited.iter().position(|(of, _)| *of == index) {
                Some(place) => (inherited.swap_remove(place).1, map(), Serving::Itself),
                None if order.beside.is_some() => (make(&listen.address)?, None, Serving::Other(map())),
                None => (make(&listen.address)?, None, Serving::Itself),
            };
            let mut listen = listen.clone();
            if let (Address::Auto, socket::Address::Internet(address)) = (&listen.address, socket.local()?) {
                listen.address = Address::Tcp(address);
            }
            holding.listen.push(listen.clone());
            holding.held.push(Held { listen, socket, targets, serving });
        }
        Ok(holding)
    }

    /// What the program gets as descriptors 3 and up.
    pub(super) fn to_pass_on(&self) -> Result<Vec<runtime::Listen>> {
        let pass = |held: &Held| {
            Ok(runtime::Listen { socket: held.socket.duplicate()?.into(), name: held.listen.name.to_string() })
        };
        self.held.iter().map(pass).collect()
    }

    /// Which calls of the program are to be answered.
    pub(super) fn intercept(&self) -> Intercept {
        match self.handover {
            Handover::ListenFds => Intercept::No,
            Handover::Intercept => Intercept::Binds,
        }
    }

    /// Answers them from now on. `private` is whether the instance has a network of its own.
    pub(super) fn answer_at(&mut self, _listener: OwnedFd, _order: &Order, _private: bool) -> Result<()> {
        Ok(())
    }

    /// The addresses, with chosen ports.
    pub(super) fn listen(&self) -> &[Listen] {
        &self.listen
    }

    /// The addresses at which the instance does not listen yet.
    pub(super) fn missing(&self) -> Vec<&Address> {
        Vec::new()
    }

    /// Every socket, with what it is.
    pub(super) fn sockets(&self) -> Vec<(&Listen, BorrowedFd<'_>)> {
        self.held.iter().map(|held| (&held.listen, held.socket.as_fd())).collect()
    }

    /// What sends new connections to it, for each port.
    pub(super) fn targets(&self) -> Vec<(&Address, BorrowedFd<'_>)> {
        let steered = self.held.iter().filter_map(|held| Some((held, held.targets.as_ref()?)));
        steered.map(|(held, targets)| (&held.listen.address, targets.as_fd())).collect()
    }

    /// Where calls wait to be answered.
    pub(super) fn calls(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Answers one; what an operator should know.
    pub(super) fn answer_call(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Connects to the instance, whoever serves at its address.
    pub(super) fn probe(&mut self) -> Result<Probe> {
        let (address, held) = self.tcp()?;
        let address = reachable(address);
        let socket = Socket::new(family_of(&address), Transport::Stream)?;
        socket.set_nonblocking()?;
        match &held.serving {
            Serving::Itself => {}
            Serving::Other(None) => return Ok(Probe::Impossible),
            Serving::Other(Some(_)) => {
                socket.bind(&SocketAddr::new(address.ip(), 0).into())?;
                if !held.admit(&socket)? {
                    return Ok(Probe::Impossible);
                }
            }
        }
        match socket.connect(&address.into()) {
            Err(error) if error.errno() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
            other => other?,
        }
        Ok(Probe::Connection(TcpStream::from(OwnedFd::from(socket)), address.to_string()))
    }

    /// Whether no connection waits to be accepted at the port of probes.
    pub(super) fn is_idle(&mut self) -> Result<bool> {
        self.tcp()?.1.socket.queue().map(|queue| queue.waiting == 0)
    }

    /// New connections go to this instance from now on.
    pub(super) fn serve(&mut self) -> Result<()> {
        for held in &mut self.held {
            if matches!(held.listen.address, Address::Unix(..)) {
                continue;
            }
            held.make_targets()?;
            if let Some(targets) = &held.targets {
                steer(&held.socket, targets, None)?;
            }
            held.serving = Serving::Itself;
        }
        Ok(())
    }

    /// Lets go of everything.
    pub(super) fn release(&mut self) {
        self.held.clear();
    }

    /// How many connections the instance has or could still get.
    pub(super) fn count_connections(&self, _: &StateRoot, _: &ContainerId, _: &Process) -> Result<u64> {
        Ok(0)
    }

    fn tcp(&mut self) -> Result<(SocketAddr, &mut Held)> {
        let found = self.held.iter_mut().find_map(|held| match held.listen.address {
            Address::Tcp(address) => Some((address, held)),
            Address::Udp(_) | Address::Unix(..) | Address::Auto => None,
        });
        found.ok_or_else(|| Error::new(Kind::Invalid, "connect to the instance", "it has no TCP address"))
    }
}

impl Held {
    /// Puts the socket into a map, if it is in none.
    fn make_targets(&mut self) -> Result<()> {
        if self.targets.is_none() {
            self.targets = Some(Targets::new(&[self.socket.as_fd()])?);
        }
        Ok(())
    }

    /// Lets what comes from this probe's port through to us, past who serves. Whether that can be done.
    fn admit(&mut self, probe: &Socket) -> Result<bool> {
        let socket::Address::Internet(from) = probe.local()? else { return Ok(false) };
        let done = self.make_targets().and_then(|()| match (&self.targets, &self.serving) {
            (Some(own), Serving::Other(Some(serving))) => {
                steer(&self.socket, serving, Some((steer::Probe { port: from.port() }, own)))
            }
            (None, _) | (Some(_), Serving::Itself | Serving::Other(None)) => Ok(()),
        });
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == Kind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn make(address: &Address) -> Result<Socket> {
    let (family, transport, target) = match address {
        Address::Tcp(address) => (family_of(address), Transport::Stream, socket::Address::Internet(*address)),
        Address::Udp(address) => (family_of(address), Transport::Datagram, socket::Address::Internet(*address)),
        Address::Auto => {
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            (Family::V4, Transport::Stream, socket::Address::Internet(any))
        }
        Address::Unix(kind, path) => {
            let transport = match kind {
                UnixKind::Stream => Transport::Stream,
                UnixKind::Seqpacket => Transport::SeqPacket,
                UnixKind::Datagram => Transport::Datagram,
            };
            (Family::Unix, transport, socket::Address::Path(path.clone()))
        }
    };
    let socket = Socket::new(family, transport)?;
    if family != Family::Unix {
        socket.share_port()?;
        socket.reuse_address()?;
    }
    socket.bind(&target)?;
    if transport != Transport::Datagram {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

fn family_of(address: &SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Where this machine reaches a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
