//! Sockets that the program makes itself: it is asked about each, and what it listens on is kept.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Kind, Result};
use crate::service::address::{Address, Listen};
use crate::service::intercept::{Event, Interceptor, Network};
use crate::service::message::Order;
use crate::service::socket::{Company, Listener};
use crate::service::steer::{Serving, Steering};
use crate::sys::process::Process;
use crate::sys::socket::Socket;

/// What the program has, and what it can get.
#[derive(Debug)]
pub(super) struct Intercepted {
    declared: Vec<Listen>,
    /// Ours, for what the program cannot have two of: the paths of unix sockets, by index.
    paths: Vec<(usize, Listener)>,
    /// Those of an instance that is no more, by index.
    inherited: Vec<(usize, Socket)>,
    /// Who answers; none before the program runs, and after it has ended.
    interceptor: Option<Interceptor>,
    /// What listens, also after the end of the program.
    known: Vec<Known>,
}

/// A socket of the program's that listens.
#[derive(Debug)]
struct Known {
    inode: u64,
    /// The declared addresses that it serves, by index.
    listen: Vec<usize>,
    socket: Socket,
    /// One who has it, whose end may be that of the socket.
    holder: Option<Process>,
}

/// What came of a call.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// What an operator should know.
    pub notes: Vec<String>,
    /// Whether what listens is not what it was.
    pub changed: bool,
}

impl Intercepted {
    /// Makes what the program will not make, and sees whether it can make the rest.
    pub(super) fn prepare(order: &Order, mut inherited: Vec<(usize, Socket)>) -> Result<Self> {
        let company = order.company();
        let mut paths = Vec::new();
        for (index, listen) in order.listen.iter().enumerate() {
            let place = inherited.iter().position(|(of, _)| *of == index);
            match (&listen.address, place) {
                (Address::Auto, _) => {
                    let cause = "nobody tells the program which port was chosen";
                    return Err(Error::new(Kind::Usage, "listen on 'auto'", cause)
                        .next("give the port that it binds, or --handover listen-fds"));
                }
                (Address::Unix(..), Some(place)) => {
                    paths.push((index, Listener::inherit(listen, inherited.swap_remove(place).1)?));
                }
                (Address::Unix(..), None) => paths.push((index, Listener::make(listen, company)?)),
                (Address::Tcp(_) | Address::Udp(_), None) if company == Company::Alone => {
                    // Who has the port is found out before the program is told no.
                    drop(Listener::make(listen, company)?);
                }
                (Address::Tcp(_) | Address::Udp(_), _) => {}
            }
        }
        let declared = order.listen.clone();
        Ok(Self { declared, paths, inherited, interceptor: None, known: Vec::new() })
    }

    /// Answers calls from now on. Who serves at the addresses as long as the program does not is returned, if that are
    /// sockets of an instance that is no more.
    pub(super) fn answer_at(&mut self, listener: OwnedFd, network: Network) -> Result<Option<Serving>> {
        let mut hosts = Vec::new();
        for (index, path) in &self.paths {
            hosts.push((*index, path.socket().duplicate()?));
        }
        let serving = match network {
            // The program gets these very sockets.
            Network::Private => {
                hosts.append(&mut self.inherited);
                None
            }
            // It gets its own beside them, and they are asked past by probes.
            Network::Shared => self.serve_inherited()?,
        };
        self.interceptor = Some(Interceptor::new(listener, &self.declared, network, hosts)?);
        Ok(serving)
    }

    fn serve_inherited(&self) -> Result<Option<Serving>> {
        if self.inherited.is_empty() {
            return Ok(None);
        }
        let named =
            self.inherited.iter().filter_map(|(index, socket)| Some((&self.declared.get(*index)?.address, socket)));
        let steering = Steering::new(named)?;
        steering.serve()?;
        let mut addresses = Vec::new();
        let mut maps = Vec::new();
        for (address, map) in steering.targets() {
            addresses.push(address.clone());
            maps.push(
                map.try_clone_to_owned().map_err(|error| Error::new(Kind::System, "keep a map", error.to_string()))?,
            );
        }
        Serving::new(addresses, maps).map(Some)
    }

