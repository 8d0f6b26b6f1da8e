//! From a call that waits to its answer: look, decide, act.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Gid, Uid, fchown, fstat};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseport;

use super::caller::{at_exec, describe, first_port, has_our_network, is_polled, is_socket, reuse, rights, versions};
use super::decide::{Call, Match, Protocol, Refusal, Request, Reuse, Verdict, Versions, Wanted, decide};
use super::file::{Occupant, Place};
use super::port::{Answered, Port};
use super::target::{Target, parse, readable};
use super::{BACKLOG, Interceptor};
use crate::error::{Context, Error, Kind, Result};
use crate::service::address::{Address, UnixKind};
use crate::sys::notification::{Answer, Delivery, Intercepted, Notification, read_memory};
use crate::sys::process::Process;
use crate::sys::socket::{Address as Local, Family, Socket, Transport, copy_options};
use crate::sys::socket_table::Descriptor;

/// An answer, or none if nobody waits for it any more; and what the operator should know.
type Judged = (Option<Answer>, Vec<String>);

/// A call with the socket that it is about.
struct Question<'a> {
    notification: &'a Notification,
    descriptor: i32,
    socket: Socket,
    inode: u64,
    request: Request,
}

const DONE: Judged = (Some(Answer::Value(0)), Vec::new());
const CONTINUE: Judged = (Some(Answer::Continue), Vec::new());
const GONE: Judged = (None, Vec::new());

impl Interceptor {
    pub(super) fn judge(&mut self, notification: &Notification) -> Result<Judged> {
        let (Some(call), Some(descriptor)) = (call_of(notification), first_argument(notification)) else {
            return Ok(CONTINUE);
        };
        let Some(socket) = socket_of(notification, descriptor)? else { return Ok(CONTINUE) };
        let Ok(Some((family, protocol))) = describe(&socket) else { return Ok(CONTINUE) };
        if family != Family::Unix && socket.is_connected()? {
            // It can be neither bound nor made to listen, and the kernel says so. The program may close it now, and leave
            // the last of it to us, which must not wait for its peer.
            socket.close_at_once()?;
            return Ok(CONTINUE);
        }
        let inode = socket.inode()?;
        if let Some(judged) = self.answer_known(call, inode, notification) {
            return judged;
        }
        let wanted = match call {
            Call::Bind => self.wanted_by_bind(notification, family)?,
            Call::Listen => self.wanted_by_listen(notification, &socket)?,
        };
        let forbidden_below = match wanted {
            Wanted::Internet(address) if address.port() != 0 => first_port(notification.thread)?,
            Wanted::Internet(_) | Wanted::Declared(_) | Wanted::Elsewhere => 0,
        };
        let request = Request {
            call,
            network: self.network,
            protocol,
            wanted,
            versions: versions(&socket, family)?,
            reuse: reuse(&socket)?,
            forbidden_below,
        };
        if !self.listener.is_waiting(notification)? {
            return Ok(GONE);
        }
        self.act(Question { notification, descriptor, socket, inode, request })
    }

    /// A socket that we know already: it is bound, and only its backlog is asked about.
    fn answer_known(&mut self, call: Call, inode: u64, notification: &Notification) -> Option<Result<Judged>> {
        let port = self.ports.iter_mut().find(|port| port.inode == inode)?;
        match (call, port.protocol, port.answered) {
            (Call::Bind, _, Answered::No) => {
                port.answered = Answered::Yes;
                Some(Ok(DONE))
            }
            // The kernel knows what to say to a second one, and to who would listen for datagrams.
            (Call::Bind, _, Answered::Yes)
            | (Call::Listen, Protocol::Udp | Protocol::Other | Protocol::Unix(UnixKind::Datagram), _) => {
                Some(Ok(CONTINUE))
            }
            (
                Call::Listen,
                Protocol::Tcp | Protocol::MultipathTcp | Protocol::Unix(UnixKind::Stream | UnixKind::Seqpacket),
                _,
            ) => Some(Ok(listen(port, notification))),
        }
    }

    fn wanted_by_bind(&self, notification: &Notification, family: Family) -> Result<Wanted> {
        let [_, address, length, ..] = notification.arguments;
        let Some(length) = readable(length) else { return Ok(Wanted::Elsewhere) };
        // Memory that is not there is EFAULT, which the kernel says better.
        let Ok(bytes) = read_memory(notification.thread, address, length) else { return Ok(Wanted::Elsewhere) };
        Ok(match parse(family, &bytes) {
            Target::Internet(address) => Wanted::Internet(address),
            Target::Path(path) => {
                self.find_declared(notification.thread, |place| place.is_named_by(notification.thread, &path))
            }
            Target::Other => Wanted::Elsewhere,
        })
    }

