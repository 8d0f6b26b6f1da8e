//! The sockets of an instance that binds them itself: its binds are answered, and what listens is steered as if it had been
//! passed on.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Context, Result};
use crate::service::address::{Address, Listen};
use crate::service::intercept::{Event, Interceptor, Network};
use crate::service::message::Order;
use crate::service::socket::{Company, Listener};
use crate::service::steer::{Serving, Steering};
use crate::sys::socket::{self, Socket, Transport};

/// Whose network an instance has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surroundings {
    /// The host's.
    Host,
    /// One that somebody else has made, and that was joined.
    Joined,
    /// One of its own.
    Own,
}

/// See above.
#[derive(Debug)]
pub(super) struct Interception {
    /// None before there is a program.
    interceptor: Option<Interceptor>,
    /// Sockets of an instance that has ended, by the index of their address: what waits in them moves to this one's once it
    /// serves and nobody holds them any more.
    left: Vec<(usize, Socket)>,
    /// Which sockets new connections can be sent to, by number.
    steered: BTreeSet<u64>,
    life: Life,
    /// Whether what is new at its addresses goes elsewhere.
    company: Company,
}

/// What the instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It comes up.
    Rises,
    /// New connections go to it.
    Serves,
    /// It is no more, or nothing of it matters any more.
    Over,
}

impl Interception {
    /// With the ports of an instance that has ended, if the one before has.
    pub(super) fn new(order: &Order, left: Vec<(usize, Socket)>) -> Self {
        let company = if order.beside.is_some() || !left.is_empty() { Company::Beside } else { Company::Alone };
        Self { interceptor: None, left, steered: BTreeSet::new(), life: Life::Rises, company }
    }

    /// Whether what is new at its addresses goes elsewhere.
    pub(super) fn company(&self) -> Company {
        self.company
    }

    /// Answers from now on. `files` are the host's sockets for paths, by index. The program waits meanwhile, so that it is
    /// told who has an address, if somebody has.
    ///
    /// # Errors
    /// As [`Listener::make`].
    pub(super) fn begin(
        &mut self,
        listener: OwnedFd,
        order: &Order,
        surroundings: Surroundings,
        files: Vec<(usize, Socket)>,
    ) -> Result<()> {
        let mut hosts = files;
        let company = self.company;
        let mut left = std::mem::take(&mut self.left);
        for (index, listen) in order.listen.iter().enumerate() {
            if matches!(listen.address, Address::Unix(..)) {
                continue;
            }
            let inherited = left.iter().position(|(of, _)| *of == index);
            match (surroundings, inherited) {
                (Surroundings::Own, Some(place)) => hosts.push(left.swap_remove(place)),
                (Surroundings::Own, None) => hosts.push((index, Listener::make(listen, company)?.into_socket())),
                // Nobody has it: the program makes its own.
                (Surroundings::Host, None) if company == Company::Alone => drop(Listener::make(listen, company)?),
                (Surroundings::Host | Surroundings::Joined, _) => {}
            }
        }
        let network = match surroundings {
            Surroundings::Host | Surroundings::Joined => Network::Shared,
            Surroundings::Own => Network::Private,
        };
        self.left = left;
        self.interceptor = Some(Interceptor::new(listener, &order.listen, network, hosts)?);
        Ok(())
    }

    /// The addresses at which the program does not listen yet.
    pub(super) fn missing<'a>(&'a self, listen: &'a [Listen]) -> Vec<&'a Address> {
        match &self.interceptor {
            Some(interceptor) => interceptor.missing().into_iter().map(|listen| &listen.address).collect(),
            None => listen.iter().map(|listen| &listen.address).collect(),
        }
    }

