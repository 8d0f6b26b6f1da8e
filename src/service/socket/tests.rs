use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::sys::socket_table::await_closed;

fn listen(address: &str) -> Listen {
    Listen { name: "web".parse().unwrap(), address: address.parse().unwrap() }
}

fn make(address: &str, company: Company) -> Result<Listener> {
    Listener::make(&listen(address), company)
}

/// A free port of a version of IP, for a moment.
fn free(host: &str) -> SocketAddr {
    std::net::TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

/// A foreign process that binds sockets and says so; it ends with its standard input.
struct Foreign(Child);

impl Foreign {
    fn start(program: &str) -> Self {
        let program = format!("import socket,sys\n{program}\nprint('up',flush=True)\nsys.stdin.read()");
        let mut command = Command::new("python3");
        command.args(["-c", &program]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self(child)
    }

    fn name(&self) -> String {
        format!("process {} (python3", self.0.id())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn instances_share_a_port_that_nobody_else_has() {
    for host in ["127.0.0.1", "::1"] {
        for scheme in ["tcp", "udp"] {
            let address = format!("{scheme}://{}", free(host));
            let first = make(&address, Company::Alone).unwrap();
            let next = make(&address, Company::Beside).unwrap();
            assert_eq!(first.socket().local().unwrap(), next.socket().local().unwrap());
            assert_eq!(first.socket().is_listening().unwrap(), scheme == "tcp");
            let error = make(&address, Company::Alone).unwrap_err();
            assert_eq!(error.kind(), Kind::Busy, "{error}");
        }
    }
}

#[test]
fn who_has_the_port_is_named() {
    let address = free("127.0.0.1");
    let port = address.port();
    for (scheme, kind, host) in [("tcp", "SOCK_STREAM", ""), ("udp", "SOCK_DGRAM", "127.0.0.1")] {
        // The foreign one shares its port as well: without a trial nobody would notice.
        let foreign = Foreign::start(&format!(
            "s=socket.socket(type=socket.{kind});s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)\n\
             s.bind(('{host}',{port}));'{scheme}'=='tcp' and s.listen(1)"
        ));
        let error = make(&format!("{scheme}://{address}"), Company::Alone).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        let expected = format!("listen on {scheme}://{address}: port {port} is in use by {}", foreign.name());
        assert!(error.to_string().starts_with(&expected), "{error}");
        drop(foreign);
        make(&format!("{scheme}://{address}"), Company::Alone).unwrap();
    }
}

#[test]
fn connections_of_the_past_do_not_keep_a_port() {
    let address = free("127.0.0.1");
    let first = make(&format!("tcp://{address}"), Company::Alone).unwrap();
    let client = std::net::TcpStream::connect(address).unwrap();
    let accepted = rustix::net::accept(first.socket()).unwrap();
    let inode = first.socket().inode().unwrap();
    drop(first);
    await_closed(&[inode]);
    make(&format!("tcp://{address}"), Company::Alone).unwrap();
    // The side that closes first waits for the other's last words.
    drop((accepted, client));
    make(&format!("tcp://{address}"), Company::Alone).unwrap();
}

#[test]
fn an_automatic_port_is_told() {
    let listener = make("auto", Company::Alone).unwrap();
    let Address::Tcp(address) = listener.listen().address else { panic!("{:?}", listener.listen()) };
    assert!(address.ip().is_loopback() && address.port() != 0);
    assert_eq!(listener.socket().local().unwrap(), socket::Address::Internet(address));
    assert_eq!(listener.listen().name.as_str(), "web");
}

#[test]
fn what_cannot_be_had_is_explained() {
    let error = make("tcp://203.0.113.9:8080", Company::Alone).unwrap_err();
    assert!(error.to_string().contains("this host does not have the address 203.0.113.9"), "{error}");
    let refused = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // A new network has the kernel's own limit.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).unwrap();
            make("tcp://0.0.0.0:80", Company::Alone).unwrap_err()
        });
        thread.join().unwrap()
    });
    assert!(refused.to_string().contains("ports below 1024 are for root: choose one from 1024 on"), "{refused}");
}

#[test]
fn a_unix_socket_takes_its_path_over_without_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    for scheme in ["unix", "unix-seqpacket"] {
        let address = format!("{scheme}:{}", path.display());
        let mut old = make(&address, Company::Alone).unwrap();
        assert!(!path.exists(), "it is there before it is published");
        old.publish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
        let client = |target: &Path| {
            let family = old.socket().transport().unwrap().unwrap();
            let socket = Socket::new(Family::Unix, family).unwrap();
            socket.connect(&socket::Address::Path(target.to_owned())).map(|()| socket)
        };
        let _first = client(&path).unwrap();
        let mut new = make(&address, Company::Beside).unwrap();
        let _second = client(&path).unwrap();
        assert!(!new.socket().has_input().unwrap());
        new.publish().unwrap();
        let _third = client(&path).unwrap();
        assert!(new.socket().has_input().unwrap());
        let error = make(&address, Company::Alone).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        let status = fs::metadata(&path).unwrap();
        assert_eq!((status.mode() & 0o777, status.uid(), status.gid()), (0o640, 7, 8));
        for _ in 0..2 {
            assert!(old.socket().has_input().unwrap());
            rustix::net::accept(old.socket()).unwrap();
        }
        old.withdraw().unwrap();
        assert!(path.exists(), "the path is the next one's");
        new.withdraw().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{scheme}");
    }
}

