//! The TCP sockets at one local port, asked of the kernel (sock_diag(7)): a table of all of them costs ten times as much, and
//! on a machine with a hundred thousand connections a fifth of a second and 15 MB each time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use super::{InternetSocket, Network, State, Table, parse_internet, read, tcp_state};
use crate::error::Result;

// linux/netlink.h and linux/sock_diag.h.
const REQUEST_DUMP: u16 = 0x301;
const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// The kernel makes no part of an answer longer than this.
const PART: usize = 32 << 10;
const TCP: u8 = 6;

/// The TCP sockets of a network in this state at a local port; those of a table that is not of TCP are none.
///
/// # Errors
/// Those of [`read`], where the kernel cannot be asked.
pub fn tcp_at(network: Network, table: Table, port: u16, state: State) -> Result<Vec<InternetSocket>> {
    let family = match (network, table) {
        (_, Table::Udp | Table::Udp6 | Table::Unix) => return Ok(Vec::new()),
        // Asked is the network that the socket of the question was made in.
        (Network::Of(_), Table::Tcp | Table::Tcp6) => None,
        (Network::Own, Table::Tcp) => Some(AddressFamily::INET),
        (Network::Own, Table::Tcp6) => Some(AddressFamily::INET6),
    };
    let found = family.and_then(|family| ask(family, port, state).ok());
    let is_meant = |socket: &InternetSocket| socket.local.port() == port && socket.state == state;
    match found {
        Some(found) => Ok(found.into_iter().filter(is_meant).collect()),
        // A kernel without this, or a filter that forbids it.
        None => Ok(parse_internet(&read(network, table)?).filter(is_meant).collect()),
    }
}

fn ask(family: AddressFamily, port: u16, state: State) -> rustix::io::Result<Vec<InternetSocket>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    send(&socket, &question(family, port, state), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut part = vec![0; PART];
    loop {
        let (_, length) = match recv(&socket, &mut part[..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if parse_part(part.get(..length).unwrap_or_default(), &mut found)? == Progress::Complete {
            return Ok(found);
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn question(family: AddressFamily, port: u16, state: State) -> Vec<u8> {
    let family = u8::try_from(family.as_raw()).unwrap_or_default();
    let states: u32 = (1..=11).filter(|number| tcp_state(*number) == Some(state)).map(|number| 1 << number).sum();
    let mut body = vec![family, TCP, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(port.to_be_bytes());
    // Any other port, addresses and interface, and no cookie.
    body.extend([0; 2 + 16 + 16 + 4]);
    body.extend([0xff; 8]);
    let length = u32::try_from(HEADER + body.len()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    // Number and sender.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Whether more parts follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    More,
    Complete,
}

fn parse_part(part: &[u8], found: &mut Vec<InternetSocket>) -> rustix::io::Result<Progress> {
    let mut rest = part;
    if rest.is_empty() {
        return Err(Errno::BADMSG);
    }
    while !rest.is_empty() {
        let length = usize::try_from(number(rest, 0).ok_or(Errno::BADMSG)?).map_err(|_| Errno::BADMSG)?;
        let kind = rest.get(4..6).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
        let body = rest.get(HEADER..length).ok_or(Errno::BADMSG)?;
        match kind {
            // Both carry an error's negative number, which is 0 where all is well.
            Some(kind @ (DONE | ERROR)) => {
                return match number(body, 0).map(u32::cast_signed).and_then(i32::checked_neg) {
                    Some(0) if kind == DONE => Ok(Progress::Complete),
                    Some(errno @ 1..) => Err(Errno::from_raw_os_error(errno)),
                    Some(_) | None => Err(Errno::BADMSG),
                };
            }
            Some(BY_FAMILY) => found.extend(parse_socket(body)),
            Some(_) | None => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Progress::More)
}

/// `struct inet_diag_msg`; one of another state is none.
fn parse_socket(body: &[u8]) -> Option<InternetSocket> {
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let ip = |at: usize| -> Option<IpAddr> {
        if AddressFamily::from_raw((*body.first()?).into()) == AddressFamily::INET {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(at..at + 4)?).ok()?).into());
        }
        Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(body.get(at..at + 16)?).ok()?)).to_canonical())
    };
    Some(InternetSocket {
        local: SocketAddr::new(ip(8)?, port(4)?),
        remote: SocketAddr::new(ip(24)?, port(6)?),
        state: tcp_state(*body.get(1)?)?,
        inode: number(body, 68)?.into(),
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn from_table(table: Table, port: u16, state: State) -> Vec<InternetSocket> {
        let text = read(Network::Own, table).unwrap();
        parse_internet(&text).filter(|socket| socket.local.port() == port && socket.state == state).collect()
    }

    #[test]
    fn the_kernel_answers_what_its_tables_say() {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // A table that changes while it is read may lack a line: nobody else is in a new network.
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                crate::sys::namespace::loopback_up().unwrap();
                compare();
            });
            thread.join().unwrap();
        });
    }

    fn compare() {
        for (listen, connect, table) in [
            ("127.0.0.1:0", Ipv4Addr::LOCALHOST.into(), Table::Tcp),
            ("[::1]:0", IpAddr::from(Ipv6Addr::LOCALHOST), Table::Tcp6),
            ("[::]:0", Ipv4Addr::LOCALHOST.into(), Table::Tcp6),
        ] {
            let listener = TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let client = |_| TcpStream::connect((connect, port)).unwrap();
            let accepted: Vec<_> = (0..699).map(|number| (client(number), listener.accept().unwrap())).collect();
            let waiting = client(699);
            for state in [State::Connected, State::Opening, State::Open] {
                let sort = |mut sockets: Vec<InternetSocket>| {
                    sockets.sort_by_key(|socket| (socket.remote, socket.inode));
                    sockets
                };
                let family = if table == Table::Tcp { AddressFamily::INET } else { AddressFamily::INET6 };
                let asked = sort(ask(family, port, state).unwrap());
                assert!(asked == sort(from_table(table, port, state)), "{listen} {state:?}");
                assert!(sort(tcp_at(Network::Own, table, port, state).unwrap()) == asked);
                let me = rustix::thread::gettid().as_raw_nonzero().get();
                assert!(sort(tcp_at(Network::Of(me), table, port, state).unwrap()) == asked);
            }
            let connected = ask(AddressFamily::INET6, port, State::Connected).unwrap();
            assert_eq!(connected.len(), if table == Table::Tcp { 0 } else { 700 });
            assert_eq!(connected.iter().filter(|socket| socket.inode == 0).count(), connected.len().min(1), "it waits");
            drop((accepted, waiting));
        }
        assert!(tcp_at(Network::Own, Table::Unix, 1, State::Open).unwrap().is_empty());
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_an_error_and_never_waited_for() {
        let mut found = Vec::new();
        for part in [&b""[..], b"x", &[0; 16], &[0xff; 40], &[[17, 0, 0, 0], [3, 0, 0, 0]].concat()] {
            assert!(parse_part(part, &mut found).is_err(), "{part:?}");
        }
        let error = [&20_u32.to_ne_bytes()[..], &ERROR.to_ne_bytes(), &[0; 10], &(-2_i32).to_ne_bytes()].concat();
        assert_eq!(parse_part(&error, &mut found), Err(Errno::NOENT));
        let failed = [&20_u32.to_ne_bytes()[..], &DONE.to_ne_bytes(), &[0; 10], &(-2_i32).to_ne_bytes()].concat();
        assert_eq!(parse_part(&failed, &mut found), Err(Errno::NOENT));
        assert!(found.is_empty() && parse_socket(&[2; 71]).is_none());
    }
}
