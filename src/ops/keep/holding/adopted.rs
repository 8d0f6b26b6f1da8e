//! The listening sockets of a program that was there before its service.
//!
//! They are known by the tables of the kernel, and only then taken: a descriptor of a connection, once it is duplicated, can
//! leave a program waiting for what is not its own any more.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::error::{Context, Error, Kind, Result};
use crate::ops::keep::family;
use crate::service::address::{Address, Listen, UnixKind};
use crate::service::socket::Listener;
use crate::sys::process::Process;
use crate::sys::socket::Socket;
use crate::sys::socket_table::{self, Network, State, Table, parse_internet, parse_unix};

/// The sockets of a process and its descendants at these addresses: at least one for each.
pub(super) fn find(listen: &[Listen], process: &Process) -> Result<Vec<Listener>> {
    let operation = || format!("adopt process {}", process.pid());
    if socket_table::identity(Network::Own)? != socket_table::identity(Network::Of(process.pid()))? {
        return Err(Error::new(Kind::Unsupported, operation(), "it has a network of its own"));
    }
    let mut found = Vec::new();
    for listen in listen {
        let before = found.len();
        for inode in listening_at(&listen.address)? {
            if let Some(socket) = take(process, inode)? {
                found.push(Listener::of_program(listen, socket));
            }
        }
        if found.len() == before {
            return Err(not_there(operation(), listen, process));
        }
    }
    Ok(found)
}

/// Says where it does listen.
fn not_there(operation: String, listen: &Listen, process: &Process) -> Error {
    let cause = format!("it does not listen on {}", listen.address);
    let elsewhere = listening(process);
    if elsewhere.is_empty() {
        return Error::new(Kind::NotFound, operation, format!("{cause}, nor anywhere else"));
    }
    let names: Vec<_> = elsewhere.iter().map(ToString::to_string).collect();
    Error::new(Kind::NotFound, operation, cause).next(format!("give --listen {}", names.join(" or ")))
}

/// Where a process and its descendants listen, of what a service could declare.
fn listening(process: &Process) -> Vec<Address> {
    let open: BTreeSet<u64> = family::of(process.pid())
        .into_iter()
        .flat_map(|pid| socket_table::sockets_of(pid).unwrap_or_default())
        .collect();
    let read = |table| socket_table::read(Network::Own, table).unwrap_or_default();
    let mut found = Vec::new();
    for (table, address) in [
        (Table::Tcp, Address::Tcp as fn(SocketAddr) -> Address),
        (Table::Tcp6, Address::Tcp),
        (Table::Udp, Address::Udp),
        (Table::Udp6, Address::Udp),
    ] {
        let text = read(table);
        let ours = parse_internet(&text).filter(|it| it.state == State::Open && open.contains(&it.inode));
        found.extend(ours.map(|socket| address(socket.local)));
    }
    let text = read(Table::Unix);
    let paths = parse_unix(&text).filter(|it| it.state == State::Open && open.contains(&it.inode));
    let paths = paths.filter_map(|it| it.path).filter(|path| path.is_absolute());
    found.extend(paths.map(|path| Address::Unix(UnixKind::Stream, path)));
    found
}

/// The numbers of the sockets at an address of this network, whoever has them.
fn listening_at(address: &Address) -> Result<Vec<u64>> {
    let table = match address {
        Address::Tcp(place) if place.is_ipv4() => Table::Tcp,
        Address::Tcp(_) => Table::Tcp6,
        Address::Udp(place) if place.is_ipv4() => Table::Udp,
        Address::Udp(_) => Table::Udp6,
        Address::Unix(..) => Table::Unix,
        Address::Auto => return Ok(Vec::new()),
    };
    let text = socket_table::read(Network::Own, table)?;
    Ok(match address {
        Address::Tcp(place) | Address::Udp(place) => {
            let there = parse_internet(&text).filter(|socket| socket.state == State::Open && socket.local == *place);
            there.map(|socket| socket.inode).collect()
        }
        Address::Unix(_, path) => {
            let named = |bound: &Path| bound == path;
            let there = parse_unix(&text)
                .filter(|socket| socket.state == State::Open && socket.path.as_deref().is_some_and(named));
            there.map(|socket| socket.inode).collect()
        }
        Address::Auto => Vec::new(),
    })
}

/// Takes the socket with this number out of the process or one of its descendants; `None` if none of them has it.
fn take(process: &Process, inode: u64) -> Result<Option<Socket>> {
    let link = format!("socket:[{inode}]");
    for pid in family::of(process.pid()) {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let descriptor =
            entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(&link)));
        let numbers: Vec<i32> = descriptor.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let Some(number) = numbers.first() else { continue };
        let Some(owner) = Process::open(pid)? else { continue };
        let socket = Socket::from(owner.duplicate_descriptor(*number)?);
        // It may have closed it meanwhile, and opened something else under that number.
        if socket.inode().context(|| format!("adopt process {}", process.pid()))? == inode {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}
