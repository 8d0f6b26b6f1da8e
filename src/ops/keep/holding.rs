//! The sockets of an instance, as its keeper holds them: for as long as it lives, and beyond, until its successor has them.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::predecessor;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::{self, Intercept, StateRoot};
use crate::service::address::{Address, Listen};
use crate::service::definition::Handover;
use crate::service::message::Order;
use crate::service::socket::{Company, Listener};
use crate::service::steer::{Prober, Reach, Serving, Steering};
use crate::sys::process::Process;
use crate::sys::socket::Socket;

/// What is held.
#[derive(Debug)]
pub(super) struct Holding {
    handover: Handover,
    held: Vec<Held>,
    steering: Steering,
    /// Who has the addresses before us, as long as that is not this instance.
    serving: Option<Serving>,
    /// Whether probes of ours are told apart now.
    probing: bool,
    /// Whether somebody else has the sockets too.
    handed_out: bool,
    listen: Vec<Listen>,
}

/// One socket.
#[derive(Debug)]
struct Held {
    listener: Listener,
    /// Whether another instance gets what is new at its address.
    beside: bool,
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
    ///
    /// # Errors
    /// As [`Listener::make`] and [`Listener::inherit`].
    pub(super) fn prepare(order: &Order, inherited: Vec<OwnedFd>) -> Result<Self> {
        let handover = order.definition.handover;
        if handover == Handover::Intercept {
            return Err(Error::new(Kind::Unsupported, "intercept binds", "not yet"));
        }
        // Asked before there is another socket: an answer by the order of sockets is made anew for that.
        let serving = order.beside.as_ref().and_then(|other| match predecessor::serving(&order.root, other) {
            Ok(serving) => Some(serving),
            Err(error) => {
                tracing::debug!("probes cannot pass who serves: {error}");
                None
            }
        });
        let mut inherited: Vec<(usize, Socket)> =
            order.inherited.iter().copied().zip(inherited.into_iter().map(Socket::from)).collect();
        let company = if order.beside.is_some() { Company::Beside } else { Company::Alone };
        let mut held = Vec::new();
        for (index, listen) in order.listen.iter().enumerate() {
            held.push(match inherited.iter().position(|(of, _)| *of == index) {
                Some(place) => {
                    let socket = inherited.swap_remove(place).1;
                    Held { listener: Listener::inherit(listen, socket)?, beside: false }
                }
                None => Held { listener: Listener::make(listen, company)?, beside: company == Company::Beside },
            });
        }
        let steering =
            Steering::new(held.iter().map(|held| (&held.listener.listen().address, held.listener.socket())))?;
        let listen = held.iter().map(|held| held.listener.listen().clone()).collect();
        Ok(Self { handover, held, steering, serving, probing: false, handed_out: false, listen })
    }

    /// What the program gets as descriptors 3 and up.
    pub(super) fn to_pass_on(&self) -> Result<Vec<runtime::Listen>> {
        let pass = |held: &Held| {
            let socket = held.listener.socket().duplicate()?.into();
            Ok(runtime::Listen { socket, name: held.listener.listen().name.to_string() })
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

    /// Every socket, with what it is, for an instance that comes next.
    pub(super) fn hand_out(&mut self) -> Vec<(&Listen, BorrowedFd<'_>)> {
        self.handed_out = true;
        self.held.iter().map(|held| (held.listener.listen(), held.listener.socket().as_fd())).collect()
    }

    /// What sends new connections to it, for an instance that comes up beside it next.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub(super) fn targets(&self) -> Result<Vec<(&Address, BorrowedFd<'_>)>> {
        self.steering.renew()?;
        Ok(self.steering.targets().collect())
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
    ///
    /// # Errors
    /// Those of connect(2) and bpf(2).
    pub(super) fn probe(&mut self) -> Result<Probe> {
        let held = tcp(&self.held)?;
        let prober = Prober::new(&held.listener.listen().address)?;
        if held.beside {
            let reach = match &self.serving {
                Some(serving) => self.steering.probe(serving, &prober)?,
                None => Reach::Nothing,
            };
            if reach == Reach::Nothing {
                return Ok(Probe::Impossible);
            }
            self.probing = true;
        }
        let host = prober.target().to_string();
        Ok(Probe::Connection(TcpStream::from(OwnedFd::from(prober.connect()?)), host))
    }

    /// Whether no connection waits to be accepted at the port of probes.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub(super) fn is_idle(&self) -> Result<bool> {
        tcp(&self.held)?.listener.socket().queue().map(|queue| queue.waiting == 0)
    }

    /// New connections go to this instance from now on.
    ///
    /// # Errors
    /// Those of bpf(2), setsockopt(2) and rename(2).
    pub(super) fn serve(&mut self) -> Result<()> {
        self.steering.serve()?;
        self.held.iter_mut().try_for_each(|held| held.listener.publish())?;
        (self.serving, self.probing) = (None, false);
        for held in &mut self.held {
            held.beside = false;
        }
        Ok(())
    }

    /// Nobody asks the instance any more: whoever serves is alone again.
    ///
    /// # Errors
    /// Those of bpf(2) and setsockopt(2).
    pub(super) fn end_probing(&mut self) -> Result<()> {
        match (&self.serving, std::mem::take(&mut self.probing)) {
            (Some(serving), true) => self.steering.end_probing(serving),
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// The instance is no more: what still comes waits here, and whoever takes the sockets over makes maps of their own.
    pub(super) fn outlive(&mut self) {
        self.steering = Steering::default();
    }

    /// Lets go of everything. What waits goes to whoever else has the address.
    pub(super) fn release(&mut self) {
        self.steering = Steering::default();
        self.serving = None;
        self.held.clear();
    }

    /// For the end of all: takes paths of unix sockets away that lead nowhere from now on.
    ///
    /// # Errors
    /// Those of unlink(2), once all have been tried: the first of them.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        if self.handed_out {
            return Ok(());
        }
        let mut first = Ok(());
        for held in &mut self.held {
            first = first.and(held.listener.withdraw());
        }
        first
    }

    /// How many connections the instance has or could still get.
    pub(super) fn count_connections(&self, _: &StateRoot, _: &ContainerId, _: &Process) -> Result<u64> {
        Ok(0)
    }
}

fn tcp(held: &[Held]) -> Result<&Held> {
    let found = held.iter().find(|held| matches!(held.listener.listen().address, Address::Tcp(_)));
    found.ok_or_else(|| Error::new(Kind::Invalid, "connect to the instance", "it has no TCP address"))
}