#[test]
fn a_socket_that_was_not_published_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", directory.path().join("s").display());
    let mut listener = make(&address, Company::Alone).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    listener.withdraw().unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    drop(make(&address, Company::Alone).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_socket_file_is_replaced_if_nobody_listens_and_its_holder_is_named_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let address = format!("unix:{}", path.display());
    // What killed programs leave: under the path, and under a temporary name of ours.
    drop((UnixListener::bind(&path).unwrap(), UnixListener::bind(directory.path().join(".tmp-s-1")).unwrap()));
    let mut listener = make(&address, Company::Alone).unwrap();
    listener.publish().unwrap();
    UnixStream::connect(&path).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    listener.withdraw().unwrap();
    let foreign = Foreign::start(&format!("s=socket.socket(socket.AF_UNIX);s.bind('{}');s.listen(1)", path.display()));
    let error = make(&address, Company::Alone).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&format!("the socket is in use by {}", foreign.name())), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_path_that_somebody_took_meanwhile_stays_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut listener = make(&format!("unix:{}", path.display()), Company::Alone).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    let error = listener.publish().unwrap_err();
    let me = format!("in use by process {}", std::process::id());
    assert!(error.kind() == Kind::Busy && error.to_string().contains(&me), "{error}");
    UnixStream::connect(&path).unwrap();
}

#[test]
fn who_connects_to_see_whether_a_socket_lives_leaves_no_connection_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let other = UnixListener::bind(&path).unwrap();
    make(&format!("unix:{}", path.display()), Company::Alone).unwrap_err();
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err());
}

#[test]
fn a_file_that_is_no_socket_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let address = format!("unix:{}", path.display());
    let refused = || {
        for company in [Company::Alone, Company::Beside] {
            let error = make(&address, company).unwrap_err();
            assert_eq!(error.kind(), Kind::Exists, "{error}");
        }
    };
    fs::write(&path, "content").unwrap();
    refused();
    assert_eq!(fs::read(&path).unwrap(), b"content");
    fs::remove_file(&path).unwrap();
    let _target = UnixListener::bind(directory.path().join("t")).unwrap();
    symlink("t", &path).unwrap();
    refused();
    let error = make(&format!("unix:{}/no/s", directory.path().display()), Company::Alone).unwrap_err();
    assert!(error.kind() == Kind::NotFound && error.to_string().contains("make directory"), "{error}");
}

#[test]
fn a_path_as_long_as_an_address_may_be_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let length = socket::PATH_LIMIT - directory.path().as_os_str().len() - 1;
    let path = directory.path().join("x".repeat(length));
    let mut listener = make(&format!("unix:{}", path.display()), Company::Alone).unwrap();
    listener.publish().unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_socket_of_the_dead_goes_on_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let addresses = [format!("tcp://{}", free("127.0.0.1")), format!("unix-dgram:{}", path.display())];
    for address in &addresses {
        let mut first = make(address, Company::Alone).unwrap();
        first.publish().unwrap();
        let socket = first.socket().duplicate().unwrap();
        if address.starts_with("tcp") {
            socket.listen(3).unwrap();
        } else {
            UnixDatagram::unbound().unwrap().send_to(b"x", &path).unwrap();
        }
        drop(first);
        let mut next = Listener::inherit(&listen(address), socket).unwrap();
        if address.starts_with("tcp") {
            assert!(next.socket().queue().unwrap().backlog > 3);
        } else {
            assert!(next.socket().has_input().unwrap());
        }
        next.publish().unwrap();
        next.withdraw().unwrap();
    }
    assert!(!path.exists());
    let other = make("auto", Company::Alone).unwrap();
    for wrong in &addresses {
        let error = Listener::inherit(&listen(wrong), other.socket().duplicate().unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
}

#[test]
fn nothing_is_done_to_what_somebody_puts_in_the_place_of_an_unpublished_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (path, victim) = (directory.path().join("s"), directory.path().join("victim"));
    fs::write(&victim, "secret").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    let mut listener = make(&format!("unix:{}", path.display()), Company::Alone).unwrap();
    let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let temporary = names.into_iter().find(|name| *name != victim).unwrap();
    // The file that is at the path says who may connect, to a socket.
    drop(UnixListener::bind(&path).unwrap());
    std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4777)).unwrap();
    for replace in [
        |victim: &Path, name: &Path| symlink(victim, name),
        |victim: &Path, name: &Path| fs::hard_link(victim, name),
        |_: &Path, name: &Path| UnixListener::bind(name).map(drop),
    ] {
        fs::remove_file(&temporary).unwrap();
        replace(&victim, &temporary).unwrap();
        let error = listener.publish().unwrap_err();
        assert!(error.to_string().contains("another file in its place"), "{error}");
        let status = fs::metadata(&victim).unwrap();
        assert_eq!((status.mode() & 0o7777, status.uid()), (0o600, 0));
    }
    listener.withdraw().unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "secret");
}