    /// Where the kernel says that it is bound. The file of a unix socket may have another name by now.
    fn wanted_by_listen(&self, notification: &Notification, socket: &Socket) -> Result<Wanted> {
        Ok(match socket.local()? {
            Local::Internet(address) => Wanted::Internet(address),
            Local::Path(_) => match socket.file()? {
                Some(file) => self.find_declared(notification.thread, |place| place.has(&file)),
                None => Wanted::Elsewhere,
            },
            Local::Abstract(_) | Local::Unnamed => Wanted::Elsewhere,
        })
    }

    fn find_declared(&self, thread: i32, is: impl Fn(&Place) -> bool) -> Wanted {
        let found = self.declared.iter().position(|listen| match &listen.address {
            Address::Unix(_, path) => Place::find(thread, path).is_some_and(|place| is(&place)),
            Address::Tcp(_) | Address::Udp(_) | Address::Auto => false,
        });
        found.map_or(Wanted::Elsewhere, Wanted::Declared)
    }

    fn act(&mut self, question: Question<'_>) -> Result<Judged> {
        let mut verdict = self.decide(&question.request);
        if verdict == Verdict::Refuse(Refusal::InUse) {
            // What the program has closed meanwhile is in nobody's way.
            self.ports.retain_mut(Port::is_open);
            verdict = self.decide(&question.request);
        }
        match verdict {
            Verdict::Continue => Ok(CONTINUE),
            Verdict::ContinueWithNote(note) => Ok((Some(Answer::Continue), vec![note])),
            Verdict::Refuse(refusal) => Ok((Some(failure(errno_of(refusal))), Vec::new())),
            Verdict::Await => Ok((Some(Answer::Continue), self.clear_way(&question))),
            Verdict::Take(found) => self.take(question, found),
            Verdict::Replace(found) => self.replace(question, found),
        }
    }

    fn decide(&self, request: &Request) -> Verdict {
        let held: Vec<_> = self.ports.iter().filter_map(Port::held).collect();
        decide(request, &self.declared, &held)
    }

    /// The program's own socket, bound here and with a port that can be shared.
    fn take(&mut self, question: Question<'_>, found: Match) -> Result<Judged> {
        let Question { notification, descriptor, socket, inode, request } = question;
        let Wanted::Internet(address) = request.wanted else { return Ok(CONTINUE) };
        let owner = open_up(&socket)?;
        let done = match request.call {
            Call::Bind => socket.bind(&Local::Internet(address)),
            Call::Listen => Ok(()),
        };
        if let Err(error) = done {
            close_again(&socket, owner, request.reuse, address)?;
            return Ok((Some(failure(number_of(&error)?)), Vec::new()));
        }
        let mut port = Port {
            socket,
            inode,
            holder: Descriptor { process: notification.thread, number: descriptor },
            protocol: request.protocol,
            versions: request.versions,
            reuse: request.reuse,
            listen: found.listen,
            listens: request.protocol == Protocol::Udp,
            answered: Answered::Yes,
        };
        let (answer, mut notes) = match request.call {
            Call::Bind => DONE,
            Call::Listen => listen(&mut port, notification),
        };
        self.ports.push(port);
        notes.extend(found.note);
        Ok((answer, notes))
    }

    /// A socket of the host's in the place of the program's.
    fn replace(&mut self, question: Question<'_>, found: Match) -> Result<Judged> {
        let Question { notification, descriptor, ref socket, ref request, .. } = question;
        let mut notes: Vec<String> = found.note.clone().into_iter().collect();
        if let Err(error) = self.make_file(&question, &found) {
            return Ok((Some(failure(number_of(&error)?)), notes));
        }
        let host = match self.host(&question, &found, &mut notes) {
            Ok(host) => host,
            Err(error) => return Ok((Some(failure(number_of(&error)?)), notes)),
        };
        if let Err(error) = copy_options(socket, &host, rights(notification.thread)?) {
            notes.push(error.to_string());
        }
        if is_polled(notification.thread, descriptor) {
            notes.push(format!(
                "descriptor {descriptor} was watched by epoll before it was bound, and what replaced it is not: the \
                 program may wait for ever"
            ));
        }
        let mut port = Port {
            inode: host.inode()?,
            socket: host,
            holder: Descriptor { process: notification.thread, number: descriptor },
            protocol: match request.protocol {
                Protocol::MultipathTcp => Protocol::Tcp,
                Protocol::Tcp | Protocol::Udp | Protocol::Unix(_) | Protocol::Other => request.protocol,
            },
            versions: request.versions,
            reuse: request.reuse,
            listen: found.listen,
            listens: matches!(request.protocol, Protocol::Udp | Protocol::Unix(UnixKind::Datagram)),
            answered: Answered::Yes,
        };
        let (answer, more) = match request.call {
            Call::Bind => DONE,
            Call::Listen => listen(&mut port, notification),
        };
        notes.extend(more);
        if answer == Some(Answer::Value(0)) {
            let at_exec = at_exec(notification.thread, descriptor);
            let listener = &self.listener;
            if listener.replace_descriptor(notification, descriptor, port.socket.as_fd(), at_exec)? == Delivery::Gone {
                return Ok((None, notes));
            }
            if self.ports.iter().all(|known| known.inode != port.inode) {
                self.ports.push(port);
            }
        }
        Ok((answer, notes))
    }

