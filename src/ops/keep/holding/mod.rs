//! The sockets of an instance, as its keeper holds them: for as long as it lives, and beyond, until its successor has them.

mod adopted;
mod given;
mod intercepted;

use std::net::TcpStream;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use self::given::Given;
use self::intercepted::Intercepted;
use super::predecessor;
use crate::error::{Context, Error, Kind, Result};
use crate::runtime::{self, Intercept};
use crate::service::address::{Address, Listen};
use crate::service::definition::Handover;
use crate::service::drain::{Inspection, Look};
use crate::service::intercept::Network;
use crate::service::message::Order;
use crate::service::steer::{Prober, Reach, Serving, Steering};
use crate::sys::process::Process;
use crate::sys::socket::{Socket, Transport};
use crate::sys::socket_table::{Network as Place, identity, sockets_of};

/// What is held.
#[derive(Debug)]
pub(super) struct Holding {
    /// The addresses, with chosen ports.
    listen: Vec<Listen>,
    sockets: Sockets,
    steering: Steering,
    before: Before,
    /// Whether probes of ours are told apart now.
    probing: bool,
    /// Whether this instance gets what is new.
    serves: bool,
    /// Whether somebody else has the sockets too.
    handed_out: bool,
    /// What is known of looks at it, since it is drained.
    inspection: Inspection,
}

/// How the sockets came.
#[derive(Debug)]
enum Sockets {
    Given(Given),
    Intercepted(Box<Intercepted>),
}

/// Who has the addresses as long as this instance does not serve.
#[derive(Debug)]
enum Before {
    /// Nobody else: what comes, comes to these sockets.
    Nobody,
    /// Another instance, which probes get past by this.
    Other(Serving),
    /// Another instance, and nothing is known that gets past it.
    Hidden,
}

/// A connection of our own to the instance.
#[derive(Debug)]
pub(super) enum Probe {
    /// It never waits; the instance's host is called so.
    Connection(TcpStream, String),
    /// There is no way to the instance before it serves.
    Impossible,
}

impl Holding {
    /// Takes what was inherited, and makes what is missing.
    ///
    /// # Errors
    /// As [`crate::service::socket::Listener::make`] and [`crate::service::socket::Listener::inherit`].
    pub(super) fn prepare(order: &Order, inherited: Vec<OwnedFd>) -> Result<Self> {
        // Asked before there is another socket: an answer by the order of sockets is made anew for that.
        let nobody = if order.neighbour.is_some() { Before::Hidden } else { Before::Nobody };
        let before = order.beside.as_ref().map_or(nobody, |other| {
            predecessor::serving(&order.root, other).map_or_else(
                |error| {
                    tracing::debug!("probes cannot pass who serves: {error}");
                    Before::Hidden
                },
                Before::Other,
            )
        });
        let inherited = order.inherited.iter().copied().zip(inherited.into_iter().map(Socket::from)).collect();
        let sockets = match order.definition.handover {
            Handover::ListenFds => Sockets::Given(Given::prepare(order, inherited)?),
            Handover::Intercept => Sockets::Intercepted(Box::new(Intercepted::prepare(order, inherited)?)),
        };
        Self::of(order, sockets, before)
    }

    /// Takes the sockets of a program that runs.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it does not listen somewhere, which is named.
    pub(super) fn adopt(order: &Order, process: &Process) -> Result<Self> {
        let given = Given::of_program(adopted::find(&order.listen, process)?, process.pid());
        Self::of(order, Sockets::Given(given), Before::Nobody)
    }

    fn of(order: &Order, sockets: Sockets, before: Before) -> Result<Self> {
        let (listen, steering) = match &sockets {
            Sockets::Given(given) => {
                let listeners = given.listeners();
                let named = listeners.iter().map(|listener| (&listener.listen().address, listener.socket()));
                (listeners.iter().map(|listener| listener.listen().clone()).collect(), Steering::new(named)?)
            }
            Sockets::Intercepted(_) => (order.listen.clone(), Steering::default()),
        };
        let inspection = Inspection::default();
        Ok(Self { listen, sockets, steering, before, probing: false, serves: false, handed_out: false, inspection })
    }

    /// What the program gets as descriptors 3 and up.
    pub(super) fn to_pass_on(&self) -> Result<Vec<runtime::Listen>> {
        match &self.sockets {
            Sockets::Given(given) => given.to_pass_on(),
            Sockets::Intercepted(_) => Ok(Vec::new()),
        }
    }

