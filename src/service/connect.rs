//! A connected socket for a client: to the newest version that satisfies, made here and handed over.
//!
//! An instance that refuses is just going, and the roster will say so: another one is chosen, now or once it is there. A
//! client that connects by itself has to do that itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, getsockname, socket_with};

use super::address::{Address, Listen, UnixKind};
use super::choice::Wanted;
use super::roster::{Member, Roster, Snapshot, Subscription};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Name;
use crate::sys::credential;

/// How long a connection may take, and choosing again.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for a successor of an instance that refuses.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whose rights a connection is made with. To files of sockets these matter, and an instance may ask who connects.
#[derive(Debug, Clone, Copy)]
pub enum Rights<'a> {
    /// Our own.
    Own,
    /// Those of a user with these groups, the effective one first.
    Of {
        /// The user.
        uid: u32,
        /// The groups.
        groups: &'a [u32],
    },
}

/// Where to, beside the version.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// The address with this name, in place of the first.
    pub listen: Option<&'a Name>,
    /// With whose rights.
    pub rights: Rights<'a>,
    /// How long it may take, choosing again included.
    pub timeout: Duration,
}

/// A socket, and what is at its other end.
#[derive(Debug)]
pub struct Connected {
    /// Who.
    pub member: Arc<Member>,
    /// Where.
    pub listen: Listen,
    /// A blocking socket.
    pub socket: OwnedFd,
}

/// Connects to the newest version that satisfies.
///
/// # Errors
/// [`Kind::NotFound`] if none does, or has no address of that name; what connecting says, if it was not refused, or by
/// all that could be chosen.
pub fn connect(roster: &Arc<Roster>, wanted: &Wanted, way: &Way<'_>) -> Result<Connected> {
    let deadline = Instant::now() + way.timeout;
    let mut refused: BTreeSet<_> = BTreeSet::new();
    let mut news = None;
    let mut now = roster.snapshot();
    loop {
        let member = now.resolve(wanted)?;
        let listen = member.find(way.listen)?.clone();
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match open_as(way.rights, &listen.address.reachable(), left) {
            Ok(socket) => return Ok(Connected { member, listen, socket }),
            Err(error) if is_refusal(&error) => error.during(format!("connect to service '{wanted}'")),
            Err(error) => return Err(error).context(|| format!("connect to service '{wanted}'")),
        };
        // Its equals have their turns before anybody waits.
        if refused.insert(member.instance.clone()) {
            continue;
        }
        let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
        if !wait_for_another(roster, &mut news, &now, patience)? {
            return Err(error.next("see whether it still listens there"));
        }
        refused.clear();
        now = roster.snapshot();
    }
}

/// Connects to an instance that was chosen already, on another node.
///
/// # Errors
/// As [`connect`].
pub fn connect_to(member: Arc<Member>, wanted: &Wanted, way: &Way<'_>) -> Result<Connected> {
    let listen = member.find(way.listen)?.clone();
    let socket = open_as(way.rights, &listen.address.reachable(), way.timeout)
        .context(|| format!("connect to service '{wanted}'"))?;
    Ok(Connected { member, listen, socket })
}

impl Member {
    /// The address of this name, or the first.
    ///
    /// # Errors
    /// [`Kind::NotFound`], naming those that there are.
    pub fn find(&self, name: Option<&Name>) -> Result<&Listen> {
        let found = self.listen.iter().find(|listen| name.is_none_or(|name| listen.name == *name));
        found.ok_or_else(|| {
            let names: Vec<_> = self.listen.iter().map(|listen| format!("'{}'", listen.name)).collect();
            let cause = match name {
                Some(name) => format!("it has no address named '{name}', only {}", names.join(", ")),
                None => "it has no address".to_owned(),
            };
            Error::new(Kind::NotFound, format!("find an address of service '{}@{}'", self.name, self.version), cause)
        })
    }
}

/// Nobody listens there, or not any more.
fn is_refusal(error: &Error) -> bool {
    [Errno::CONNREFUSED, Errno::CONNRESET, Errno::NOENT].iter().any(|errno| error.errno() == Some(errno.raw_os_error()))
}

/// Waits until something is not as it was; `false` if it is for too long.
fn wait_for_another(
    roster: &Arc<Roster>,
    news: &mut Option<Subscription>,
    then: &Snapshot,
    patience: Duration,
) -> Result<bool> {
    let news = match news {
        Some(news) => news,
        None => news.insert(roster.subscribe()?),
    };
    news.hear();
    if roster.snapshot().number() != then.number() {
        return Ok(true);
    }
    let limit = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(&*news, PollFlags::IN)], Some(&limit)) {
        Ok(count) => Ok(count > 0),
        // Too early is harmless: it is tried once more.
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno).context(|| "wait for changes of services"),
    }
}