    /// The host's socket for a match: the one that the keeper has for the address, or a new one.
    fn host(&mut self, question: &Question<'_>, found: &Match, notes: &mut Vec<String>) -> Result<Socket> {
        let Wanted::Internet(wanted) = question.request.wanted else {
            let host = found.listen.first().and_then(|index| self.hosts.get(*index)?.as_ref());
            let missing = || Error::new(Kind::State, "hand a socket over", "the keeper has none for its path");
            return host.ok_or_else(missing)?.duplicate();
        };
        let addresses: Vec<_> = found.listen.iter().filter_map(|index| self.port_of(*index)).collect();
        let single = addresses.first().copied().unwrap_or(wanted);
        match question.request.network {
            super::Network::Shared if !has_our_network(question.notification.thread) => {
                let cause = "its socket is of several paths (IPPROTO_MPTCP), in a network that is not the host's";
                return Err(Error::new(Kind::Unsupported, format!("share port {}", wanted.port()), cause));
            }
            super::Network::Shared => return make(question, wanted, question.request.versions),
            super::Network::Private => {}
        }
        if addresses.len() < 2 {
            let kept = found.listen.first().and_then(|index| self.hosts.get(*index)?.as_ref());
            return kept.map_or_else(|| make(question, single, Versions::One), Socket::duplicate);
        }
        // Connections must not wait in what nobody will accept from.
        for index in &found.listen {
            if let Some(place) = self.hosts.get_mut(*index) {
                *place = None;
            }
        }
        if addresses.iter().all(|address| address.ip().is_unspecified()) {
            return make(question, SocketAddr::from((Ipv6Addr::UNSPECIFIED, wanted.port())), Versions::Both);
        }
        notes.push(format!("it has one socket for several addresses, and only {single} could be given to it"));
        make(question, single, Versions::One)
    }

    fn port_of(&self, index: usize) -> Option<SocketAddr> {
        match self.declared.get(index)?.address {
            Address::Tcp(address) | Address::Udp(address) => Some(address),
            Address::Unix(..) | Address::Auto => None,
        }
    }

    /// The file of a datagram socket: nobody else makes it in the container, since the bind is not made there.
    fn make_file(&self, question: &Question<'_>, found: &Match) -> Result<()> {
        if question.request.call != Call::Bind || question.request.protocol != Protocol::Unix(UnixKind::Datagram) {
            return Ok(());
        }
        let Some((place, path)) = self.place(question, found.listen.first().copied()) else { return Ok(()) };
        if place.is_ours(path) {
            return Ok(());
        }
        if place.occupant() == Occupant::DeadSocket {
            place.clear()?;
        }
        let owner = fstat(&question.socket).context(|| "look at the owner of a socket")?;
        place.occupy(0o777, (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid)))
    }

    /// The file that an earlier instance left where this one wants its own: behind it is nobody, because the socket that
    /// it was made for was replaced, or has ended.
    fn clear_way(&self, question: &Question<'_>) -> Vec<String> {
        let Wanted::Declared(index) = question.request.wanted else { return Vec::new() };
        let Some((place, path)) = self.place(question, Some(index)) else { return Vec::new() };
        if place.is_ours(path) {
            return vec![format!(
                "the container has the host's directory of {}: what it does to the file there is seen by clients",
                self.declared[index].address
            )];
        }
        match place.occupant() {
            Occupant::DeadSocket => place.clear().err().map(|error| error.to_string()).into_iter().collect(),
            Occupant::None | Occupant::Other => Vec::new(),
        }
    }

    fn place(&self, question: &Question<'_>, index: Option<usize>) -> Option<(Place, &Path)> {
        let path = match &self.declared.get(index?)?.address {
            Address::Unix(_, path) => path,
            Address::Tcp(_) | Address::Udp(_) | Address::Auto => return None,
        };
        let place = Place::find(question.notification.thread, path)?;
        // Files are made and removed there: it must not be the root of somebody else who has the thread's number by now.
        self.listener.is_waiting(question.notification).is_ok_and(|waits| waits).then_some((place, path))
    }
}

