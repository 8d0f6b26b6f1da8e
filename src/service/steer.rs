//! Who gets what is new at the addresses of a service: for each port one choice, which the kernel carries out
//! ([`crate::sys::steer`]).
//!
//! The next instance has sockets of its own beside those of the one that serves, and gets nothing. It can be probed: a
//! connection of the prober's reaches it, everybody else the one that serves. Then it serves: one step per port.
//!
//! A user who may load no programs into the kernel has a simpler choice, by the order in which sockets joined: it knows no
//! probes and one socket per instance, and must be renewed when an old one is gone.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::address::Address;
use crate::error::{Error, Kind, Result};
use crate::sys::socket::{self, Family, Socket, Transport};
use crate::sys::socket_table::{Network, State, Table, parse_internet, read};
use crate::sys::steer::{Probe, Targets, enlist, steer, steer_to_index};

/// The sockets of one instance, by port. It holds each of them open: it is dropped with them.
#[derive(Debug, Default)]
pub struct Steering {
    groups: Vec<Group>,
}

/// The sockets of one instance that share one port.
#[derive(Debug)]
struct Group {
    address: Address,
    local: SocketAddr,
    sockets: Vec<Socket>,
    choice: Choice,
}

/// How the choice is made.
#[derive(Debug)]
enum Choice {
    /// By a program.
    Program(Targets),
    /// By the order of the sockets.
    Order,
    /// There is none: the next instance has to get this very socket.
    Single,
}

/// What sends new connections to the instance that serves, by address.
#[derive(Debug)]
pub struct Serving(Vec<(Address, Targets)>);

/// Whether a connection reaches the instance that is to be probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// One of the prober does, nobody else's.
    Probes,
    /// None does before it serves.
    Nothing,
}

impl Steering {
    /// Of sockets that are bound and, if they take connections, listen. A TCP listener that was made without sharing
    /// its port is made to share it.
    ///
    /// # Errors
    /// As for [`Steering::add`].
    pub fn new<'a>(sockets: impl IntoIterator<Item = (&'a Address, &'a Socket)>) -> Result<Self> {
        let mut steering = Self::default();
        sockets.into_iter().try_for_each(|(address, socket)| steering.add(address, socket))?;
        Ok(steering)
    }

    /// Adds a socket, which may share its port with others of the instance; it gets nothing before the next
    /// [`Steering::serve`]. Unix sockets are passed over: for them the path is the choice.
    ///
    /// # Errors
    /// Those of bpf(2) and setsockopt(2); [`Kind::State`] for a TCP listener that cannot share its port yet.
    pub fn add(&mut self, address: &Address, socket: &Socket) -> Result<()> {
        let socket::Address::Internet(local) = socket.local()? else { return Ok(()) };
        let transport = socket.transport()?;
        let ours = self.groups.iter_mut().find(|group| {
            group.local == local && group.sockets.iter().all(|other| other.transport().ok() == Some(transport))
        });
        let Some(group) = ours else {
            let choice = choose(socket, transport).map_err(|error| error.during(format!("share {address}")))?;
            self.groups.push(Group { address: address.clone(), local, sockets: vec![socket.duplicate()?], choice });
            return Ok(());
        };
        match &mut group.choice {
            Choice::Program(targets) => targets.add(socket.as_fd())?,
            Choice::Order | Choice::Single => {}
        }
        group.sockets.push(socket.duplicate()?);
        Ok(())
    }

    /// Follows a program that opens and closes sockets: adds those that are new, and lets go of those that are not among
    /// these, so that what waits in them moves to those that are left.
    ///
    /// # Errors
    /// As for [`Steering::add`].
    pub fn follow<'a>(&mut self, sockets: impl IntoIterator<Item = (&'a Address, &'a Socket)>) -> Result<()> {
        let mut open = Vec::new();
        for (address, socket) in sockets {
            open.push((socket.inode()?, address, socket));
        }
        let mut known = Vec::new();
        for group in &mut self.groups {
            group.sockets.retain(|socket| {
                let inode = socket.inode().ok().filter(|inode| open.iter().any(|(other, ..)| other == inode));
                known.extend(inode);
                inode.is_some()
            });
        }
        self.groups.retain(|group| !group.sockets.is_empty());
        let mut new = open.into_iter().filter(|(inode, ..)| !known.contains(inode));
        new.try_for_each(|(_, address, socket)| self.add(address, socket))
    }

    /// From now on this instance gets everything that is new, on all its ports, whoever had it before.
    ///
    /// # Errors
    /// Those of bpf(2) and setsockopt(2), once all ports have been tried: the first of them.
    pub fn serve(&self) -> Result<()> {
        self.each(|group, member| match &group.choice {
            Choice::Program(targets) => steer(member, targets, None),
            Choice::Order => steer_to_index(member, group.index()?),
            Choice::Single => Ok(()),
        })
    }

    /// Renews a choice by order, after an older instance has let go of its sockets and before another one makes its own.
    ///
    /// # Errors
    /// Those of setsockopt(2), once all ports have been tried: the first of them.
    pub fn renew(&self) -> Result<()> {
        self.each(|group, member| match &group.choice {
            Choice::Order => steer_to_index(member, group.index()?),
            Choice::Program(_) | Choice::Single => Ok(()),
        })
    }

    /// The maps that [`Serving::new`] takes, for the keeper of the next instance: one per port, where there is one.
    pub fn targets(&self) -> impl Iterator<Item = (&Address, BorrowedFd<'_>)> {
        self.groups.iter().filter_map(|group| match &group.choice {
            Choice::Program(targets) => Some((&group.address, targets.as_fd())),
            Choice::Order | Choice::Single => None,
        })
    }

    /// Lets the connections of one prober come to this instance, and everybody else's to the one that serves. Each
    /// connection has a prober of its own.
    ///
    /// # Errors
    /// Those of bpf(2) and setsockopt(2).
    pub fn probe(&self, serving: &Serving, prober: &Prober) -> Result<Reach> {
        let found = self.groups.iter().find(|group| group.address == prober.address);
        let (Some(group), Some(others)) = (found, serving.find(&prober.address)) else { return Ok(Reach::Nothing) };
        match (&group.choice, group.sockets.first()) {
            (Choice::Program(own), Some(member)) => {
                steer(member, others, Some((prober.probe, own)))?;
                Ok(Reach::Probes)
            }
            (Choice::Program(_) | Choice::Order | Choice::Single, _) => Ok(Reach::Nothing),
        }
    }

    /// Ends probing: this instance gets nothing any more.
    ///
    /// # Errors
    /// Those of bpf(2) and setsockopt(2), once all ports have been tried: the first of them.
    pub fn end_probing(&self, serving: &Serving) -> Result<()> {
        self.each(|group, member| match (&group.choice, serving.find(&group.address)) {
            (Choice::Program(_), Some(others)) => steer(member, others, None),
            (Choice::Program(_) | Choice::Order | Choice::Single, _) => Ok(()),
        })
    }

    fn each(&self, act: impl Fn(&Group, &Socket) -> Result<()>) -> Result<()> {
        let mut first = Ok(());
        for group in &self.groups {
            let Some(member) = group.sockets.first() else { continue };
            let acted = act(group, member).map_err(|error| error.during(format!("steer {}", group.address)));
            first = first.and(acted);
        }
        first
    }
}