fn open_as(rights: Rights<'_>, address: &Address, limit: Duration) -> Result<OwnedFd> {
    match rights {
        Rights::Own => open(address, limit),
        Rights::Of { uid, groups } => credential::with_those_of(uid, groups, || open(address, limit))?,
    }
}

/// A socket that is connected to an address, within some time.
///
/// # Errors
/// Those of socket(2) and connect(2).
pub fn open(address: &Address, limit: Duration) -> Result<OwnedFd> {
    match address {
        Address::Tcp(place) => {
            let socket = open_socket(address, SocketType::STREAM, family(place), limit, place)?;
            if is_itself(&socket, *place).context(|| format!("connect to {address}"))? {
                return Err(Errno::CONNREFUSED).context(|| format!("connect to {address}"));
            }
            Ok(socket)
        }
        Address::Udp(place) => open_socket(address, SocketType::DGRAM, family(place), limit, place),
        Address::Unix(kind, path) => {
            let kind = match kind {
                UnixKind::Stream => SocketType::STREAM,
                UnixKind::Seqpacket => SocketType::SEQPACKET,
                UnixKind::Datagram => SocketType::DGRAM,
            };
            let place = SocketAddrUnix::new(path).context(|| format!("name {address}"))?;
            open_socket(address, kind, AddressFamily::UNIX, limit, &place)
        }
        Address::Auto => Err(Error::new(Kind::Invalid, "connect to address 'auto'", "no port was chosen yet")),
    }
}

/// Where nobody listens on a port that the kernel may also choose for clients, it can choose the very same, and the socket
/// is connected to itself (RFC 9293, 3.5: simultaneous open).
fn is_itself(socket: &OwnedFd, place: SocketAddr) -> Result<bool, Errno> {
    Ok(SocketAddr::try_from(getsockname(socket)?)? == place)
}

