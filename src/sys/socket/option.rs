//! Socket options that other libraries lack, and the copying of a program's own.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{Family, Socket, Transport};
use crate::error::{Context, Result};

/// A type for which every pattern of bytes is a value.
///
/// # Safety
/// The implementer has no references and no values that are forbidden.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: a number.
unsafe impl Plain for i32 {}
// SAFETY: numbers without gaps.
unsafe impl Plain for [u32; 9] {}
// SAFETY: numbers only; bytes that the kernel leaves out stay zero, which is a number.
unsafe impl Plain for libc::tcp_info {}

/// getsockopt(2); what the kernel leaves out is zero.
pub(super) fn get<T: Plain>(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` bytes, which is the size of what the pointer leads to.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every byte is zero or was written by the kernel, and Plain says that any bytes are a value.
    Ok(unsafe { value.assume_init() })
}

/// setsockopt(2) with a number.
pub(super) fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or_default();
    let value = (&raw const value).cast();
    // SAFETY: the kernel reads `length` bytes, which is the size of the number that the pointer leads to.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO)
}

/// `SO_MEMINFO` of asm-generic/socket.h, and its first number (`SK_MEMINFO_RMEM_ALLOC`).
const SO_MEMINFO: i32 = 55;
const RECEIVED: usize = 0;

pub(super) fn received_memory(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get::<[u32; 9]>(socket, libc::SOL_SOCKET, SO_MEMINFO).map(|numbers| numbers[RECEIVED])
}

/// Options of any socket that programs set before they bind it, and a single number is.
const OF_ANY: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_MARK),
];
/// Options that a program may set by its rights over its own network, where they do no harm to the host's: what is let
/// through, by which way it goes, and with whose address.
const OF_THE_NETWORK: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
];

/// What the program may do to the network of the fresh socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// It has CAP_NET_ADMIN or CAP_NET_RAW there.
    Network,
    /// It is an ordinary user there.
    None,
}
const OF_UNIX: &[(i32, i32)] = &[(libc::SOL_SOCKET, libc::SO_PASSCRED), (libc::SOL_SOCKET, libc::SO_PASSSEC)];
const OF_V4: &[(i32, i32)] = &[
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
];
const OF_V6: &[(i32, i32)] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
];
const OF_TCP: &[(i32, i32)] = &[
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
];
/// Asked for, they are the double of what was set (socket(7)); each has a variant for root without an upper limit.
const BUFFERS: &[(i32, i32)] = &[(libc::SO_RCVBUF, libc::SO_RCVBUFFORCE), (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE)];

/// Gives a fresh socket the options that a program has set on its own before it bound it: what is different from a
/// fresh one's, of those that are one number. Filters, time-outs and linger times are left out, and so are the options
/// by which addresses are shared, and what the program has no right to set in the network of the fresh one. `O_NONBLOCK` is
/// copied too.
///
/// # Errors
/// Those of setsockopt(2) and fcntl(2), once all have been tried: the first of them.
pub fn copy_options(from: &Socket, to: &Socket, rights: Rights) -> Result<()> {
    let operation = || "copy the options of a socket";
    let mut first = None;
    let is_theirs = |option: &(i32, i32)| rights == Rights::Network || !OF_THE_NETWORK.contains(option);
    for (level, name) in options_of(from)?.into_iter().filter(is_theirs) {
        let copied = copy(from.as_fd(), to.as_fd(), level, name);
        first = first.or(copied.err());
    }
    for (plain, forced) in BUFFERS {
        first = first.or(copy_buffer(from.as_fd(), to.as_fd(), *plain, *forced).err());
    }
    let flags = fcntl_getfl(from).context(operation)?;
    let kept = fcntl_getfl(to).context(operation)?.difference(OFlags::NONBLOCK);
    fcntl_setfl(to, kept | flags.intersection(OFlags::NONBLOCK)).context(operation)?;
    first.map_or(Ok(()), Err).context(operation)
}

fn options_of(socket: &Socket) -> Result<Vec<(i32, i32)>> {
    let of_family: &[&[(i32, i32)]] = match socket.family()? {
        Some(Family::V4) => &[OF_V4],
        // Options of version 4 hold for the mapped addresses of one that takes both.
        Some(Family::V6) => &[OF_V6, OF_V4],
        Some(Family::Unix) => &[OF_UNIX],
        None => &[],
    };
    let is_tcp = socket.transport()? == Some(Transport::Stream) && socket.protocol()? != 0;
    let of_transport: &[(i32, i32)] = if is_tcp { OF_TCP } else { &[] };
    Ok([OF_ANY, of_transport].into_iter().chain(of_family.iter().copied()).flatten().copied().collect())
}

/// An option that the kernel does not tell is not copied.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<()> {
    let (Ok(wanted), Ok(present)) = (get::<i32>(from, level, name), get::<i32>(to, level, name)) else {
        return Ok(());
    };
    if wanted == present { Ok(()) } else { set(to, level, name, wanted) }
}

/// Setting a size, be it the default, ends the kernel's own tuning of it: equal ones stay untouched.
fn copy_buffer(from: BorrowedFd<'_>, to: BorrowedFd<'_>, plain: i32, forced: i32) -> io::Result<()> {
    let wanted: i32 = get(from, libc::SOL_SOCKET, plain)?;
    if wanted == get::<i32>(to, libc::SOL_SOCKET, plain)? {
        return Ok(());
    }
    let size = wanted / 2;
    set(to, libc::SOL_SOCKET, forced, size).or_else(|_| set(to, libc::SOL_SOCKET, plain, size))
}