fn call_of(notification: &Notification) -> Option<Call> {
    match notification.intercepted()? {
        Intercepted::Bind => Some(Call::Bind),
        Intercepted::Listen => Some(Call::Listen),
    }
}

/// A descriptor is an `int`: the upper half of the register counts for nothing.
fn first_argument(notification: &Notification) -> Option<i32> {
    let low = u32::try_from(notification.arguments[0] & 0xffff_ffff).ok()?;
    Some(low.cast_signed()).filter(|descriptor| *descriptor >= 0)
}

/// The socket that a call is about; `None` if its thread has none of that number: the kernel says so.
fn socket_of(notification: &Notification, descriptor: i32) -> Result<Option<Socket>> {
    // Any other file may have something to say to whoever closes it, a duplicate too.
    if !is_socket(notification.thread, descriptor) {
        return Ok(None);
    }
    let Some(process) = Process::open_thread(notification.thread)? else { return Ok(None) };
    match process.duplicate_descriptor(descriptor) {
        Ok(socket) => Ok(Some(Socket::from(socket))),
        Err(error) if matches!(error.errno().map(Errno::from_raw_os_error), Some(Errno::BADF | Errno::SRCH)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Makes the port one that can be shared; returns whose the socket was.
fn open_up(socket: &Socket) -> Result<u32> {
    let owner = fstat(socket).context(|| "look at the owner of a socket")?.st_uid;
    socket.give_to_root()?;
    socket.share_port()?;
    Ok(owner)
}

/// Takes back what only a declared address brings, from a socket that did not get it. One that is bound to another one
/// by now was bound behind our back, to join the port of somebody else: it takes no connections any more.
fn close_again(socket: &Socket, owner: u32, reuse: Reuse, wanted: SocketAddr) -> Result<()> {
    set_socket_reuseport(socket, reuse.port).context(|| "let a socket have its port alone")?;
    fchown(socket, Some(Uid::from_raw(owner)), None).context(|| "give a socket back to its owner")?;
    match socket.local()? {
        Local::Internet(is) if is.port() != 0 && is.port() != wanted.port() => {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        Local::Internet(_) | Local::Path(_) | Local::Abstract(_) | Local::Unnamed => {}
    }
    Ok(())
}

/// Listens for the program, with room for what waits while instances change.
fn listen(port: &mut Port, notification: &Notification) -> Judged {
    let asked = u32::try_from(notification.arguments[1] & 0xffff_ffff).unwrap_or(BACKLOG);
    match port.socket.listen(asked.max(BACKLOG)) {
        Ok(()) => {
            port.listens = true;
            DONE
        }
        Err(error) => match number_of(&error) {
            Ok(number) => (Some(failure(number)), Vec::new()),
            Err(error) => (Some(Answer::Continue), vec![error.to_string()]),
        },
    }
}

/// A socket of ours, in the host's network, that shares its port.
fn make(question: &Question<'_>, address: SocketAddr, versions: Versions) -> Result<Socket> {
    let (family, transport) = match (address, question.request.protocol) {
        (SocketAddr::V4(_), Protocol::Udp) => (Family::V4, Transport::Datagram),
        (SocketAddr::V6(_), Protocol::Udp) => (Family::V6, Transport::Datagram),
        (SocketAddr::V4(_), _) => (Family::V4, Transport::Stream),
        (SocketAddr::V6(_), _) => (Family::V6, Transport::Stream),
    };
    let socket = Socket::new(family, transport)?;
    if versions == Versions::Both && family == Family::V6 {
        socket.take_both_versions()?;
    }
    socket.reuse_address()?;
    socket.share_port()?;
    socket.bind(&Local::Internet(address))?;
    Ok(socket)
}

fn errno_of(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::InUse => Errno::ADDRINUSE,
        Refusal::Forbidden => Errno::ACCESS,
    }
}

fn failure(errno: Errno) -> Answer {
    Answer::Failure(errno.raw_os_error())
}

/// What the kernel said to us is what it says to the program; an error of our own is none of the program's.
fn number_of(error: &Error) -> Result<Errno> {
    error
        .errno()
        .map(Errno::from_raw_os_error)
        .ok_or_else(|| Error::new(error.kind(), "answer a call of the instance", error.to_string()))
}
