//! Ports of programs that share the host's network: their own sockets are taken.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use regen::service::intercept::Network;

use crate::free::free_port;
use crate::instance::{Instance, LIMIT, filtered, get, gives_way, http_server, script, site, word};

#[test]
fn two_programs_that_know_of_nothing_listen_at_one_address() {
    let port = free_port("127.0.0.1");
    let (old_site, new_site) = (site("old"), site("new"));
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let declared = [&*format!("tcp://127.0.0.1:{port}")];
    let start = |site: &tempfile::TempDir| {
        Instance::start(http_server(site.path(), "127.0.0.1", port), &declared, Network::Shared)
    };
    let mut old = start(&old_site);
    old.answer_until_it_listens();
    assert_eq!(get(address), "old");
    let mut new = start(&new_site);
    new.answer_until_it_listens();
    // Until somebody steers, both get some.
    gives_way(old, &new, address);
}

#[test]
fn a_program_learns_what_the_kernel_says_of_its_bind() {
    let port = free_port("127.0.0.1");
    // What another test starts just now has this process's copy of the first socket until its exec.
    let body = format!(
        "def attempt(address, family=socket.AF_INET):\n\
         \x20   s = socket.socket(family)\n\
         \x20   try: s.bind(address)\n\
         \x20   except OSError as error: return s, errno.errorcode[error.errno]\n\
         \x20   return s, 'bound'\n\
         a, first = attempt(('127.0.0.1', {port}))\n\
         a.listen()\n\
         b, second = attempt(('127.0.0.1', {port}))\n\
         c, third = attempt(('0.0.0.0', {port}))\n\
         share = b.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)\n\
         a.close()\n\
         for _ in range(1000):\n\
         \x20   d, fourth = attempt(('127.0.0.1', {port}))\n\
         \x20   if fourth == 'bound': break\n\
         \x20   time.sleep(0.01)\n\
         try: d.bind(('127.0.0.1', {port}))\n\
         except OSError as error: fifth = errno.errorcode[error.errno]\n\
         e, sixth = attempt(('192.0.2.1', {port}))\n\
         assert (first, second, third, fourth, fifth, share) == \
         ('bound', 'EADDRINUSE', 'EADDRINUSE', 'bound', 'EINVAL', 0), (first, second, third, fourth, fifth, share)\n\
         assert sixth == 'EADDRNOTAVAIL', sixth\n\
         import os\n\
         assert e.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0\n\
         f, seventh = attempt(('127.0.0.1', 0))\n\
         f.listen()\n\
         assert seventh == 'bound' and f.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0\n"
    );
    let declared = [&*format!("tcp://0.0.0.0:{port}")];
    let mut instance = Instance::start(script(&body), &declared, Network::Shared);
    assert_eq!(instance.answer_until_it_ends(), 0);
    assert_eq!(instance.notes, Vec::<String>::new());
}

/// A program that says a word to everybody, and listens.
fn saying(word: &str, body: &str, declared: &[&str]) -> Instance {
    let mut command = script(body);
    command.arg(word);
    let mut instance = Instance::start(command, declared, Network::Shared);
    instance.answer_until_it_listens();
    instance
}

fn tcp(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

#[test]
fn one_socket_of_both_versions_counts_for_both_addresses() {
    let port = free_port("::");
    let declared = [&*format!("tcp://0.0.0.0:{port}"), &*format!("tcp://[::]:{port}")];
    let body = format!(
        "s = listener(('::', {port}), socket.AF_INET6, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))\n\
         s.listen()\n\
         serve(s, 'both')\n"
    );
    let mut one = Instance::start(script(&body), &declared, Network::Shared);
    one.answer_until_it_listens();
    let mut other = Instance::start(script(&body), &declared, Network::Shared);
    other.answer_until_it_listens();
    assert_eq!(word(tcp("127.0.0.1", port)), "both");
    assert_eq!(word(tcp("::1", port)), "both");
}

#[test]
fn a_datagram_socket_serves_from_its_bind_on() {
    let port = free_port("127.0.0.1");
    let declared = [&*format!("udp://127.0.0.1:{port}")];
    let body = format!(
        "s = listener(('127.0.0.1', {port}), kind=socket.SOCK_DGRAM)\n\
         while True:\n\
         \x20   message, sender = s.recvfrom(100)\n\
         \x20   s.sendto(sys.argv[1].encode() + message, sender)\n"
    );
    let start = |word: &str| saying(word, &body, &declared);
    let ask = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"!", tcp("127.0.0.1", port)).unwrap();
        let mut answer = [0; 100];
        let count = socket.recv(&mut answer).unwrap();
        String::from_utf8(answer[..count].to_vec()).unwrap()
    };
    let mut old = start("old");
    assert_eq!(ask(), "old!");
    let _new = start("new");
    old.interceptor.release();
    drop(old);
    assert_eq!(ask(), "new!");
}

#[test]
fn a_port_that_was_not_declared_is_bound_all_the_same_and_told_of() {
    let (port, other) = (free_port("127.0.0.1"), free_port("127.0.0.1"));
    let declared = [&*format!("tcp://127.0.0.1:{port}")];
    let body = format!(
        "for i in range(2):\n\
         \x20   s = listener(('127.0.0.1', {other}), socket.AF_INET, (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1))\n\
         \x20   s.listen()\n\
         \x20   s.close()\n\
         u = listener(('127.0.0.1', {port}), kind=socket.SOCK_DGRAM)\n"
    );
    let mut instance = Instance::start(script(&body), &declared, Network::Shared);
    assert_eq!(instance.answer_until_it_ends(), 0);
    assert_eq!(instance.notes.len(), 2, "{:?}", instance.notes);
    assert!(instance.notes[0].contains(&format!("tcp://127.0.0.1:{other}")));
    assert!(instance.notes[1].contains(&format!("udp://127.0.0.1:{port}")));
    assert_eq!(instance.interceptor.missing().len(), 1);
}

