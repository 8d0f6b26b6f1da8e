//! Unix sockets: the file is the program's own, the listener behind the declared path is the host's.

use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use regen::service::intercept::Network;
use regen::sys::socket::{Address, Family, Socket, Transport};

use crate::instance::{Instance, script};

/// A directory of the host's and the one of a container, in which a declared path is looked up: programs here have the
/// host's root, so they change it.
struct Places {
    base: tempfile::TempDir,
}

impl Places {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        for name in ["root/run", "host"] {
            std::fs::create_dir_all(base.path().join(name)).unwrap();
        }
        // What a program in Python needs.
        Self { base }
    }

    fn root(&self) -> std::path::PathBuf {
        self.base.path().join("root")
    }

    /// A socket of the host's that clients find here.
    fn host(&self, name: &str, transport: Transport) -> (Socket, std::path::PathBuf) {
        let path = self.base.path().join("host").join(name);
        let socket = Socket::new(Family::Unix, transport).unwrap();
        socket.bind(&Address::Path(path.clone())).unwrap();
        (socket, path)
    }

    fn start(&self, body: &str, declared: &str, host: Socket) -> Instance {
        // Everything is imported before the root changes.
        let root = self.root();
        let body = format!("import stat\nos.chroot({root:?})\nos.chdir('/run')\n{body}");
        Instance::start_with(script(&body), &[declared], Network::Shared, vec![(0, host)])
    }
}

fn word(path: &Path) -> String {
    let mut text = String::new();
    UnixStream::connect(path).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_program_serves_the_hosts_socket_and_has_its_own_file() {
    for (bound, rest) in [
        ("/run/x", ""),
        ("x", ""),
        ("/run/x.tmp", "os.rename('/run/x.tmp', '/run/x')\n"),
        ("/run/../run/./x", "os.chmod('/run/x', 0o600)\n"),
    ] {
        let places = Places::new();
        let (host, path) = places.host("x", Transport::Stream);
        let body = format!(
            "if os.path.exists('/run/x'): os.unlink('/run/x')\n\
             s = listener({bound:?}, socket.AF_UNIX)\n\
             {rest}\
             s.listen(1)\n\
             assert stat.S_ISSOCK(os.stat('/run/x').st_mode)\n\
             serve(s, 'inside')\n"
        );
        let mut instance = places.start(&body, "unix:/run/x", host);
        instance.answer_until_it_listens();
        assert_eq!(word(&path), "inside");
        assert_eq!(instance.notes, Vec::<String>::new());
    }
}

#[test]
fn the_file_that_an_earlier_instance_left_is_in_nobodys_way() {
    let places = Places::new();
    let body = "s = listener('/run/x', socket.AF_UNIX)\ns.listen()\nserve(s, sys.argv[1] if sys.argv[1:] else 'one')\n";
    let (first, first_path) = places.host("first", Transport::Stream);
    let mut old = places.start(body, "unix:/run/x", first);
    old.answer_until_it_listens();
    let (second, second_path) = places.host("second", Transport::Stream);
    let mut new = places.start(body, "unix:/run/x", second);
    new.answer_until_it_listens();
    assert_eq!((word(&first_path), word(&second_path)), ("one".to_owned(), "one".to_owned()));
}

#[test]
fn a_file_behind_which_somebody_is_stays() {
    let places = Places::new();
    let _other = std::os::unix::net::UnixListener::bind(places.root().join("run/x")).unwrap();
    let (host, _) = places.host("x", Transport::Stream);
    let body = "try: listener('/run/x', socket.AF_UNIX)\n\
                except OSError as error: sys.exit(error.errno == errno.EADDRINUSE and 7)\n";
    let mut instance = places.start(body, "unix:/run/x", host);
    assert_eq!(instance.answer_until_it_ends(), 7);
}

#[test]
fn sockets_of_other_names_and_kinds_are_the_programs_own() {
    let places = Places::new();
    let (host, _) = places.host("x", Transport::Stream);
    let body = "a = listener('/run/y', socket.AF_UNIX)\n\
                a.listen()\n\
                b = listener('\\0x', socket.AF_UNIX)\n\
                b.listen()\n\
                c = listener('', socket.AF_UNIX)\n\
                c.listen()\n\
                d = listener('/run/x', socket.AF_UNIX, kind=socket.SOCK_SEQPACKET)\n\
                d.listen()\n\
                assert c.getsockname().startswith(b'\\0')\n";
    let mut instance = places.start(body, "unix:/run/x", host);
    assert_eq!(instance.answer_until_it_ends(), 0);
    assert_eq!(instance.interceptor.missing().len(), 1);
    assert_eq!(instance.notes.len(), 1, "{:?}", instance.notes);
    assert!(instance.notes[0].contains("unix-seqpacket:/run/x"));
}

#[test]
fn a_datagram_socket_is_the_hosts_from_its_bind_on() {
    let places = Places::new();
    let (host, path) = places.host("log", Transport::Datagram);
    let body = "s = listener('/run/log', socket.AF_UNIX, kind=socket.SOCK_DGRAM)\n\
                assert stat.S_ISSOCK(os.stat('/run/log').st_mode)\n\
                assert s.recv(100) == b'line'\n";
    let mut instance = places.start(body, "unix-dgram:/run/log", host);
    instance.answer_until_it_listens();
    UnixDatagram::unbound().unwrap().send_to(b"line", &path).unwrap();
    assert_eq!(instance.answer_until_it_ends(), 0);
}