    pub(super) fn calls(&self) -> Option<BorrowedFd<'_>> {
        self.interceptor.as_ref().map(AsFd::as_fd)
    }

    /// Answers one call, which waits.
    pub(super) fn answer_call(&mut self) -> Answered {
        let Some(interceptor) = &mut self.interceptor else { return Answered::default() };
        let mut answered = Answered::default();
        match interceptor.handle() {
            Ok(events) => {
                for event in events {
                    match event {
                        Event::Listening(_) => {}
                        Event::Note(note) => answered.notes.push(note),
                    }
                }
                match self.refresh() {
                    Ok(changed) => answered.changed = changed,
                    Err(error) => answered.notes.push(error.to_string()),
                }
            }
            Err(error) => {
                answered.notes.push(format!("its binds and listens fail from now on: {error}"));
                self.interceptor = None;
            }
        }
        answered
    }

    /// No process is left that could call.
    pub(super) fn end_calls(&mut self) {
        self.interceptor = None;
    }

    /// Looks what listens now. Whether that is something else than before.
    ///
    /// A socket that nobody has any more is let go of, so that what waits in it moves to the others at its address. The last
    /// one is not: the program may be about to end, and its successor serves who waits.
    pub(super) fn refresh(&mut self) -> Result<bool> {
        let Some(interceptor) = &mut self.interceptor else {
            self.known.iter_mut().for_each(|known| known.holder = None);
            return Ok(false);
        };
        let mut now = Vec::new();
        for listening in interceptor.listening() {
            let (socket, listen) = (listening.socket.duplicate()?, listening.listen.to_vec());
            let holder = Process::open_thread(listening.holder)?;
            now.push(Known { inode: socket.inode()?, listen, socket, holder });
        }
        let before = std::mem::take(&mut self.known);
        let inodes: Vec<u64> = before.iter().map(|known| known.inode).collect();
        for mut known in before {
            let has_heir = |index| now.iter().any(|other| other.listen.contains(index));
            if known.listen.iter().any(|index| !has_heir(index)) && now.iter().all(|other| other.inode != known.inode) {
                known.holder = None;
                now.push(known);
            }
        }
        self.known = now;
        Ok(self.known.iter().map(|known| known.inode).ne(inodes))
    }

    /// Processes whose end is a reason to look again.
    pub(super) fn holders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.known.iter().filter_map(|known| known.holder.as_ref()).map(AsFd::as_fd)
    }

    pub(super) fn missing(&self) -> Vec<&Address> {
        let listens = |index: usize| self.known.iter().any(|known| known.listen.contains(&index));
        let declared = self.declared.iter().enumerate();
        declared.filter(|(index, _)| !listens(*index)).map(|(_, listen)| &listen.address).collect()
    }

    /// What listens, each with its address; a port that was not declared itself has that of another version of IP.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&Address, &Socket)> {
        self.known.iter().filter_map(|known| {
            let declared = known.listen.first().and_then(|index| self.declared.get(*index));
            Some((&declared.or(self.declared.first())?.address, &known.socket))
        })
    }

    pub(super) fn publish(&mut self) -> Result<()> {
        // What waits in them moves once the last who has them lets go.
        self.inherited.clear();
        self.paths.iter_mut().try_for_each(|(_, path)| path.publish())
    }

    /// Each declared address once for each socket that serves it.
    pub(super) fn hand_out(&self) -> Result<Vec<(Listen, OwnedFd)>> {
        let mut found = Vec::new();
        for (index, path) in &self.paths {
            found.push((self.declared[*index].clone(), path.socket().duplicate()?.into()));
        }
        for known in &self.known {
            for listen in known.listen.iter().filter_map(|index| self.declared.get(*index)) {
                if !matches!(listen.address, Address::Unix(..)) {
                    found.push((listen.clone(), known.socket.duplicate()?.into()));
                }
            }
        }
        Ok(found)
    }

    pub(super) fn release(&mut self) {
        if let Some(interceptor) = &mut self.interceptor {
            interceptor.release();
        }
        self.paths.clear();
        self.inherited.clear();
        self.known.clear();
    }

    /// Once all have been tried: the first failure.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        let mut first = Ok(());
        for (_, path) in &mut self.paths {
            first = first.and(path.withdraw());
        }
        first
    }
}
