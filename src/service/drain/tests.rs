use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::service::address::Listen;
use crate::service::socket::{Company, Listener};
use crate::sys::socket;

const QUIET: Look = Look { waiting: 0, connections: 0 };

fn look(socket: (&Address, &Socket), processes: &[i32]) -> Look {
    Inspection::default().look([socket], processes, Instant::now()).unwrap()
}

fn busy(connections: u64) -> Look {
    Look { waiting: 0, connections }
}

/// A program that accepts on descriptor 0, and closes a connection when something comes from it.
const SERVER: &str = "import socket,threading\n\
    s=socket.socket(fileno=0)\n\
    def serve(c):\n c.recv(1)\n c.close()\n\
    while True:\n c=s.accept()[0]\n threading.Thread(target=serve,args=(c,),daemon=True).start()";

struct Instance {
    child: Child,
    listener: Listener,
}

impl Instance {
    fn start(address: Address) -> Self {
        let listen = Listen { name: "web".parse().unwrap(), address };
        let mut listener = Listener::make(&listen, Company::Alone).unwrap();
        listener.publish().unwrap();
        let passed = std::os::fd::OwnedFd::from(listener.socket().duplicate().unwrap());
        let child = Command::new("python3").args(["-c", SERVER]).stdin(Stdio::from(passed)).spawn().unwrap();
        Self { child, listener }
    }

    fn look(&self) -> Look {
        look((&self.listener.listen().address, self.listener.socket()), &[i32::try_from(self.child.id()).unwrap()])
    }

    /// Waits until a look finds just this.
    fn await_look(&self, wanted: Look) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.look() != wanted {
            assert!(Instant::now() < deadline, "{:?}, not {wanted:?}", self.look());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait(), self.listener.withdraw());
    }
}

/// Connects, and gives what sends a byte.
fn client(address: &Address) -> Box<dyn Write + Send> {
    match address {
        Address::Tcp(place) => Box::new(std::net::TcpStream::connect(place).unwrap()),
        Address::Unix(_, path) => Box::new(UnixStream::connect(path).unwrap()),
        Address::Udp(_) | Address::Auto => panic!("{address}"),
    }
}

fn each_kind(test: impl Fn(Instance, Address)) {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap().port();
    let path = directory.path().join("s");
    for address in ["auto".to_owned(), format!("tcp://[::]:{port}"), format!("unix:{}", path.display())] {
        let instance = Instance::start(address.parse().unwrap());
        let address = instance.listener.listen().address.reachable();
        test(instance, address);
    }
}

#[test]
fn connections_are_counted_from_the_queue_to_their_end() {
    each_kind(|instance, address| {
        instance.await_look(QUIET);
        let mut clients: Vec<_> = (0..3).map(|_| client(&address)).collect();
        instance.await_look(busy(3));
        clients[0].write_all(b"x").unwrap();
        instance.await_look(busy(2));
        // A client that goes without a word: the program notices.
        clients.pop();
        instance.await_look(busy(1));
        clients[1].write_all(b"x").unwrap();
        instance.await_look(QUIET);
    });
}

#[test]
fn what_nobody_accepts_is_waiting() {
    each_kind(|mut instance, address| {
        instance.await_look(QUIET);
        instance.child.kill().unwrap();
        instance.child.wait().unwrap();
        let _client = client(&address);
        let look = instance.look();
        assert_eq!((look, look.total()), (Look { waiting: 1, connections: 0 }, 1));
    });
}

#[test]
fn connections_that_the_program_made_itself_do_not_count() {
    let instance = Instance::start(Address::Auto);
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let me = [i32::try_from(std::process::id()).unwrap()];
    let _outgoing = std::net::TcpStream::connect(other.local_addr().unwrap()).unwrap();
    let client = client(&instance.listener.listen().address);
    instance.await_look(busy(1));
    // We have the other end of it, and the outgoing one: neither came in here.
    let ours = look((&instance.listener.listen().address, instance.listener.socket()), &me);
    assert_eq!(ours, QUIET);
    drop(client);
    instance.await_look(QUIET);
}

#[test]
fn a_client_in_another_network_is_counted_at_a_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let instance = Instance::start(format!("unix:{}", path.display()).parse().unwrap());
    let program = format!("import socket\ns=socket.socket(socket.AF_UNIX)\ns.connect('{}')\ns.recv(1)", path.display());
    let mut client = Command::new("unshare").args(["--net", "python3", "-c", &program]).spawn().unwrap();
    instance.await_look(busy(1));
    client.kill().unwrap();
    client.wait().unwrap();
    instance.await_look(QUIET);
}

#[test]
fn datagrams_that_were_not_read_are_waiting() {
    let socket = Socket::from(std::os::fd::OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()));
    let socket::Address::Internet(place) = socket.local().unwrap() else { panic!("no port") };
    let address = Address::Udp(place);
    let see = || look((&address, &socket), &[]);
    assert_eq!(see(), QUIET);
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"", place).unwrap();
    assert_eq!(see(), Look { waiting: 1, connections: 0 });
    rustix::io::read(&socket, &mut [0; 1]).unwrap();
    assert_eq!(see(), QUIET);
}

#[test]
fn an_abstract_listener_is_known_by_its_name() {
    let name = format!("regen\0test-{}", std::process::id()).into_bytes();
    let listener = Socket::new(Family::Unix, Transport::Stream).unwrap();
    listener.bind(&socket::Address::Abstract(name.clone())).unwrap();
    listener.listen(1).unwrap();
    let client = Socket::new(Family::Unix, Transport::Stream).unwrap();
    client.connect(&socket::Address::Abstract(name)).unwrap();
    let me = [i32::try_from(std::process::id()).unwrap()];
    let see = || look((&Address::Auto, &listener), &me);
    assert_eq!(see(), Look { waiting: 1, connections: 0 });
    let accepted = rustix::net::accept(&listener).unwrap();
    assert_eq!(see(), busy(1));
    drop(accepted);
    assert_eq!(see(), QUIET);
}