    /// Which calls of the program are to be answered.
    pub(super) fn intercept(&self) -> Intercept {
        match self.sockets {
            Sockets::Given(_) => Intercept::No,
            Sockets::Intercepted(_) => Intercept::Binds,
        }
    }

    /// Answers them from now on.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] on kernels without such listeners.
    pub(super) fn answer_at(&mut self, listener: OwnedFd, network: Network, process: &Process) -> Result<()> {
        let Sockets::Intercepted(sockets) = &mut self.sockets else { return Ok(()) };
        if let Some(serving) = sockets.answer_at(listener, network)? {
            self.before = Before::Other(serving);
        }
        let ours = identity(Place::Own)? == identity(Place::Of(process.pid()))?;
        if network == Network::Shared && !ours {
            // Its ports are not ours to connect to.
            self.before = Before::Hidden;
        }
        Ok(())
    }

    /// The addresses, with chosen ports.
    pub(super) fn listen(&self) -> &[Listen] {
        &self.listen
    }

    /// The addresses at which the instance does not listen yet.
    pub(super) fn missing(&self) -> Vec<&Address> {
        match &self.sockets {
            Sockets::Given(_) => Vec::new(),
            Sockets::Intercepted(sockets) => sockets.missing(),
        }
    }

    /// Every socket, with what it is, for an instance that comes next.
    ///
    /// # Errors
    /// Those of fcntl(F_DUPFD_CLOEXEC).
    pub(super) fn hand_out(&mut self) -> Result<Vec<(Listen, OwnedFd)>> {
        let found = match &self.sockets {
            Sockets::Given(given) => given.hand_out()?,
            Sockets::Intercepted(sockets) => sockets.hand_out()?,
        };
        self.handed_out = true;
        Ok(found)
    }

    /// What sends new connections to it, for an instance that comes up beside it next.
    ///
    /// # Errors
    /// Those of setsockopt(2) and fcntl(F_DUPFD_CLOEXEC).
    pub(super) fn targets(&self) -> Result<Vec<(Address, OwnedFd)>> {
        self.steering.renew()?;
        let duplicate = |(address, map): (&Address, BorrowedFd<'_>)| {
            Ok((address.clone(), map.try_clone_to_owned().context(|| "duplicate a map of sockets")?))
        };
        self.steering.targets().map(duplicate).collect()
    }