    /// Where calls wait to be answered.
    pub(super) fn calls(&self) -> Option<BorrowedFd<'_>> {
        match self.life {
            Life::Rises | Life::Serves => self.interceptor.as_ref().map(AsFd::as_fd),
            Life::Over => None,
        }
    }

    /// Answers one, and sees to it that what listens can be sent connections; what an operator should know.
    pub(super) fn answer_call(&mut self, listen: &[Listen], steering: &mut Steering) -> Vec<String> {
        let Some(interceptor) = &mut self.interceptor else { return Vec::new() };
        let mut notes = Vec::new();
        match interceptor.handle() {
            Ok(events) => notes.extend(events.into_iter().filter_map(|event| match event {
                Event::Note(note) => Some(note),
                Event::Listening(_) => None,
            })),
            Err(error) => notes.push(error.to_string()),
        }
        // A program may try addresses before it stays at some: it is looked at when it has all.
        if interceptor.missing().is_empty() {
            notes.extend(self.settle(listen, steering).err().map(|error| error.to_string()));
        }
        notes
    }

    fn settle(&mut self, listen: &[Listen], steering: &mut Steering) -> Result<()> {
        let Some(interceptor) = &mut self.interceptor else { return Ok(()) };
        interceptor.prune();
        let numbers = interceptor.listening().map(|it| it.socket.inode()).collect::<Result<BTreeSet<_>>>()?;
        if numbers == self.steered {
            return Ok(());
        }
        if !self.steered.is_subset(&numbers) {
            // The program has closed some: nothing may be sent there any more.
            *steering = Steering::default();
            self.steered.clear();
        }
        for listening in interceptor.listening() {
            let number = listening.socket.inode()?;
            if self.steered.contains(&number) {
                continue;
            }
            let declared = listening.listen.first().and_then(|index| listen.get(*index));
            let address = declared.map_or_else(|| address_of(listening.socket), |it| Ok(it.address.clone()))?;
            steering.add(&address, listening.socket)?;
            self.steered.insert(number);
        }
        match self.life {
            Life::Serves => steering.serve(),
            Life::Rises | Life::Over => Ok(()),
        }
    }

    /// The sockets of the program at an address, by its index.
    pub(super) fn sockets_at(&self, index: usize) -> impl Iterator<Item = &Socket> {
        let all = self.interceptor.iter().flat_map(Interceptor::listening);
        all.filter(move |listening| listening.listen.contains(&index)).map(|listening| listening.socket)
    }

    /// What sends connections to the instance that has ended, whose sockets were left to this one: so it can be probed past
    /// them.
    pub(super) fn of_the_dead(&self, listen: &[Listen]) -> Result<Option<Serving>> {
        let named = self.left.iter().filter_map(|(index, socket)| Some((&listen.get(*index)?.address, socket)));
        let dead = Steering::new(named)?;
        let mut maps = Vec::new();
        for (address, map) in dead.targets() {
            maps.push((address.clone(), map.try_clone_to_owned().context(|| "duplicate a map of sockets")?));
        }
        let (addresses, maps): (Vec<_>, Vec<_>) = maps.into_iter().unzip();
        Ok(if addresses.is_empty() { None } else { Some(Serving::new(addresses, maps)?) })
    }

    /// New connections go to this instance from now on.
    pub(super) fn serve(&mut self) {
        (self.life, self.company) = (Life::Serves, Company::Alone);
        self.left.clear();
    }

    /// The instance is no more.
    pub(super) fn outlive(&mut self) {
        self.life = Life::Over;
        self.steered.clear();
    }

    /// Lets go of everything.
    pub(super) fn release(&mut self) {
        self.left.clear();
        self.steered.clear();
        if let Some(interceptor) = &mut self.interceptor {
            interceptor.release();
        }
    }
}

/// Of a socket that serves nothing that was declared.
fn address_of(socket: &Socket) -> Result<Address> {
    let local = socket.local()?;
    Ok(match (local, socket.transport()?) {
        (socket::Address::Internet(local), Some(Transport::Datagram)) => Address::Udp(local),
        (socket::Address::Internet(local), _) => Address::Tcp(local),
        (socket::Address::Path(_) | socket::Address::Abstract(_) | socket::Address::Unnamed, _) => Address::Auto,
    })
}
