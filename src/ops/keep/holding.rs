//! The sockets of an instance, as its keeper holds them: for as long as it lives, and beyond, until its successor has them.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::interception::{Interception, Surroundings};
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
    held: Vec<Held>,
    /// Of a program that makes its sockets itself. What is held above then is for paths only.
    interception: Option<Interception>,
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
        let intercepts = order.definition.handover == Handover::Intercept;
        for (index, listen) in order.listen.iter().enumerate() {
            if intercepts && !matches!(listen.address, Address::Unix(..)) {
                continue;
            }
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
        let listen = match order.definition.handover {
            Handover::ListenFds => held.iter().map(|held| held.listener.listen().clone()).collect(),
            Handover::Intercept => order.listen.clone(),
        };
        let interception = intercepts.then(|| Interception::new(order, inherited));
        Ok(Self { held, interception, steering, serving, probing: false, handed_out: false, listen })
    }

    /// What the program gets as descriptors 3 and up.
    pub(super) fn to_pass_on(&self) -> Result<Vec<runtime::Listen>> {
        if self.interception.is_some() {
            return Ok(Vec::new());
        }
        let pass = |held: &Held| {
            let socket = held.listener.socket().duplicate()?.into();
            Ok(runtime::Listen { socket, name: held.listener.listen().name.to_string() })
        };
        self.held.iter().map(pass).collect()
    }

    /// Which calls of the program are to be answered.
    pub(super) fn intercept(&self) -> Intercept {
        match self.interception {
            None => Intercept::No,
            Some(_) => Intercept::Binds,
        }
    }

    /// Answers them from now on.
    ///
    /// # Errors
    /// As [`Listener::make`].
    pub(super) fn answer_at(&mut self, listener: OwnedFd, order: &Order, surroundings: Surroundings) -> Result<()> {
        let Some(interception) = &mut self.interception else { return Ok(()) };
        let mut files = Vec::new();
        for held in &self.held {
            let place = order.listen.iter().position(|listen| listen.address == held.listener.listen().address);
            files.extend(place.map(|index| held.listener.socket().duplicate().map(|it| (index, it))).transpose()?);
        }
        if self.serving.is_none() {
            self.serving = interception.of_the_dead(&self.listen)?;
        }
        interception.begin(listener, order, surroundings, files)
    }

    /// The addresses, with chosen ports.
    pub(super) fn listen(&self) -> &[Listen] {
        &self.listen
    }

    /// The addresses at which the instance does not listen yet.
    pub(super) fn missing(&self) -> Vec<&Address> {
        self.interception.as_ref().map_or_else(Vec::new, |interception| interception.missing(&self.listen))
    }

    /// Every socket, with what it is, for an instance that comes next.
    pub(super) fn hand_out(&mut self) -> Vec<(&Listen, BorrowedFd<'_>)> {
        self.handed_out = true;
        let held = self.held.iter().map(|held| (held.listener.listen(), held.listener.socket().as_fd()));
        let bound = self.interception.iter().flat_map(|interception| {
            let ports = self.listen.iter().enumerate().filter(|(_, it)| !matches!(it.address, Address::Unix(..)));
            // One for each address: what waits in others is not handed out, and moves when we end.
            ports.filter_map(|(index, listen)| Some((listen, interception.sockets_at(index).next()?.as_fd())))
        });
        held.chain(bound).collect()
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
        self.interception.as_ref()?.calls()
    }

    /// Answers one; what an operator should know.
    pub(super) fn answer_call(&mut self) -> Vec<String> {
        let Some(interception) = &mut self.interception else { return Vec::new() };
        interception.answer_call(&self.listen, &mut self.steering)
    }

    /// Connects to the instance, whoever serves at its address.
    ///
    /// # Errors
    /// Those of connect(2) and bpf(2).
    pub(super) fn probe(&mut self) -> Result<Probe> {
        let index = self.tcp()?;
        let prober = Prober::new(&self.listen[index].address)?;
        let beside = match &self.interception {
            Some(interception) => interception.company() == Company::Beside,
            None => self.held[index].beside,
        };
        if beside {
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
        let index = self.tcp()?;
        let is_idle = |socket: &Socket| socket.queue().map(|queue| queue.waiting == 0);
        match &self.interception {
            Some(interception) => interception.sockets_at(index).map(is_idle).try_fold(true, |all, it| Ok(all && it?)),
            None => is_idle(self.held[index].listener.socket()),
        }
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
        if let Some(interception) = &mut self.interception {
            interception.serve();
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
        if let Some(interception) = &mut self.interception {
            interception.outlive();
        }
    }

    /// Lets go of everything. What waits goes to whoever else has the address.
    pub(super) fn release(&mut self) {
        self.steering = Steering::default();
        self.serving = None;
        self.held.clear();
        if let Some(interception) = &mut self.interception {
            interception.release();
        }
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

    /// The index of the first TCP address.
    fn tcp(&self) -> Result<usize> {
        let found = self.listen.iter().position(|listen| matches!(listen.address, Address::Tcp(_)));
        found.ok_or_else(|| Error::new(Kind::Invalid, "connect to the instance", "it has no TCP address"))
    }
}