    /// Where calls wait to be answered.
    pub(super) fn calls(&self) -> Option<BorrowedFd<'_>> {
        match &self.sockets {
            Sockets::Given(_) => None,
            Sockets::Intercepted(sockets) => sockets.calls(),
        }
    }

    /// Answers a call, which waits; what an operator should know.
    pub(super) fn answer_call(&mut self) -> Vec<String> {
        let Sockets::Intercepted(sockets) = &mut self.sockets else { return Vec::new() };
        let answered = sockets.answer_call();
        let mut notes = answered.notes;
        if answered.changed {
            notes.extend(self.steer_again().err().map(|error| error.to_string()));
        }
        notes
    }

    /// Processes whose end is a reason to look what listens ([`Holding::refresh`]).
    pub(super) fn holders(&self) -> Vec<BorrowedFd<'_>> {
        match &self.sockets {
            Sockets::Given(_) => Vec::new(),
            Sockets::Intercepted(sockets) => sockets.holders().collect(),
        }
    }

    /// Looks what listens now, and steers accordingly.
    ///
    /// # Errors
    /// Those of bpf(2), setsockopt(2) and of reading /proc.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let changed = match &mut self.sockets {
            Sockets::Given(given) => given.refresh()?,
            Sockets::Intercepted(sockets) => sockets.refresh()?,
        };
        if changed { self.steer_again() } else { Ok(()) }
    }

    /// Whether a process has one of the sockets.
    ///
    /// # Errors
    /// Those of fstat(2) and of reading /proc.
    pub(super) fn is_held_by(&self, pid: i32) -> Result<bool> {
        let open = sockets_of(pid)?;
        for (_, socket) in self.sockets.named() {
            if open.contains(&socket.inode()?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The sockets at whose address there are others too.
    pub(super) fn crowd(&self) -> Vec<&Socket> {
        let named: Vec<_> = self.sockets.named().collect();
        let is_crowded = |address: &Address| named.iter().filter(|(other, _)| *other == address).count() > 1;
        named.iter().filter(|(address, _)| is_crowded(address)).map(|(_, socket)| *socket).collect()
    }

    /// No process is left that could call.
    pub(super) fn end_calls(&mut self) {
        match &mut self.sockets {
            Sockets::Given(_) => {}
            Sockets::Intercepted(sockets) => sockets.end_calls(),
        }
    }

    /// The program listens elsewhere than before.
    fn steer_again(&mut self) -> Result<()> {
        self.steering.follow(self.sockets.named())?;
        if self.serves { self.steering.serve() } else { Ok(()) }
    }

    /// Connects to the instance, whoever serves at its address.
    ///
    /// # Errors
    /// Those of connect(2) and bpf(2).
    pub(super) fn probe(&mut self) -> Result<Probe> {
        let prober = Prober::new(self.tcp()?)?;
        let reach = match &self.before {
            Before::Nobody => Reach::Probes,
            Before::Other(serving) => self.steering.probe(serving, &prober)?,
            Before::Hidden => Reach::Nothing,
        };
        if reach == Reach::Nothing {
            return Ok(Probe::Impossible);
        }
        self.probing = true;
        let host = prober.target().to_string();
        Ok(Probe::Connection(TcpStream::from(OwnedFd::from(prober.connect()?)), host))
    }

    /// Whether no connection waits to be accepted at the port of probes.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub(super) fn is_idle(&self) -> Result<bool> {
        let probed = self.tcp()?;
        for (address, socket) in self.sockets.named() {
            if address == probed && socket.transport()? == Some(Transport::Stream) && socket.queue()?.waiting > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// New connections go to this instance from now on. Said again, it is done again: somebody else may have had them.
    ///
    /// # Errors
    /// Those of bpf(2), setsockopt(2) and rename(2).
    pub(super) fn serve(&mut self) -> Result<()> {
        self.steering.serve()?;
        match &mut self.sockets {
            Sockets::Given(given) => given.publish()?,
            Sockets::Intercepted(sockets) => sockets.publish()?,
        }
        (self.before, self.probing, self.serves) = (Before::Nobody, false, true);
        self.inspection = Inspection::default();
        Ok(())
    }

    /// Nobody asks the instance any more: whoever serves is alone again.
    ///
    /// # Errors
    /// Those of bpf(2) and setsockopt(2).
    pub(super) fn end_probing(&mut self) -> Result<()> {
        match (&self.before, std::mem::take(&mut self.probing)) {
            (Before::Other(serving), true) => self.steering.end_probing(serving),
            (Before::Other(_), false) | (Before::Nobody | Before::Hidden, _) => Ok(()),
        }
    }

    /// What the instance has left to do, for these processes.
    ///
    /// # Errors
    /// As [`Inspection::look`].
    pub(super) fn look(&mut self, processes: &[i32]) -> Result<Look> {
        self.refresh()?;
        self.inspection.look(self.sockets.named(), processes, Instant::now())
    }

    /// The instance is no more: what still comes waits here, and whoever takes the sockets over makes maps of their own.
    pub(super) fn outlive(&mut self) {
        self.end_calls();
        self.steering = Steering::default();
        self.before = Before::Nobody;
    }

    /// Lets go of everything. What waits goes to whoever else has the address.
    pub(super) fn release(&mut self) {
        self.steering = Steering::default();
        self.before = Before::Nobody;
        match &mut self.sockets {
            Sockets::Given(given) => given.release(),
            Sockets::Intercepted(sockets) => sockets.release(),
        }
    }

    /// For the end of all: takes paths of unix sockets away that lead nowhere from now on.
    ///
    /// # Errors
    /// Those of unlink(2), once all have been tried: the first of them.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        match &mut self.sockets {
            _ if self.handed_out => Ok(()),
            Sockets::Given(given) => given.withdraw(),
            Sockets::Intercepted(sockets) => sockets.withdraw(),
        }
    }

    /// The address of probes.
    fn tcp(&self) -> Result<&Address> {
        let mut addresses = self.listen.iter().map(|listen| &listen.address);
        let missing = || Error::new(Kind::Invalid, "connect to the instance", "it has no TCP address");
        addresses.find(|address| matches!(address, Address::Tcp(_))).ok_or_else(missing)
    }
}

impl Sockets {
    /// Every socket with its address.
    fn named(&self) -> Box<dyn Iterator<Item = (&Address, &Socket)> + '_> {
        match self {
            Self::Given(given) => {
                Box::new(given.listeners().iter().map(|listener| (&listener.listen().address, listener.socket())))
            }
            Self::Intercepted(sockets) => Box::new(sockets.sockets()),
        }
    }
}
