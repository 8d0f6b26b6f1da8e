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
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::bpf;
use crate::sys::socket::{self, Family, Socket};

/// `SO_ATTACH_REUSEPORT_CBPF`, `SO_ATTACH_REUSEPORT_EBPF` and `SO_DETACH_REUSEPORT_BPF` of asm-generic/socket.h.
const ATTACH_CLASSIC: i32 = 51;
const ATTACH_EXTENDED: i32 = 52;
const DETACH: i32 = 68;

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

/// For how many sockets a map has room: programs have one per processor at most.
const ROOM: u32 = 512;

impl Targets {
    /// Of sockets that are in a group already: TCP sockets are from listen(2) on, UDP sockets from bind(2) on.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the user may load no programs (see [`steer_to_index`]); [`Kind::Invalid`] without any
    /// socket; else as for [`Targets::add`].
    pub fn new(sockets: &[BorrowedFd<'_>]) -> Result<Self> {
        if sockets.is_empty() {
            return Err(Error::new(Kind::Invalid, "make a map of sockets", "there is no socket"));
        }
        let mut targets = Self { map: bpf::make_socket_map(ROOM).map_err(refused)?, count: 0 };
        sockets.iter().try_for_each(|socket| targets.add(*socket))?;
        Ok(targets)
    }

    /// As [`Targets::new`], of sockets that are in a map which nobody has any more but the program that chooses among
    /// them: that is taken off them, and the map vanishes soon. Meanwhile the kernel spreads what is new over the group, so
    /// there are no other sockets in it.
    ///
    /// # Errors
    /// As for [`Targets::new`]: [`Kind::Busy`] if somebody has the map after all.
    pub fn take_over(sockets: &[BorrowedFd<'_>]) -> Result<Self> {
        // The kernel frees programs and maps when no processor can be in them any more.
        let deadline = Instant::now() + Duration::from_secs(5);
        for socket in sockets {
            match socket::set_option(*socket, DETACH, 0) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(error).context(|| "take the program off a socket");
                }
                Ok(()) | Err(_) => {}
            }
        }
        loop {
            match Self::new(sockets) {
                Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return other,
            }
        }
    }

    /// Adds one that came later. Nothing is sent to it before the next [`steer`] with these targets.
    ///
    /// # Errors
    /// [`Kind::Busy`] if it is in a map already; [`Kind::State`] if it is in no group; [`Kind::Invalid`] without room.
    pub fn add(&mut self, socket: BorrowedFd<'_>) -> Result<()> {
        let operation = "put a socket into a map";
        // A socket that was closed has left its place.
        let mut place = 0;
        while place < self.count && bpf::has_socket(self.map.as_fd(), place).map_err(refused)? {
            place += 1;
        }
        if place >= ROOM {
            return Err(Error::new(Kind::Invalid, operation, format!("{ROOM} are in it, which are all it holds")));
        }
        bpf::put_socket(self.map.as_fd(), place, socket).map_err(|error| match error.errno() {
            Some(libc::EBUSY) => Error::new(Kind::Busy, operation, "it is in a map already"),
            Some(libc::EINVAL) => Error::new(Kind::State, operation, "it does not share its port, or not yet"),
            _ => refused(error),
        })?;
        self.count = self.count.max(place + 1);
        Ok(())
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
        let Some(room) = bpf::socket_map_room(map.as_fd()).map_err(refused)? else {
            return Err(Error::new(Kind::Invalid, "take a map of sockets", "the descriptor is none"));
        };
        // The places of sockets that were closed are free again: all are below the last that is not.
        let mut count = 0;
        for place in 0..room {
            if bpf::has_socket(map.as_fd(), place).map_err(refused)? {
                count = place + 1;
            }
        }
        Ok(Self { map, count })
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