#[test]
fn workers_that_each_bind_the_port_are_all_kept() {
    let port = free_port("127.0.0.1");
    let declared = [&*format!("tcp://127.0.0.1:{port}")];
    let body = format!(
        "share = (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
         for i in range(4):\n\
         \x20   if os.fork() == 0:\n\
         \x20       s = listener(('127.0.0.1', {port}), socket.AF_INET, share)\n\
         \x20       s.listen(1)\n\
         \x20       serve(s, 'worker')\n\
         time.sleep(1000)\n"
    );
    let mut instance = Instance::start(script(&body), &declared, Network::Shared);
    let deadline = Instant::now() + LIMIT;
    while instance.interceptor.listening().len() < 4 {
        assert!(Instant::now() < deadline);
        instance.answer_once(Duration::from_millis(20));
    }
    for _ in 0..50 {
        assert_eq!(word(tcp("127.0.0.1", port)), "worker");
    }
    // A worker's program asked for a backlog of 1.
    assert!(instance.interceptor.listening().iter().all(|it| it.socket.queue().unwrap().backlog > 1));
}

#[test]
fn a_child_may_listen_on_what_its_parent_has_bound() {
    let port = free_port("127.0.0.1");
    let declared = [&*format!("tcp://127.0.0.1:{port}")];
    let body = format!(
        "s = listener(('127.0.0.1', {port}))\n\
         if os.fork(): time.sleep(1000)\n\
         s.listen(5)\n\
         s.listen(7)\n\
         serve(s, 'child')\n"
    );
    let mut instance = Instance::start(script(&body), &declared, Network::Shared);
    instance.answer_until_it_listens();
    // It listens a second time.
    instance.answer_once(LIMIT);
    assert_eq!(instance.interceptor.listening().len(), 1);
    assert_eq!(word(tcp("127.0.0.1", port)), "child");
}

#[test]
fn threads_that_bind_at_the_same_time_all_get_their_answer() {
    let ports: Vec<_> = (0..8).map(|_| free_port("127.0.0.1")).collect();
    let declared: Vec<_> = ports.iter().map(|port| format!("tcp://127.0.0.1:{port}")).collect();
    let declared: Vec<_> = declared.iter().map(String::as_str).collect();
    let body = format!(
        "def one(port):\n\
         \x20   s = listener(('127.0.0.1', port))\n\
         \x20   s.listen()\n\
         \x20   serve(s, str(port))\n\
         for port in {ports:?}: threading.Thread(target=one, args=(port,)).start()\n"
    );
    let mut instance = Instance::start(script(&body), &declared, Network::Shared);
    instance.answer_until_it_listens();
    for port in ports {
        assert_eq!(word(tcp("127.0.0.1", port)), port.to_string());
    }
}

#[test]
fn programs_of_different_users_share_a_port_and_a_privileged_one_stays_so() {
    let port = free_port("127.0.0.1");
    let declared = [&*format!("tcp://127.0.0.1:{port}"), "tcp://127.0.0.1:1"];
    let body = format!(
        "os.setgroups([]); os.setgid(65534)\n\
         os.setuid(int(sys.argv[1]))\n\
         s = listener(('127.0.0.1', {port}))\n\
         s.listen()\n\
         try: listener(('127.0.0.1', 1))\n\
         except OSError as error: word = errno.errorcode[error.errno]\n\
         serve(s, word)\n"
    );
    let mut instances: Vec<_> = ["65534", "12345"]
        .map(|user| {
            let mut command = script(&body);
            command.arg(user);
            let mut instance = Instance::start(command, &declared, Network::Shared);
            instance.answer_until(|interceptor, _| interceptor.missing().len() == 1);
            // The second bind.
            instance.answer_once(LIMIT);
            instance
        })
        .into();
    for _ in 0..2 {
        assert_eq!(word(tcp("127.0.0.1", port)), "EACCES");
        instances.pop().unwrap().interceptor.release();
    }
}

#[test]
fn a_socket_of_several_paths_gets_one_that_can_be_shared() {
    let port = free_port("127.0.0.1");
    let declared = [&*format!("tcp://127.0.0.1:{port}")];
    let body = format!(
        "s = listener(('127.0.0.1', {port}), protocol=262)\n\
         s.listen()\n\
         assert s.getsockname() == ('127.0.0.1', {port})\n\
         serve(s, sys.argv[1])\n"
    );
    let start = |word: &str| saying(word, &body, &declared);
    let mut old = start("old");
    assert_eq!(word(tcp("127.0.0.1", port)), "old");
    let _new = start("new");
    old.interceptor.release();
    drop(old);
    assert_eq!(word(tcp("127.0.0.1", port)), "new");
}

#[test]
fn without_anybody_to_answer_a_bind_fails_at_once() {
    let port = free_port("127.0.0.1");
    let body = format!(
        "sys.stdin.readline()\n\
         try: listener(('127.0.0.1', {port}))\n\
         except OSError as error: print(errno.errorcode[error.errno])\n"
    );
    let mut command = script(&body);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let (mut child, listener) = filtered(command);
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    drop(listener);
    input.write_all(b"\n").unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    assert_eq!(text, "ENOSYS\n");
}
