//! Connections that are still being made.
//!
//! A listener that gets nothing new any more still gets what had begun before: the client's last packet of the handshake
//! comes a round trip later and puts the connection into the queue of the listener that got the first one. As long as
//! that can happen an empty queue proves nothing. What comes after the listener is closed goes to its successor; what
//! comes between the last look and then would be lost.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::connection::{at_ports, networks_of};
use crate::error::Result;
use crate::sys::socket;
use crate::sys::socket_table::State;

/// How long one is waited for: a packet that was lost is sent again after one second, and whoever does not answer that
/// may be nobody.
const PATIENCE: Duration = Duration::from_secs(3);

/// Handshakes that were under way at the places of an instance when new ones had begun to go elsewhere.
#[derive(Debug)]
pub(super) struct Handshakes {
    begun: HashSet<(SocketAddr, SocketAddr)>,
    until: Instant,
}

impl Handshakes {
    /// Those that are under way now at these local addresses, in our network and in those of these processes.
    ///
    /// # Errors
    /// Those of reading /proc: EACCES for processes that the caller may not trace.
    pub(super) fn under_way(places: &[socket::Address], processes: &[i32], now: Instant) -> Result<Self> {
        Ok(Self { begun: find(places, processes)?, until: now + PATIENCE })
    }

    /// How many of them are still under way and worth waiting for.
    ///
    /// # Errors
    /// As for [`Handshakes::under_way`].
    pub(super) fn left(&mut self, places: &[socket::Address], processes: &[i32], now: Instant) -> Result<u64> {
        if now >= self.until {
            self.begun.clear();
        }
        if !self.begun.is_empty() {
            let found = find(places, processes)?;
            self.begun.retain(|handshake| found.contains(handshake));
        }
        Ok(self.count())
    }

    /// How many of them there were when somebody looked last.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.begun.len()).unwrap_or(u64::MAX)
    }
}

fn find(places: &[socket::Address], processes: &[i32]) -> Result<HashSet<(SocketAddr, SocketAddr)>> {
    let opening = at_ports(places, &networks_of(processes)?, State::Opening)?;
    Ok(opening.into_iter().map(|socket| (socket.local, socket.remote)).collect())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

    use nix::sched::{CloneFlags, setns};

    use super::*;
    use crate::service::address::Address;
    use crate::service::drain::{Inspection, Look};
    use crate::sys::socket::Socket;

    /// A host with a listener at 10.9.0.1 and the port that it is given, and packets of a client at 10.9.0.2 that are written by hand: `syn PORT` begins a
    /// handshake, `ack PORT` ends it. It says what the listener's side has answered.
    const HOST: &str = "
import fcntl, os, socket, struct, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'tun0', 0x1001))
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def address(call, ip):
    fcntl.ioctl(control, call, struct.pack('16sHH4s8x', b'tun0', socket.AF_INET, 0, socket.inet_aton(ip)))
address(0x8916, '10.9.0.1')
address(0x891c, '255.255.255.0')
fcntl.ioctl(control, 0x8914, struct.pack('16sH14x', b'tun0', 0x41))
place = int(sys.argv[1])
listener = socket.create_server(('10.9.0.1', place))
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    return ~((total >> 16) + (total & 0xffff)) & 0xffff
def send(port, sequence, acknowledged, flags):
    client, server = socket.inet_aton('10.9.0.2'), socket.inet_aton('10.9.0.1')
    def segment(check):
        return struct.pack('!HHIIBBHHH', port, place, sequence, acknowledged, 5 << 4, flags, 65535, check, 0)
    text = segment(checksum(client + server + struct.pack('!HH', 6, 20) + segment(0)))
    head = lambda check: struct.pack('!BBHHHBBH4s4s', 0x45, 0, 40, 0, 0, 64, 6, check, client, server)
    os.write(tun, head(checksum(head(0))) + text)
answered = {}
print('ready', flush=True)
for line in sys.stdin:
    word, port = line.split()
    port = int(port)
    if word == 'syn':
        send(port, 1000, 0, 2)
        while port not in answered:
            packet = os.read(tun, 2048)
            if packet[0] >> 4 == 4 and packet[9] == 6 and packet[33] == 18:
                answered[struct.unpack('!H', packet[22:24])[0]] = struct.unpack('!I', packet[24:28])[0]
        print('answered', flush=True)
    else:
        send(port, 1001, answered[port] + 1, 16)
        listener.accept()
        print('accepted', flush=True)
