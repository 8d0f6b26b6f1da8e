//! The thread that waits for an answer, and what of it matters: its socket, and what it may do.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use super::decide::{Protocol, Reuse, Versions};
use crate::error::{Context, Result};
use crate::service::address::UnixKind;
use crate::sys::notification::AtExec;
use crate::sys::socket::{Family, Rights, Socket, Transport};

/// `IPPROTO_TCP`, `IPPROTO_UDP`, `IPPROTO_MPTCP` of linux/in.h.
const TCP: u32 = 6;
const UDP: u32 = 17;
const MULTIPATH_TCP: u32 = 262;
/// `CAP_NET_BIND_SERVICE` of linux/capability.h.
const BIND_PRIVILEGED: u32 = 10;
/// `CAP_NET_ADMIN` and `CAP_NET_RAW`.
const ADMINISTER: u32 = 12;
const RAW: u32 = 13;
/// The first port that everybody may bind, unless the network says otherwise.
const UNPRIVILEGED: u16 = 1024;
/// How much is read of a thread's descriptors, which it may have as many of as it likes, each with any number of lines; what is
/// missed is a note.
const MOST: usize = 4096;
const LONGEST: u64 = 64 << 10;
/// `O_CLOEXEC`, as /proc/PID/fdinfo shows it (fs/proc/fd.c), on every processor but alpha and parisc.
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

/// What a socket is; `None` for a family that has no services here.
pub(super) fn describe(socket: &Socket) -> Result<Option<(Family, Protocol)>> {
    let (Some(family), Some(transport)) = (socket.family()?, socket.transport()?) else { return Ok(None) };
    let protocol = match (family, transport) {
        (Family::Unix, Transport::Stream) => Protocol::Unix(UnixKind::Stream),
        (Family::Unix, Transport::SeqPacket) => Protocol::Unix(UnixKind::Seqpacket),
        (Family::Unix, Transport::Datagram) => Protocol::Unix(UnixKind::Datagram),
        (Family::V4 | Family::V6, Transport::Stream) => match socket.protocol()? {
            TCP => Protocol::Tcp,
            MULTIPATH_TCP => Protocol::MultipathTcp,
            _ => Protocol::Other,
        },
        (Family::V4 | Family::V6, Transport::Datagram) if socket.protocol()? == UDP => Protocol::Udp,
        (Family::V4 | Family::V6, Transport::Datagram | Transport::SeqPacket) => Protocol::Other,
    };
    Ok(Some((family, protocol)))
}

/// What a program has allowed for its socket.
pub(super) fn reuse(socket: &Socket) -> Result<Reuse> {
    Ok(Reuse { port: socket.shares_port()?, address: socket.reuses_address()? })
}

/// Which versions of IP a socket takes.
pub(super) fn versions(socket: &Socket, family: Family) -> Result<Versions> {
    match family {
        Family::V6 if socket.takes_both_versions()? => Ok(Versions::Both),
        Family::V4 | Family::V6 | Family::Unix => Ok(Versions::One),
    }
}

/// The first port that a thread may bind in our network.
pub(super) fn first_port(thread: i32) -> Result<u16> {
    if capabilities(thread)? & (1 << BIND_PRIVILEGED) != 0 {
        return Ok(0);
    }
    if !has_our_network(thread) {
        return Ok(UNPRIVILEGED);
    }
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    Ok(text.trim().parse().unwrap_or(UNPRIVILEGED))
}

/// What a thread may do to our network, if it gets a socket of ours.
pub(super) fn rights(thread: i32) -> Result<Rights> {
    let has = capabilities(thread)? & (1 << ADMINISTER | 1 << RAW) != 0;
    Ok(if has { Rights::Network } else { Rights::None })
}

/// Whether a thread has the network of this process.
pub(super) fn has_our_network(thread: i32) -> bool {
    namespace("self", "net") == namespace(&thread.to_string(), "net")
}

fn namespace(process: &str, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()
}

/// Those that count in our network, which is owned by our user namespace: those in another one do not.
fn capabilities(thread: i32) -> Result<u64> {
    if namespace("self", "user") != namespace(&thread.to_string(), "user") {
        return Ok(0);
    }
    let status = fs::read_to_string(format!("/proc/{thread}/status"))
        .context(|| format!("look at the capabilities of process {thread}"))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    Ok(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
}

/// Whether a descriptor of a thread is a socket.
pub(super) fn is_socket(thread: i32, descriptor: i32) -> bool {
    let link = fs::read_link(format!("/proc/{thread}/fd/{descriptor}"));
    link.is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:["))
}

/// Whether a descriptor of a thread survives the execution of a program.
pub(super) fn at_exec(thread: i32, descriptor: i32) -> AtExec {
    let information = fs::read_to_string(format!("/proc/{thread}/fdinfo/{descriptor}")).unwrap_or_default();
    if close_on_exec(&information) { AtExec::Closes } else { AtExec::Stays }
}

fn close_on_exec(information: &str) -> bool {
    let flags = information.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| flags & CLOSE_ON_EXEC != 0)
}

/// Whether a thread waits for events of a descriptor by epoll(7): it would wait for ever if another socket took its place.
pub(super) fn is_polled(thread: i32, descriptor: i32) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{thread}/fdinfo")) else { return false };
    entries.flatten().take(MOST).any(|entry| {
        let mut information = String::new();
        let read = File::open(entry.path()).and_then(|file| file.take(LONGEST).read_to_string(&mut information));
        // Only a part was read, or a line was cut: what there is counts.
        read.is_ok() && polls(&information, descriptor)
    })
}

/// The lines of an epoll descriptor begin with `tfd: NUMBER events: …` (proc_pid_fdinfo(5)).
fn polls(information: &str, descriptor: i32) -> bool {
    let mut watched = information.lines().filter_map(|line| line.strip_prefix("tfd:"));
    watched.any(|line| line.split_whitespace().next().and_then(|word| word.parse().ok()) == Some(descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_descriptors_is_read() {
        assert!(close_on_exec("pos:\t0\nflags:\t02000002\nmnt_id:\t9\n"));
        assert!(!close_on_exec("pos:\t0\nflags:\t04002\n"));
        let epoll = "pos:\t0\nflags:\t02\ntfd:        5 events:       1d data: 8\ntfd:       11 events: 1 data: 9\n";
        assert!(polls(epoll, 5) && polls(epoll, 11));
        assert!(!polls(epoll, 1) && !polls("flags: 5", 5));
    }
}
