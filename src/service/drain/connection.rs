//! The connections of an instance, found without touching them.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Context, Result};
use crate::sys::socket::Address;
use crate::sys::socket_table::{
    InternetSocket, Network, State, Table, identity, parse_internet, parse_unix, read, sockets_of, tcp_at,
};

/// How many connections that came in at these places some processes have.
///
/// The tables are asked first, then the processes: what a program accepts meanwhile is in both. Mostly there is nothing at
/// its ports any more, and the descriptors of a program with many other connections need not be read.
pub(super) fn count(places: &[Address], processes: &[i32]) -> Result<u64> {
    let mut there = at_ports(places, &networks_of(processes)?, State::Connected)?;
    // Nobody has accepted those yet.
    there.retain(|socket| socket.inode != 0);
    let by_path = concerns(Table::Unix, places);
    if there.is_empty() && !by_path {
        return Ok(0);
    }
    let mut held = HashSet::new();
    for process in processes {
        held.extend(sockets_of(*process)?);
    }
    let mut found: HashSet<u64> = there.iter().map(|socket| socket.inode).filter(|it| held.contains(it)).collect();
    if by_path && !held.is_empty() {
        add_unix(places, held, &networks_of(processes)?, &mut found)?;
    }
    Ok(u64::try_from(found.len()).unwrap_or(u64::MAX))
}

/// The TCP sockets in this state that came in at these places.
pub(super) fn at_ports(places: &[Address], networks: &[(Network, u64)], state: State) -> Result<Vec<InternetSocket>> {
    let mut found = Vec::new();
    for table in [Table::Tcp, Table::Tcp6].into_iter().filter(|table| concerns(*table, places)) {
        let ports: BTreeSet<u16> = places.iter().filter_map(port_of).collect();
        for (port, (network, _)) in ports.into_iter().flat_map(|port| networks.iter().map(move |it| (port, it))) {
            let there = tcp_at(*network, table, port, state)?;
            found.extend(there.into_iter().filter(|socket| came_by_port(socket.local, places)));
        }
    }
    Ok(found)
}

fn port_of(place: &Address) -> Option<u16> {
    match place {
        Address::Internet(address) => Some(address.port()),
        Address::Path(_) | Address::Abstract(_) | Address::Unnamed => None,
    }
}

/// A listener's connections are in its own network, which is ours or that of the instance: each once.
pub(super) fn networks_of(processes: &[i32]) -> Result<Vec<(Network, u64)>> {
    let mut networks: Vec<(Network, u64)> = Vec::new();
    for network in [Network::Own].into_iter().chain(processes.iter().map(|pid| Network::Of(*pid))) {
        let Some(number) = identity(network)? else { continue };
        if networks.iter().all(|(_, known)| *known != number) {
            networks.push((network, number));
        }
    }
    Ok(networks)
}

/// What a unix listener accepts is in the network of the client, which can be any that sees the path.
fn add_unix(
    places: &[Address],
    mut held: HashSet<u64>,
    networks: &[(Network, u64)],
    found: &mut HashSet<u64>,
) -> Result<()> {
    let add = |network, held: &mut HashSet<u64>, found: &mut HashSet<u64>| -> Result<()> {
        let text = read(network, Table::Unix)?;
        for socket in parse_unix(&text).filter(|socket| held.remove(&socket.inode)) {
            let is_ours = socket.path.is_some_and(|path| came_by_path(&path, places));
            if socket.state == State::Connected && is_ours {
                found.insert(socket.inode);
            }
        }
        Ok(())
    };
    for (network, _) in networks {
        add(*network, &mut held, found)?;
    }
    // Mostly all are found by now, or are of another kind.
    for (network, _) in networks {
        for table in [Table::Tcp, Table::Tcp6, Table::Udp, Table::Udp6] {
            let text = read(*network, table)?;
            for socket in parse_internet(&text) {
                held.remove(&socket.inode);
            }
        }
    }
    if held.is_empty() {
        return Ok(());
    }
    let mut known: HashSet<u64> = networks.iter().map(|(_, number)| *number).collect();
    for entry in fs::read_dir("/proc").context(|| "read /proc")? {
        let name = entry.context(|| "read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes that we may not look at are no clients that we could count.
        let Ok(Some(number)) = identity(Network::Of(pid)) else { continue };
        if known.insert(number) {
            add(Network::Of(pid), &mut held, found)?;
        }
    }
    Ok(())
}

/// Whether connections to one of these places are in a table.
fn concerns(table: Table, places: &[Address]) -> bool {
    places.iter().any(|place| match (place, table) {
        (Address::Internet(SocketAddr::V4(_)), Table::Tcp) | (Address::Internet(SocketAddr::V6(_)), Table::Tcp6) => {
            true
        }
        (Address::Path(_) | Address::Abstract(_), Table::Unix) => true,
        (Address::Internet(_) | Address::Path(_) | Address::Abstract(_) | Address::Unnamed, _) => false,
    })
}

fn came_by_port(local: SocketAddr, places: &[Address]) -> bool {
    places.iter().any(|place| match place {
        Address::Internet(place) => {
            let ip = place.ip().to_canonical();
            place.port() == local.port() && (ip.is_unspecified() || ip == local.ip())
        }
        Address::Path(_) | Address::Abstract(_) | Address::Unnamed => false,
    })
}

/// The table writes names without a file with an `@` for each NUL.
fn came_by_path(path: &Path, places: &[Address]) -> bool {
    places.iter().any(|place| match place {
        Address::Path(place) => place == path,
        Address::Abstract(name) => {
            let shown = name.iter().map(|byte| if *byte == 0 { b'@' } else { *byte });
            path.as_os_str().as_bytes().iter().copied().eq([b'@'].into_iter().chain(shown))
        }
        Address::Internet(_) | Address::Unnamed => false,
    })
}
