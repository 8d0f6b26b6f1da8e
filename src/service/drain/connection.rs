//! The connections of an instance, found without touching them.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Context, Result};
use crate::sys::socket::Address;
use crate::sys::socket_table::{Network, State, Table, identity, parse_internet, parse_unix, read, sockets_of};

/// How many connections that came in at these places some processes have.
pub(super) fn count(places: &[Address], processes: &[i32]) -> Result<u64> {
    let mut held = HashSet::new();
    for process in processes {
        held.extend(sockets_of(*process)?);
    }
    if held.is_empty() || places.is_empty() {
        return Ok(0);
    }
    let networks = networks_of(processes)?;
    let mut found = HashSet::new();
    for table in [Table::Tcp, Table::Tcp6].into_iter().filter(|table| concerns(*table, places)) {
        for (network, _) in &networks {
            let text = read(*network, table)?;
            let connected = parse_internet(&text).filter(|socket| socket.state == State::Connected);
            let ours = connected.filter(|socket| held.contains(&socket.inode) && came_by_port(socket.local, places));
            found.extend(ours.map(|socket| socket.inode));
        }
    }
    if concerns(Table::Unix, places) {
        add_unix(places, held, &networks, &mut found)?;
    }
    Ok(u64::try_from(found.len()).unwrap_or(u64::MAX))
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
pub(super) fn concerns(table: Table, places: &[Address]) -> bool {
    places.iter().any(|place| match (place, table) {
        (Address::Internet(SocketAddr::V4(_)), Table::Tcp) | (Address::Internet(SocketAddr::V6(_)), Table::Tcp6) => {
            true
        }
        (Address::Path(_) | Address::Abstract(_), Table::Unix) => true,
        (Address::Internet(_) | Address::Path(_) | Address::Abstract(_) | Address::Unnamed, _) => false,
    })
}

pub(super) fn came_by_port(local: SocketAddr, places: &[Address]) -> bool {
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
