//! Services whose programs know nothing of services: their binds and listens are answered by the keeper.
//!
//! ```text
//! program: bind(fd, address) ──> it waits
//!                                keeper: its socket, by pidfd_getfd(2); the address, out of its memory
//!                                        decide
//!                                          not declared      the kernel goes on as ever
//!                                          Take              owner root, SO_REUSEPORT, bound here: the address that was
//!                                                            judged is the one that is bound
//!                                          Replace           a socket of the host's in the place of its descriptor
//! program: <── 0, or the error of the bind that was made for it
//! program: listen(fd, n) ──────> the same; the keeper keeps the listener and knows that it listens
//! ```
//!
//! The kernel lets sockets share a port that have SO_REUSEPORT and one owner; the owner is that of the open file, and so
//! root's for every service, whoever the programs run as. A socket gets both only together with a declared address, and
//! loses them again if that address cannot be had: with them it could join the port of another service.
//!
//! The program is not trusted. What it says may change while it is read; so an address is read once and used as read, a
//! socket is the one that was looked at, and an answer counts only while the call waits. It may have bound its socket
//! behind our back (32-bit calls are not reported): what counts is where the kernel says that it is bound.

mod act;
mod caller;
mod decide;
mod file;
mod port;
mod target;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use self::decide::Network;
use self::port::{Answered, Port};
use super::address::Listen;
use crate::error::Result;
use crate::sys::notification::{Answer, Delivery, Listener};
use crate::sys::socket::Socket;

/// How many connections may wait in a listener, where the program asks for less: those that arrive while instances
/// change. The kernel takes no more than `net.core.somaxconn`.
pub const BACKLOG: u32 = 4096;
/// The most notes that are kept of one instance: a program that binds at random says no more after so many.
const NOTES: usize = 32;

/// Answers the binds and listens of one instance.
#[derive(Debug)]
pub struct Interceptor {
    listener: Listener,
    declared: Vec<Listen>,
    network: Network,
    /// The host's sockets for programs that have none of their own at a declared address, by index; bound, and not
    /// listening before the program does.
    hosts: Vec<Option<Socket>>,
    /// What the program has.
    ports: Vec<Port>,
    notes: BTreeSet<String>,
    keeps: Keeps,
}

/// Whether listeners are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// Those of declared addresses.
    Declared,
    /// None any more: the kernel goes on with every call.
    Nothing,
}

/// What the keeper learns from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This declared address listens, by index.
    Listening(usize),
    /// The operator should know this.
    Note(String),
}

/// A listener of the instance.
#[derive(Debug, Clone, Copy)]
pub struct Listening<'a> {
    /// The declared addresses that it serves, by index; none if it serves a port in the other version of IP only.
    pub listen: &'a [usize],
    /// A duplicate of the program's.
    pub socket: &'a Socket,
    /// A thread that has it.
    pub holder: i32,
}

impl Interceptor {
    /// For the listener of the instance's filter. `hosts` are sockets of the host's for declared addresses, by index:
    /// for the paths of unix sockets, and for ports that were inherited; those that are missing are made.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unsupported`] on kernels without such listeners.
    pub fn new(listener: OwnedFd, declared: &[Listen], network: Network, hosts: Vec<(usize, Socket)>) -> Result<Self> {
        let mut by_index: Vec<Option<Socket>> = declared.iter().map(|_| None).collect();
        for (index, socket) in hosts {
            if let Some(place) = by_index.get_mut(index) {
                *place = Some(socket);
            }
        }
        let (listener, declared) = (Listener::new(listener)?, declared.to_vec());
        Ok(Self {
            listener,
            declared,
            network,
            hosts: by_index,
            ports: Vec::new(),
            notes: BTreeSet::new(),
            keeps: Keeps::Declared,
        })
    }

    /// Answers one call that waits. To be called when the descriptor is readable; waits if no call is there.
    ///
    /// # Errors
    /// Those of the listener. What fails for one call is a note, and the kernel goes on with the call.
    pub fn handle(&mut self) -> Result<Vec<Event>> {
        let Some(notification) = self.listener.receive()? else { return Ok(Vec::new()) };
        let (before, ports) = (self.served(), self.ports.len());
        let judged = match self.keeps {
            Keeps::Declared => self.judge(&notification),
            Keeps::Nothing => Ok((Some(Answer::Continue), Vec::new())),
        };
        let (answer, notes) = judged.unwrap_or_else(|error| (Some(Answer::Continue), vec![error.to_string()]));
        if let Some(answer) = answer
            && self.listener.answer(&notification, answer)? == Delivery::Gone
        {
            // The call is made again, if its thread still lives: a bind that was made for it is then no second one.
            self.ports.iter_mut().skip(ports).for_each(|port| port.answered = Answered::No);
        }
        let listening = self.served().difference(&before).copied().map(Event::Listening).collect::<Vec<_>>();
        let notes = notes.into_iter().filter(|note| self.notes.len() < NOTES && self.notes.insert(note.clone()));
        Ok(notes.map(Event::Note).collect::<Vec<_>>().into_iter().chain(listening).collect())
    }

    /// The declared addresses that do not listen yet.
    #[must_use]
    pub fn missing(&self) -> Vec<&Listen> {
        let served = self.served();
        self.declared.iter().enumerate().filter(|(index, _)| !served.contains(index)).map(|(_, it)| it).collect()
    }

    /// What listens, for whoever steers connections to it. Sockets that the program has closed are let go of; so it is not
    /// asked about one that has ended, which has closed all.
    pub fn listening(&mut self) -> Vec<Listening<'_>> {
        self.ports.retain_mut(Port::is_open);
        let listening = self.ports.iter().filter(|port| port.listens);
        listening
            .map(|port| Listening { listen: &port.listen, socket: &port.socket, holder: port.holder.process })
            .collect()
    }

    /// Lets go of the program's listeners, and keeps none from now on: connections that wait in one which the program
    /// closes move to the next instance's.
    pub fn release(&mut self) {
        self.keeps = Keeps::Nothing;
        self.ports.clear();
        self.hosts.clear();
    }

    fn served(&self) -> BTreeSet<usize> {
        self.ports.iter().filter(|port| port.listens).flat_map(|port| port.listen.iter().copied()).collect()
    }
}

impl AsFd for Interceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
