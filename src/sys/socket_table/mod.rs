//! The sockets of a network namespace (proc_net(5)), and who has them: the numbers of sockets in a table are those of
//! the links in `/proc/PID/fd`.

mod query;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

pub use self::query::tcp_at;
use crate::error::{Context, Result, quote};

/// Whose network namespace is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// That of the calling thread.
    Own,
    /// That of a process.
    Of(i32),
}

/// One of its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// TCP over version 4.
    Tcp,
    /// TCP over version 6, version 4 as mapped addresses included.
    Tcp6,
    /// UDP over version 4.
    Udp,
    /// UDP over version 6.
    Udp6,
    /// Unix sockets of all types.
    Unix,
}

/// A TCP or UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternetSocket {
    /// Its own address; a mapped one as the version 4 that it is.
    pub local: SocketAddr,
    /// What it is connected to; all zero if it is not.
    pub remote: SocketAddr,
    /// What it is doing.
    pub state: State,
    /// Its number; 0 for what no process has any more, or not yet.
    pub inode: u64,
}

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSocket {
    /// The path that it, or the listener that it was accepted from, was bound to; those without a file begin with `@`.
    pub path: Option<PathBuf>,
    /// What it is doing.
    pub state: State,
    /// Its number.
    pub inode: u64,
}

/// What a socket is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes connections, or datagrams from anybody.
    Open,
    /// A listener has answered its first packet and awaits the last one of the handshake: no process has it yet.
    Opening,
    /// It is a connection, or one that is just made by this side or ended.
    Connected,
    /// It is neither.
    Idle,
}

/// The text of a table, for [`parse_internet`] and [`parse_unix`]; empty for a family that the kernel does not have, and
/// for a process that has ended.
///
/// # Errors
/// Those of reading it.
pub fn read(network: Network, table: Table) -> Result<Vec<u8>> {
    let name = match table {
        Table::Tcp => "tcp",
        Table::Tcp6 => "tcp6",
        Table::Udp => "udp",
        Table::Udp6 => "udp6",
        Table::Unix => "unix",
    };
    let path = home(network).join("net").join(name);
    or_gone(fs::read(&path)).map(Option::unwrap_or_default).context(|| format!("read {}", quote(&path)))
}

/// Which namespace it is, to tell several apart; `None` for a process that has ended.
///
/// # Errors
/// Those of looking at it: EACCES for a process that the caller may not trace.
pub fn identity(network: Network) -> Result<Option<u64>> {
    let path = home(network).join("ns/net");
    let found = or_gone(fs::metadata(&path)).context(|| format!("look at {}", quote(&path)))?;
    Ok(found.map(|status| status.ino()))
}

/// The sockets of a text of [`read`], of TCP or UDP. A line that makes no sense is passed over.
pub fn parse_internet(table: &[u8]) -> impl Iterator<Item = InternetSocket> + '_ {
    lines(table).filter_map(parse_internet_line)
}

/// The same for unix sockets.
pub fn parse_unix(table: &[u8]) -> impl Iterator<Item = UnixSocket> + '_ {
    lines(table).filter_map(parse_unix_line)
}

/// The numbers of the sockets that a process has open; none if it has ended.
///
/// # Errors
/// Those of reading /proc: EACCES for a process that the caller may not trace.
pub fn sockets_of(pid: i32) -> Result<Vec<u64>> {
    let path = home(Network::Of(pid)).join("fd");
    let operation = || format!("read {}", quote(&path));
    let Some(directory) = or_gone(fs::read_dir(&path)).context(operation)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in directory {
        let Some(entry) = or_gone(entry).context(operation)? else { break };
        // A descriptor that was closed meanwhile is none.
        if let Some(link) = or_gone(fs::read_link(entry.path())).context(operation)? {
            found.extend(parse_link(link.as_os_str()));
        }
    }
    Ok(found)
}

/// A descriptor of a process, or of a thread that has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Whose it is.
    pub process: i32,
    /// Its number there.
    pub number: i32,
}

/// Where a process other than this one has a socket open: at `first` if it is there, else in the same process if that
/// has it, else in any. `None` if none that the caller may look at has it.
///
/// # Errors
/// Those of reading /proc.
pub fn descriptor_of(inode: u64, first: Descriptor) -> Result<Option<Descriptor>> {
    let link = PathBuf::from(format!("socket:[{inode}]"));
    // A process may have a hundred thousand: mostly it is where it was.
    let Descriptor { process, number } = first;
    if fs::read_link(home(Network::Of(process)).join(format!("fd/{number}"))).is_ok_and(|target| target == link) {
        return Ok(Some(first));
    }
    let find = |process: i32| {
        let entries = fs::read_dir(home(Network::Of(process)).join("fd")).into_iter().flatten().flatten();
        let mut found = entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == link));
        found.find_map(|entry| Some(Descriptor { process, number: entry.file_name().to_str()?.parse().ok()? }))
    };
    if let Some(found) = find(process) {
        return Ok(Some(found));
    }
    let ours = i32::try_from(std::process::id()).unwrap_or_default();
    let entries = fs::read_dir("/proc").context(|| format!("look for who has socket {inode}"))?;
    let processes = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut others = processes.filter(|other| *other != ours && *other != process);
    Ok(others.find_map(find))
}

