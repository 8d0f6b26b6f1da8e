//! Programs in a network of their own: they get a socket of the host's.

use std::net::UdpSocket;
use std::process::Command;

use regen::service::intercept::Network;

use crate::free::free_port;
use crate::instance::{Instance, get, gives_way, http_server, script, site, word};

/// The same command in a network of its own.
fn isolated(command: &Command) -> Command {
    let mut isolated = Command::new("/usr/bin/unshare");
    isolated.args(["--net", "--"]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        isolated.current_dir(directory);
    }
    isolated.stdin(std::process::Stdio::null());
    isolated
}

#[test]
fn a_server_in_a_network_of_its_own_is_reached_at_the_hosts_port() {
    let port = free_port("127.0.0.1");
    let (old_site, new_site) = (site("old"), site("new"));
    let declared = [&*format!("tcp://127.0.0.1:{port}")];
    let start = |site: &tempfile::TempDir| {
        let mut command = isolated(&http_server(site.path(), "0.0.0.0", port));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut instance = Instance::start(command, &declared, Network::Private);
        instance.answer_until_it_listens();
        instance
    };
    let address = ([127, 0, 0, 1], port).into();
    let old = start(&old_site);
    assert_eq!(get(address), "old");
    let new = start(&new_site);
    gives_way(old, &new, address);
}

#[test]
fn one_socket_for_both_versions_of_ip_becomes_one_of_the_hosts() {
    let port = free_port("::");
    let declared = [&*format!("tcp://0.0.0.0:{port}"), &*format!("tcp://[::]:{port}")];
    let body = format!(
        "s = listener(('::', {port}), socket.AF_INET6, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))\n\
         s.listen()\n\
         serve(s, 'both')\n"
    );
    let mut instance = Instance::start(isolated(&script(&body)), &declared, Network::Private);
    instance.answer_until_it_listens();
    for ip in ["127.0.0.1", "::1"] {
        assert_eq!(word((ip.parse::<std::net::IpAddr>().unwrap(), port).into()), "both");
    }
}

#[test]
fn datagrams_of_the_host_reach_a_program_in_a_network_of_its_own_and_epoll_is_warned_of() {
    let port = free_port("127.0.0.1");
    let declared = [&*format!("udp://127.0.0.1:{port}")];
    let body = format!(
        "import select\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         e = select.epoll()\n\
         if len(sys.argv) > 1: e.register(s.fileno(), select.EPOLLIN)\n\
         os.set_inheritable(s.fileno(), True)\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)\n\
         s.bind(('0.0.0.0', {port}))\n\
         assert s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 100000\n\
         assert os.get_inheritable(s.fileno())\n\
         message, sender = s.recvfrom(100)\n\
         s.sendto(message * 2, sender)\n"
    );
    for watched in [false, true] {
        let mut command = isolated(&script(&body));
        if watched {
            command.arg("watched");
        }
        let mut instance = Instance::start(command, &declared, Network::Private);
        instance.answer_until_it_listens();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"ho", ("127.0.0.1", port)).unwrap();
        let mut answer = [0; 100];
        let count = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..count], b"hoho");
        assert_eq!(instance.answer_until_it_ends(), 0);
        let noted = instance.notes.iter().any(|note| note.contains("epoll"));
        assert_eq!(noted, watched, "{:?}", instance.notes);
    }
}