impl Group {
    /// Where our first socket is in the order of all that share the port: ours came last.
    fn index(&self) -> Result<u32> {
        let is_stream = self.sockets.iter().any(|socket| socket.transport().ok() == Some(Some(Transport::Stream)));
        let table = match (is_stream, self.local.is_ipv4()) {
            (true, true) => Table::Tcp,
            (true, false) => Table::Tcp6,
            (false, true) => Table::Udp,
            (false, false) => Table::Udp6,
        };
        let text = read(Network::Own, table)?;
        let place = SocketAddr::new(self.local.ip().to_canonical(), self.local.port());
        let all = parse_internet(&text).filter(|other| other.state == State::Open && other.local == place).count();
        Ok(u32::try_from(all.saturating_sub(self.sockets.len())).unwrap_or_default())
    }
}

fn choose(socket: &Socket, transport: Option<Transport>) -> Result<Choice> {
    match Targets::new(&[socket.as_fd()]) {
        Ok(targets) => Ok(Choice::Program(targets)),
        // A dead instance's, whose program is still in force.
        Err(error) if error.kind() == Kind::Busy => Targets::take_over(&[socket.as_fd()]).map(Choice::Program),
        Err(error) if error.kind() == Kind::State && transport == Some(Transport::Stream) => {
            enlist(socket).map(Choice::Program)
        }
        Err(error) if error.kind() == Kind::State => Ok(Choice::Single),
        Err(error) if error.kind() == Kind::Unsupported => match socket.shares_port()? {
            true => Ok(Choice::Order),
            false => Ok(Choice::Single),
        },
        Err(error) => Err(error),
    }
}

impl Serving {
    /// From what the keeper of the instance that serves has sent.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a descriptor that is no map of sockets, or another number of them; else those of bpf(2).
    pub fn new(addresses: Vec<Address>, maps: Vec<OwnedFd>) -> Result<Self> {
        if addresses.len() != maps.len() {
            let cause = format!("{} addresses, {} maps", addresses.len(), maps.len());
            return Err(Error::new(Kind::Invalid, "take the maps of the instance that serves", cause));
        }
        let targets = addresses.into_iter().zip(maps).map(|(address, map)| Ok((address, Targets::try_from(map)?)));
        targets.collect::<Result<_>>().map(Self)
    }

    fn find(&self, address: &Address) -> Option<&Targets> {
        self.0.iter().find(|(own, _)| own == address).map(|(_, targets)| targets)
    }
}

/// The start of one connection that the kernel takes for a probe.
#[derive(Debug)]
pub struct Prober {
    address: Address,
    probe: Probe,
    socket: Socket,
    target: SocketAddr,
}

impl Prober {
    /// For a TCP address; nothing that is done with it waits.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for another address; those of socket(2) and bind(2).
    pub fn new(address: &Address) -> Result<Self> {
        let Address::Tcp(target) = address.reachable() else {
            return Err(Error::new(Kind::Invalid, format!("probe {address}"), "it is not TCP"));
        };
        let socket = Socket::new(if target.is_ipv4() { Family::V4 } else { Family::V6 }, Transport::Stream)?;
        socket.set_nonblocking()?;
        // A probe is known by coming from the address that it goes to.
        socket.bind(&SocketAddr::new(target.ip(), 0).into())?;
        let socket::Address::Internet(source) = socket.local()? else {
            return Err(Error::new(Kind::System, format!("probe {address}"), "the socket has no port"));
        };
        Ok(Self { address: address.clone(), probe: Probe { port: source.port() }, socket, target })
    }

    /// Begins to connect: the connection is there once the socket can be written to, without an error on it.
    ///
    /// # Errors
    /// Those of connect(2): ECONNREFUSED if nobody listens.
    pub fn connect(self) -> Result<Socket> {
        match self.socket.connect(&self.target.into()) {
            Err(error) if error.errno() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Ok(self.socket),
            other => other.map(|()| self.socket),
        }
    }

    /// The address that is connected to, which is one of this machine.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.target
    }
}

#[cfg(test)]
mod tests;