/// A process that has a socket open: the one with the lowest number, and what it calls itself. `None` if none is
/// visible: a kernel's own socket, or one of a process that the caller may not look at.
#[must_use]
pub fn holder_of(inode: u64) -> Option<(i32, String)> {
    let directory = fs::read_dir("/proc").ok()?;
    let mut pids: Vec<i32> = directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let pid = pids.into_iter().find(|pid| sockets_of(*pid).is_ok_and(|sockets| sockets.contains(&inode)))?;
    let name = fs::read_to_string(home(Network::Of(pid)).join("comm")).unwrap_or_default();
    Some((pid, name.trim_end().to_owned()))
}

fn home(network: Network) -> PathBuf {
    match network {
        Network::Own => PathBuf::from("/proc/thread-self"),
        Network::Of(pid) => {
            let process = Path::new("/proc").join(pid.to_string());
            living_thread(&process).unwrap_or(process)
        }
    }
}

/// A program whose first thread has ended goes on with the others, which have its descriptors and its network; under its
/// own number there is nothing of them any more. `None` while the first one lives, and if all have ended.
fn living_thread(process: &Path) -> Option<PathBuf> {
    let lives = |thread: &Path| fs::read_link(thread.join("ns/net")).is_ok();
    if lives(process) {
        return None;
    }
    let threads = fs::read_dir(process.join("task")).ok()?;
    threads.flatten().map(|thread| thread.path()).find(|thread| lives(thread))
}

/// What is not there, or not any more, is no failure: a zombie has no network, for which the kernel says EINVAL.
fn or_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    const GONE: [Errno; 3] = [Errno::NOENT, Errno::SRCH, Errno::INVAL];
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if GONE.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `socket:[123]`
fn parse_link(link: &OsStr) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Without the first one, which names the columns.
fn lines(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    table.split(|byte| *byte == b'\n').skip(1)
}

/// `sl: local remote state tx:rx tr:when retransmits uid timeout inode …`
fn parse_internet_line(line: &[u8]) -> Option<InternetSocket> {
    let mut fields = str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1);
    let (local, remote) = (parse_address(fields.next()?)?, parse_address(fields.next()?)?);
    let state = match u8::from_str_radix(fields.next()?, 16).ok()? {
        // Every datagram socket that is not connected.
        7 if remote.port() == 0 && local.port() != 0 => State::Open,
        number => tcp_state(number)?,
    };
    Some(InternetSocket { local, remote, state, inode: fields.nth(5)?.parse().ok()? })
}

/// By the numbers of include/net/tcp_states.h; `None` for one that there is not.
fn tcp_state(number: u8) -> Option<State> {
    match number {
        // TCP_SYN_RECV
        3 => Some(State::Opening),
        // TCP_TIME_WAIT, TCP_CLOSE
        6 | 7 => Some(State::Idle),
        // TCP_LISTEN
        10 => Some(State::Open),
        // TCP_ESTABLISHED to TCP_CLOSING
        1..=11 => Some(State::Connected),
        _ => None,
    }
}

/// `0100007F:1F90`: each word of an address as the machine's number, the port as it is read.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word =
        |index: usize| u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// `num: references protocol flags type state inode path`, where the path may have blanks, or be missing.
fn parse_unix_line(line: &[u8]) -> Option<UnixSocket> {
    const LISTENS: u32 = 0x1_0000;
    let mut rest = line;
    let mut next = || {
        let start = rest.iter().position(|byte| *byte != b' ')?;
        let field = &rest[start..];
        let end = field.iter().position(|byte| *byte == b' ').unwrap_or(field.len());
        rest = &field[end..];
        str::from_utf8(&field[..end]).ok()
    };
    let flags = u32::from_str_radix((0..4).map(|_| next()).last()??, 16).ok()?;
    let kind = next()?;
    // SS_CONNECTING to SS_DISCONNECTING; 1 is not connected.
    let connected = matches!(next()?, "02" | "03" | "04");
    let inode = next()?.parse().ok()?;
    let path = rest.get(1..).filter(|path| !path.is_empty()).map(|path| PathBuf::from(OsStr::from_bytes(path)));
    let state = match (flags & LISTENS != 0, connected) {
        (true, _) => State::Open,
        (false, true) => State::Connected,
        // SOCK_DGRAM
        (false, false) if kind == "0002" && path.is_some() => State::Open,
        (false, false) => State::Idle,
    };
    Some(UnixSocket { path, state, inode })
}

