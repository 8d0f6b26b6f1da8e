//! Why an address cannot be had, in words, and who has it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rustix::io::Errno;

use super::file::temporary_prefix;
use super::is;
use crate::error::{Error, Kind};
use crate::sys::socket::Transport;
use crate::sys::socket_table::{InternetSocket, Network, State, Table, holder_of, parse_internet, parse_unix, read};

/// What an operator is told of an error of bind(2) or listen(2).
pub(super) fn explain(operation: String, error: Error, address: SocketAddr, transport: Transport) -> Error {
    if is(&error, Errno::ADDRINUSE) {
        let holder = inode_at(address, transport).and_then(holder_of);
        return in_use(operation, format!("port {}", address.port()), holder);
    }
    if is(&error, Errno::ACCESS) {
        let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
        let first = first.trim().parse().unwrap_or(1024);
        if address.port() < first {
            return Error::new(Kind::System, operation, format!("ports below {first} are for root"))
                .next(format!("choose one from {first} on, or be root"));
        }
    }
    if is(&error, Errno::ADDRNOTAVAIL) {
        return Error::new(Kind::Invalid, operation, format!("this host does not have the address {}", address.ip()))
            .next("give one of its own, or 0.0.0.0 or [::] for all");
    }
    error.during(operation)
}

/// Somebody has an address.
pub(super) fn in_use(operation: String, what: String, holder: Option<(i32, String)>) -> Error {
    let cause = match holder {
        Some((pid, name)) => format!("{what} is in use by process {pid} ({name})"),
        None => format!("{what} is in use by another process"),
    };
    Error::new(Kind::Busy, operation, cause)
        .next("end that, adopt it with 'regen service adopt', or choose another address")
}

/// The process that listens on a path: whose socket was bound to it, or is one of ours that came there later.
pub(super) fn of_path(path: &Path) -> Option<(i32, String)> {
    let text = read(Network::Own, Table::Unix).ok()?;
    let prefix = temporary_prefix(path);
    let rank = |bound: &Path| match bound.file_name() {
        _ if bound == path => Some(0),
        Some(name) if bound.parent() == path.parent() && name.to_string_lossy().starts_with(&prefix) => Some(1),
        _ => None,
    };
    let open = parse_unix(&text).filter(|socket| socket.state == State::Open);
    let ranked = open.filter_map(|socket| Some((rank(socket.path.as_ref()?)?, socket.inode)));
    holder_of(ranked.min_by_key(|(rank, _)| *rank)?.1)
}

/// The socket that is in the way: the one at this very address, one that has all, any on that port, or a connection.
fn inode_at(address: SocketAddr, transport: Transport) -> Option<u64> {
    let tables = match transport {
        Transport::Datagram => [Table::Udp, Table::Udp6],
        Transport::Stream | Transport::SeqPacket => [Table::Tcp, Table::Tcp6],
    };
    let texts: Vec<_> = tables.into_iter().filter_map(|table| read(Network::Own, table).ok()).collect();
    let sockets = texts.iter().flat_map(|text| parse_internet(text));
    let rank = |socket: &InternetSocket| match (socket.state, socket.local.ip()) {
        (State::Open, ip) if ip == address.ip() => 0,
        (State::Open, ip) if overlaps(ip, address.ip()) => 1,
        (State::Open, _) => 2,
        (State::Connected | State::Opening, _) => 3,
        (State::Idle, _) => 4,
    };
    let on_port = sockets.filter(|socket| socket.local.port() == address.port() && socket.inode != 0);
    on_port.min_by_key(rank).map(|socket| socket.inode)
}

fn overlaps(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
}