";

    struct Host {
        child: Child,
        input: ChildStdin,
        output: BufReader<ChildStdout>,
    }

    impl Host {
        fn start(port: u16) -> Self {
            let mut command = Command::new("unshare");
            command
                .args(["--net", "python3", "-c", HOST, &port.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
            let mut host = Self { child, input, output };
            host.hear("ready");
            host
        }

        fn hear(&mut self, wanted: &str) {
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            assert_eq!(line.trim_end(), wanted);
        }

        fn tell(&mut self, command: &str, answer: &str) {
            writeln!(self.input, "{command}").unwrap();
            self.hear(answer);
        }

        /// How many are under way, seen from a thread in its network.
        fn count_inside(&self, place: &socket::Address) -> u64 {
            let network = std::fs::File::open(format!("/proc/{}/ns/net", self.child.id())).unwrap();
            let place = std::slice::from_ref(place);
            let look = || {
                setns(&network, CloneFlags::CLONE_NEWNET).unwrap();
                Handshakes::under_way(place, &[], Instant::now()).unwrap().count()
            };
            std::thread::scope(|scope| scope.spawn(look).join().unwrap())
        }

        fn processes(&self) -> [i32; 1] {
            [i32::try_from(self.child.id()).unwrap()]
        }
    }

    impl Drop for Host {
        fn drop(&mut self) {
            let _ = (self.child.kill(), self.child.wait());
        }
    }

    #[test]
    fn a_handshake_that_had_begun_is_waited_for_and_a_later_one_is_not() {
        let mut host = Host::start(80);
        let processes = host.processes();
        let places = [socket::Address::Internet("10.9.0.1:80".parse().unwrap())];
        let now = Instant::now();
        assert_eq!(Handshakes::under_way(&places, &processes, now).unwrap().left(&places, &processes, now).unwrap(), 0);
        host.tell("syn 1111", "answered");
        host.tell("syn 2222", "answered");
        let mut handshakes = Handshakes::under_way(&places, &processes, now).unwrap();
        host.tell("syn 3333", "answered");
        assert_eq!(host.count_inside(&places[0]), 3);
        assert_eq!(handshakes.left(&places, &processes, now).unwrap(), 2);
        host.tell("ack 2222", "accepted");
        assert_eq!(handshakes.left(&places, &processes, now).unwrap(), 1);
        host.tell("ack 1111", "accepted");
        assert_eq!(handshakes.left(&places, &processes, now).unwrap(), 0);
    }

    #[test]
    fn looks_find_a_handshake_that_the_first_of_them_found() {
        let listener = Socket::from(OwnedFd::from(TcpListener::bind("0.0.0.0:0").unwrap()));
        let socket::Address::Internet(place) = listener.local().unwrap() else { panic!("no port") };
        let mut host = Host::start(place.port());
        let (processes, mut inspection) = (host.processes(), Inspection::default());
        let address = Address::Tcp(place);
        let mut see = || inspection.look([(&address, &listener)], &processes, Instant::now()).unwrap();
        host.tell("syn 1111", "answered");
        assert_eq!(see(), Look { waiting: 1, connections: 0 });
        host.tell("syn 2222", "answered");
        assert_eq!(see(), Look { waiting: 1, connections: 0 });
        host.tell("ack 1111", "accepted");
        assert_eq!(see(), Look { waiting: 0, connections: 0 });
    }

    #[test]
    fn nobody_waits_for_ever_for_a_client_that_has_vanished() {
        let mut host = Host::start(80);
        let (processes, now) = (host.processes(), Instant::now());
        let places = [socket::Address::Internet("0.0.0.0:80".parse().unwrap())];
        host.tell("syn 1111", "answered");
        let mut handshakes = Handshakes::under_way(&places, &processes, now).unwrap();
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(handshakes.left(&places, &processes, later(2)).unwrap(), 1);
        assert_eq!(handshakes.left(&places, &processes, later(3)).unwrap(), 0);
    }

    #[test]
    fn other_ports_and_sockets_without_ports_have_none() {
        let mut host = Host::start(80);
        let (processes, now) = (host.processes(), Instant::now());
        host.tell("syn 1111", "answered");
        for place in [socket::Address::Internet("0.0.0.0:81".parse().unwrap()), socket::Address::Path("/x".into())] {
            let mut handshakes = Handshakes::under_way(std::slice::from_ref(&place), &processes, now).unwrap();
            assert_eq!(handshakes.left(&[place], &processes, now).unwrap(), 0);
        }
    }
}
