//! The listening sockets of a program that was there before its service.
//!
//! They are known by the tables of the kernel, and only then taken: a descriptor of a connection, once it is duplicated, can
//! leave a program waiting for what is not its own any more.

use std::fs;
use std::path::Path;

use crate::error::{Context, Error, Kind, Result};
use crate::ops::keep::family;
use crate::service::address::{Address, Listen};
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
            let cause = format!("it does not listen on {}", listen.address);
            return Err(Error::new(Kind::NotFound, operation(), cause)
                .next(format!("see where it does: ss -lnpx, ss -lntup | grep pid={}", process.pid())));
        }
    }
    Ok(found)
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