/// Waits until nobody has these TCP sockets any more. Another test that starts a program just now has a copy of every
/// descriptor until its execve.
#[cfg(test)]
pub(crate) fn await_closed(sockets: &[u64]) {
    let is_open = |table| {
        let text = read(Network::Own, table).unwrap();
        parse_internet(&text).any(|socket| sockets.contains(&socket.inode))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while [Table::Tcp, Table::Tcp6].into_iter().any(is_open) {
        assert!(std::time::Instant::now() < deadline, "somebody has them");
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn find(network: Network, tables: [Table; 2], port: u16, state: State) -> Vec<InternetSocket> {
        let texts = tables.map(|table| read(network, table).unwrap());
        let all = texts.iter().flat_map(|text| parse_internet(text));
        all.filter(|socket| socket.local.port() == port && socket.state == state).collect()
    }

    fn inode(socket: impl std::os::fd::AsFd) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    #[test]
    fn listeners_and_their_connections_are_found_with_their_numbers() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let local = listener.local_addr().unwrap();
            let client = TcpStream::connect(local).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let tables = [Table::Tcp, Table::Tcp6];
            let open = find(Network::Own, tables, local.port(), State::Open);
            assert_eq!(
                open.iter().map(|socket| (socket.local, socket.inode)).collect::<Vec<_>>(),
                [(local, inode(&listener))]
            );
            let connected = find(Network::Own, tables, local.port(), State::Connected);
            let expected = (local, client.local_addr().unwrap(), inode(&accepted));
            assert_eq!(connected.iter().map(|one| (one.local, one.remote, one.inode)).collect::<Vec<_>>(), [expected]);
            let socket = UdpSocket::bind(host).unwrap();
            let found = find(Network::Own, [Table::Udp, Table::Udp6], socket.local_addr().unwrap().port(), State::Open);
            assert_eq!(found[0].inode, inode(&socket));
        }
    }

    #[test]
    fn a_mapped_address_is_the_one_that_it_maps() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let found = find(Network::Own, [Table::Tcp6, Table::Udp], port, State::Connected);
        assert_eq!(found[0].local, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }

    #[test]
    fn unix_sockets_are_found_by_paths_with_blanks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a  b c");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let text = read(Network::Own, Table::Unix).unwrap();
        let found: Vec<_> = parse_unix(&text).filter(|socket| socket.path.as_ref() == Some(&path)).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        let state = |number| found.iter().find(|socket| socket.inode == number).unwrap().state;
        assert_eq!((state(inode(&listener)), state(inode(&accepted))), (State::Open, State::Connected));
    }

    #[test]
    fn the_process_that_has_a_socket_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(sockets_of(me).unwrap().contains(&inode(&listener)));
        assert_eq!(holder_of(inode(&listener)).unwrap(), (me, name.trim_end().to_owned()));
        assert_eq!(holder_of(u64::MAX), None);
        assert_eq!(identity(Network::Own).unwrap(), identity(Network::Of(me)).unwrap());
    }

    #[test]
    fn a_program_without_its_first_thread_has_what_it_had() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let script = "import ctypes, threading, time\n\
                      threading.Thread(target=time.sleep, args=(1000,)).start()\n\
                      ctypes.CDLL(None).pthread_exit(None)";
        let mut program = std::process::Command::new("python3");
        program.args(["-c", script]).stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
        let mut program = program.spawn().unwrap();
        let pid = i32::try_from(program.id()).unwrap();
        let status = format!("/proc/{pid}/status");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !fs::read_to_string(&status).unwrap().contains("\nState:\tZ") {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let found = (sockets_of(pid).unwrap(), identity(Network::Of(pid)).unwrap());
        program.kill().unwrap();
        program.wait().unwrap();
        assert_eq!(found, (vec![inode(&listener)], identity(Network::Own).unwrap()));
    }

    #[test]
    fn a_socket_is_found_where_it_was_or_moved_to_and_what_only_this_process_has_is_nowhere() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = inode(&listener);
        let nowhere = Descriptor { process: 1, number: 0 };
        assert_eq!(descriptor_of(inode, nowhere).unwrap(), None);
        let mut child = std::process::Command::new("/bin/sleep");
        child.arg("1000").stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
        let mut child = child.spawn().unwrap();
        let process = i32::try_from(child.id()).unwrap();
        let there = Descriptor { process, number: 0 };
        for first in [nowhere, there, Descriptor { process, number: 1 }] {
            assert_eq!(descriptor_of(inode, first).unwrap(), Some(there));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(descriptor_of(inode, there).unwrap(), None);
    }

    #[test]
    fn a_process_that_has_ended_has_nothing() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let look = || {
            assert!(sockets_of(pid).unwrap().is_empty());
            assert!(read(Network::Of(pid), Table::Tcp).unwrap().is_empty());
            assert_eq!(identity(Network::Of(pid)).unwrap(), None);
        };
        // First a zombie, then nothing.
        let process = crate::sys::process::Process::open(pid).unwrap().unwrap();
        assert!(process.wait_end(std::time::Duration::from_secs(20)).unwrap());
        look();
        child.wait().unwrap();
        look();
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let table = b"head\n\n0: 0100007F:1F90 00000000:0000 0A\nx\n1: 01:2 03:4 0A 0 0 0 0 0 7 0\n";
        assert_eq!(parse_internet(table).count(), 0);
        assert_eq!(parse_unix(b"head\n\n0: 1 2 zz 1 1 5 /x\n0: 1\n").count(), 0);
    }
}
