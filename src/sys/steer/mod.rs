//! Which of the sockets that share a port gets a new connection or datagram.
//!
//! Sockets with `SO_REUSEPORT` that are bound to one address make a *group*; left alone, the kernel spreads what comes in
//! over all of them. Here a program in the kernel chooses instead: it holds the sockets of one instance as a map
//! ([`Targets`]) and picks one of those. Attaching another program to any socket of the group replaces the one before in
//! one step, for the whole group. What waits in a listener of the group moves to one that the program picks when its last
//! descriptor is closed, whatever `net.ipv4.tcp_migrate_req` says.
//!
//! A group whose sockets came one by one belongs to its program, not to a process: the choice stays in force when
//! who made it ends.

mod program;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::bpf;
use crate::sys::socket::{self, Family, Socket};

/// `SO_ATTACH_REUSEPORT_CBPF` and `SO_ATTACH_REUSEPORT_EBPF` of asm-generic/socket.h.
const ATTACH_CLASSIC: i32 = 51;
const ATTACH_EXTENDED: i32 = 52;

/// The sockets of one instance in one group, as the kernel's map of them (`BPF_MAP_TYPE_REUSEPORT_SOCKARRAY`).
///
/// A socket is in one map at most, as long as any descriptor or attached program keeps that: so they are made once for
/// the sockets, and whoever else needs them gets the map by its descriptor.
#[derive(Debug)]
pub struct Targets {
    map: OwnedFd,
    count: u32,
}

/// A connection that is meant for the candidate: it comes from this port of the very address that it goes to. No other
/// host can make one, because nobody gets an answer to his own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The port that the prober has bound, in the host's byte order.
    pub port: u16,
}

impl Targets {
    /// Of sockets that are in a group already: TCP sockets are from listen(2) on, UDP sockets from bind(2) on.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the user may load no programs (see [`steer_to_index`]); [`Kind::Busy`] if one of them
    /// is in another map; [`Kind::State`] if one is in no group; [`Kind::Invalid`] without any.
    pub fn new(sockets: &[BorrowedFd<'_>]) -> Result<Self> {
        let operation = "make a map of sockets";
        if sockets.is_empty() {
            return Err(Error::new(Kind::Invalid, operation, "there is no socket"));
        }
        let map = bpf::make_socket_map(sockets).map_err(|error| match error.errno() {
            Some(libc::EBUSY) => Error::new(Kind::Busy, operation, "a socket is in another map"),
            Some(libc::EINVAL) => Error::new(Kind::State, operation, "a socket does not share its port, or not yet"),
            _ => refused(error),
        })?;
        Ok(Self { map, count: u32::try_from(sockets.len()).unwrap_or(u32::MAX) })
    }

    /// Another descriptor of the same map, for somebody else.
    ///
    /// # Errors
    /// Those of fcntl(F_DUPFD_CLOEXEC).
    pub fn duplicate(&self) -> Result<OwnedFd> {
        self.map.try_clone().context(|| "duplicate a map of sockets")
    }
}

/// From what another process sent.
impl TryFrom<OwnedFd> for Targets {
    type Error = Error;

    fn try_from(map: OwnedFd) -> Result<Self> {
        match bpf::socket_map_size(map.as_fd()).map_err(refused)? {
            Some(count) => Ok(Self { map, count }),
            None => Err(Error::new(Kind::Invalid, "take a map of sockets", "the descriptor is none")),
        }
    }
}

impl AsFd for Targets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// From now on the group of `member` sends what is new to `serving`, spread over its sockets by a hash of the addresses;
/// with a candidate, what is a probe goes there, and is refused if no candidate takes it. `member` is any socket of the
/// group, also one of those.
///
/// # Errors
/// [`Kind::Unsupported`] where the user may load no programs (see [`steer_to_index`]); else those of bpf(2) and
/// setsockopt(2): EINVAL for a socket without `SO_REUSEPORT`.
pub fn steer(member: impl AsFd, serving: &Targets, candidate: Option<(Probe, &Targets)>) -> Result<()> {
    let choice = |targets: &Targets| program::Choice { map: targets.map.as_raw_fd(), count: targets.count };
    let code = program::generate(choice(serving), candidate.map(|(probe, targets)| (probe, choice(targets))));
    let program = bpf::load_selecting_program(&code).map_err(refused)?;
    socket::set_option(member.as_fd(), ATTACH_EXTENDED, program.as_raw_fd())
        .context(|| "attach the program that chooses among sockets")
        .map_err(refused)
}

/// Makes a group of a TCP listener that was bound without `SO_REUSEPORT`, so that it serves as before whoever joins.
///
/// The kernel makes the group when a second listener joins, and spreads new connections over both until a program is
/// attached. So the second one is ours, for a moment: what it got meanwhile moves to the listener when it is closed.
///
/// # Errors
/// As for [`Targets::new`] and [`steer`]; where no programs are allowed nothing is changed. [`Kind::State`] for a listener
/// without `SO_REUSEADDR` that has connections: those keep the address for themselves until they end.
pub fn enlist(listener: &Socket) -> Result<Targets> {
    let operation = || "take a listener into a group";
    bpf::load_selecting_program(&program::pass()).map_err(refused)?;
    let (Some(family), Some(transport)) = (listener.family()?, listener.transport()?) else {
        return Err(Error::new(Kind::Unsupported, operation(), "its family or type is unknown"));
    };
    listener.share_port().context(operation)?;
    listener.reuse_address().context(operation)?;
    listener.give_to_root().context(operation)?;
    let second = Socket::new(family, transport)?;
    if family == Family::V6 && listener.takes_both_versions()? {
        second.take_both_versions()?;
    }
    second.share_port()?;
    second.reuse_address()?;
    second.bind(&listener.local()?).map_err(|error| match error.errno() {
        Some(libc::EADDRINUSE) => Error::new(
            Kind::State,
            operation(),
            "its connections keep the address, because it did not set SO_REUSEADDR",
        )
        .next("try again when they have ended"),
        _ => error.during(operation()),
    })?;
    second.listen(listener.queue()?.backlog.max(1)).context(operation)?;
    let targets = Targets::new(&[listener.as_fd()])?;
    steer(listener, &targets, None)?;
    Ok(targets)
}

/// Where programs of the new sort are refused, any user can send everything that is new in the group of `member` to the
/// socket with one index. Indices count from 0 in the order in which the sockets joined; when one is closed, the last
/// takes its place, so this is called again then. What waits in a socket that closes is lost, unless
/// `net.ipv4.tcp_migrate_req` is set.
///
/// # Errors
/// Those of setsockopt(2): EINVAL for a socket without `SO_REUSEPORT`.
pub fn steer_to_index(member: impl AsFd, index: u32) -> Result<()> {
    let code = [libc::sock_filter { code: program::CLASSIC_RETURN, jt: 0, jf: 0, k: index }];
    let header = libc::sock_fprog { len: 1, filter: code.as_ptr().cast_mut() };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or_default();
    let member = member.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a sock_fprog of the size that is given, and one sock_filter through it; both live until
    // the call returns.
    let result =
        unsafe { libc::setsockopt(member, libc::SOL_SOCKET, ATTACH_CLASSIC, (&raw const header).cast(), length) };
    if result == -1 { Err(std::io::Error::last_os_error()).context(|| "attach the index of a socket") } else { Ok(()) }
}

/// What a caller can go on without gets a kind of its own.
fn refused(error: Error) -> Error {
    match error.errno() {
        Some(libc::EPERM | libc::ENOSYS) => {
            Error::new(Kind::Unsupported, "choose among the sockets of a port", error.without_next_step())
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests;