fn family(place: &SocketAddr) -> AddressFamily {
    if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn open_socket(
    address: &Address,
    kind: SocketType,
    family: AddressFamily,
    limit: Duration,
    place: &impl rustix::net::addr::SocketAddrArg,
) -> Result<OwnedFd> {
    let operation = || format!("connect to {address}");
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).context(operation)?;
        // This time limits connect(2) as well (socket(7), tcp and unix sockets alike).
        set_socket_timeout(&socket, Timeout::Send, Some(left)).context(operation)?;
        match rustix::net::connect(&socket, place) {
            Ok(()) => {
                set_socket_timeout(&socket, Timeout::Send, None).context(operation)?;
                return Ok(socket);
            }
            // What was begun cannot be asked for again on this socket.
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::INPROGRESS | Errno::ALREADY) => {
                let cause = format!("no answer within {} ms", limit.as_millis());
                return Err(Error::new(Kind::Busy, operation(), cause));
            }
            Err(errno) => return Err(errno).context(operation),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::sockopt::socket_peercred;

    use super::*;

    fn member(version: &str, addresses: &[String]) -> Member {
        let name: Name = "orders".parse().unwrap();
        Member {
            instance: format!("orders-{version}-1").parse().unwrap(),
            version: version.parse().unwrap(),
            listen: addresses.iter().map(|address| Listen::parse(address, &name).unwrap()).collect(),
            name,
        }
    }

    /// A port on which nobody listens.
    fn refusing() -> String {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        format!("tcp://{port}")
    }

    fn listening() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        (listener, address)
    }

    fn visit(roster: &Arc<Roster>, wanted: &str) -> Result<Connected> {
        connect(roster, &wanted.parse().unwrap(), &Way { listen: None, rights: Rights::Own, timeout: TIMEOUT })
    }

    #[test]
    fn a_client_gets_a_socket_to_the_version_that_it_wants() {
        let roster = Roster::new();
        let ((_one, first), (two, second)) = (listening(), listening());
        roster.add(member("1.0.0", &[first]));
        roster.add(member("2.0.0", std::slice::from_ref(&second)));
        let connected = visit(&roster, "orders@2").unwrap();
        assert_eq!((connected.member.version.major, connected.listen.address.to_string()), (2, second));
        let mut client = TcpStream::from(connected.socket);
        two.accept().unwrap().0.write_all(b"two").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "two");
        assert_eq!(client.write_timeout().unwrap(), None, "the limit was for connecting");
    }

    #[test]
    fn every_kind_of_address_is_connected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _stream = UnixListener::bind(&path).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let packets = directory.path().join("p");
        let seqpacket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&seqpacket, &SocketAddrUnix::new(&packets).unwrap()).unwrap();
        rustix::net::listen(&seqpacket, 1).unwrap();
        let addresses = [
            format!("unix:{}", path.display()),
            format!("udp=udp://{}", udp.local_addr().unwrap()),
            format!("packets=unix-seqpacket:{}", packets.display()),
        ];
        let roster = Roster::new();
        roster.add(member("1.0.0", &addresses));
        let to = |name: Option<&str>| {
            let name: Option<Name> = name.map(|name| name.parse().unwrap());
            let way = Way { listen: name.as_ref(), rights: Rights::Own, timeout: TIMEOUT };
            connect(&roster, &"orders".parse().unwrap(), &way)
        };
        to(None).unwrap();
        to(Some("packets")).unwrap();
        let socket = UdpSocket::from(to(Some("udp")).unwrap().socket);
        socket.send(b"x").unwrap();
        assert_eq!(udp.recv(&mut [0; 8]).unwrap(), 1);
        let error = to(Some("admin")).unwrap_err().to_string();
        assert!(error.ends_with("it has no address named 'admin', only 'orders', 'udp', 'packets'"), "{error}");
    }

    #[test]
    fn an_equal_is_taken_where_one_refuses() {
        let roster = Roster::new();
        let (_listener, address) = listening();
        roster.add(member("1.0.0+a", &[refusing()]));
        roster.add(member("1.0.0+b", &[address]));
        for _ in 0..4 {
            assert_eq!(visit(&roster, "orders").unwrap().member.version.build.as_str(), "b");
        }
    }

    #[test]
    fn an_instance_that_is_just_going_is_chosen_no_second_time() {
        let roster = Roster::new();
        let (_listener, address) = listening();
        roster.add(member("1.0.0", &[address]));
        roster.add(member("1.1.0", &[refusing()]));
        std::thread::scope(|scope| {
            let client = scope.spawn(|| visit(&roster, "orders"));
            eventually_subscribed(&roster);
            roster.withdraw(&"orders-1.1.0-1".parse().unwrap());
            assert_eq!(client.join().unwrap().unwrap().member.version.minor, 0);
        });
    }

    fn eventually_subscribed(roster: &Arc<Roster>) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Arc::strong_count(roster) < 2 {
            assert!(Instant::now() < deadline, "nobody waits");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_refuses_for_good_is_told_of() {
        let roster = Roster::new();
        let address = refusing();
        roster.add(member("1.0.0", std::slice::from_ref(&address)));
        let error = visit(&roster, "orders@1").unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("connect to service 'orders@^1': connect to {address}: connection refused"))
        );
    }

    #[test]
    fn a_socket_that_is_connected_to_itself_is_to_nobody() {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        let place = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        rustix::net::connect(&socket, &place).unwrap();
        assert!(is_itself(&socket, place).unwrap());
        let (_listener, address) = listening();
        let place = address.trim_start_matches("tcp://").parse().unwrap();
        assert!(!is_itself(&open(&Address::Tcp(place), TIMEOUT).unwrap(), place).unwrap());
    }

    #[test]
    fn a_full_queue_is_waited_for_no_longer_than_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let address: Address = format!("unix:{}", path.display()).parse().unwrap();
        let mut kept = Vec::new();
        let error = loop {
            match open(&address, Duration::from_millis(20)) {
                Ok(socket) => kept.push(socket),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().ends_with("no answer within 20 ms"), "{error}");
    }

    #[test]
    fn a_member_of_the_group_connects_with_no_more_than_own_rights() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let roster = Roster::new();
        roster.add(member("1.0.0", &[format!("unix:{}", path.display())]));
        let rights = Rights::Of { uid: 12345, groups: &[12345] };
        let way = Way { listen: None, rights, timeout: TIMEOUT };
        let wanted = "orders".parse().unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o700);
        let error = connect(&roster, &wanted, &way).unwrap_err();
        assert!(error.to_string().ends_with("permission denied"), "{error}");
        mode(0o777);
        let connected = connect(&roster, &wanted, &way).unwrap();
        let (seen, _) = listener.accept().unwrap();
        assert_eq!(socket_peercred(&seen).unwrap().uid.as_raw(), 12345);
        drop(UnixStream::from(connected.socket));
    }
}
