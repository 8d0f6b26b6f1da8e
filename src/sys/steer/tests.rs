use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use rustix::io::{read, write};
use rustix::net::{SocketFlags, accept_with};

use super::*;
use crate::sys::socket::{Address, Family, Socket, Transport};
use crate::sys::socket_table::await_closed;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn family(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn member(ip: IpAddr, port: u16, transport: Transport) -> Socket {
    let socket = Socket::new(family(ip), transport).unwrap();
    socket.share_port().unwrap();
    socket.reuse_address().unwrap();
    socket.bind(&SocketAddr::new(ip, port).into()).unwrap();
    if transport == Transport::Stream {
        socket.listen(64).unwrap();
    }
    socket
}

fn port(socket: &Socket) -> u16 {
    let Address::Internet(address) = socket.local().unwrap() else { panic!("no port") };
    address.port()
}

fn pair(ip: IpAddr, transport: Transport) -> (Socket, Socket) {
    let one = member(ip, 0, transport);
    let other = member(ip, port(&one), transport);
    (one, other)
}

/// The socket is no more when this returns, and what waits in it has moved.
fn close(socket: Socket) {
    let inode = socket.inode().unwrap();
    drop(socket);
    await_closed(&[inode]);
}

fn targets(sockets: &[&Socket]) -> Targets {
    Targets::new(&sockets.iter().map(|socket| socket.as_fd()).collect::<Vec<_>>()).unwrap()
}

/// Connects to `port` of an address, of another port of the same address each time.
fn connect(ip: IpAddr, port: u16) -> Socket {
    connect_from(None, ip, port, Transport::Stream)
}

fn connect_from(source: Option<&Socket>, ip: IpAddr, port: u16, transport: Transport) -> Socket {
    let socket = match source {
        Some(source) => source.duplicate().unwrap(),
        None => Socket::new(family(ip), transport).unwrap(),
    };
    socket.connect(&SocketAddr::new(ip, port).into()).unwrap();
    socket
}

/// A socket that is bound to a free port of the address, which makes what it sends there a probe.
fn prober(ip: IpAddr, transport: Transport) -> (Probe, Socket) {
    let socket = Socket::new(family(ip), transport).unwrap();
    socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    (Probe { port: port(&socket) }, socket)
}

fn waiting(listener: &Socket) -> u32 {
    listener.queue().unwrap().waiting
}

fn serve(listener: &Socket) {
    let connection = accept_with(listener, SocketFlags::CLOEXEC).unwrap();
    write(&connection, b"x").unwrap();
}

fn is_served(client: &Socket) -> bool {
    read(client, &mut [0; 1]) == Ok(1)
}

#[test]
fn new_connections_follow_the_steering_and_waiting_ones_survive_the_end_of_their_listener() {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // A new network has the defaults of the kernel.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            crate::sys::namespace::loopback_up().unwrap();
            assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap().trim(), "0");
            [V4, V6].into_iter().for_each(replace_a_listener);
        });
        thread.join().unwrap();
    });
}

fn replace_a_listener(ip: IpAddr) {
    let old = member(ip, 0, Transport::Stream);
    let of_old = targets(&[&old]);
    steer(&old, &of_old, None).unwrap();
    let new = member(ip, port(&old), Transport::Stream);
    let mut clients: Vec<_> = (0..12).map(|_| connect(ip, port(&old))).collect();
    assert_eq!((waiting(&old), waiting(&new)), (12, 0), "a listener that joins gets nothing");
    let of_new = targets(&[&new]);
    steer(&new, &of_new, None).unwrap();
    clients.extend((0..12).map(|_| connect(ip, port(&old))));
    assert_eq!((waiting(&old), waiting(&new)), (12, 12));
    close(old);
    drop(of_old);
    assert_eq!(waiting(&new), 24);
    clients.iter().for_each(|_| serve(&new));
    assert!(clients.iter().all(is_served));
}

#[test]
fn several_sockets_of_an_instance_share_the_work() {
    let (one, two) = pair(V4, Transport::Stream);
    let other = member(V4, port(&one), Transport::Stream);
    steer(&one, &targets(&[&one, &two]), None).unwrap();
    let _clients: Vec<_> = (0..60).map(|_| connect(V4, port(&one))).collect();
    assert_eq!(waiting(&other), 0);
    assert_eq!(waiting(&one) + waiting(&two), 60);
    assert!(waiting(&one) > 0 && waiting(&two) > 0, "{} and {}", waiting(&one), waiting(&two));
}

#[test]
fn what_a_socket_that_is_gone_would_get_goes_to_the_others_of_its_instance() {
    let (one, two) = pair(V4, Transport::Stream);
    let three = member(V4, port(&one), Transport::Stream);
    let other = member(V4, port(&one), Transport::Stream);
    steer(&one, &targets(&[&one, &two, &three]), None).unwrap();
    let _before: Vec<_> = (0..15).map(|_| connect(V4, port(&one))).collect();
    close(one);
    assert_eq!((waiting(&other), waiting(&two) + waiting(&three)), (0, 15), "what waited in it");
    let _after: Vec<_> = (0..15).map(|_| connect(V4, port(&two))).collect();
    close(three);
    let _later: Vec<_> = (0..15).map(|_| connect(V4, port(&two))).collect();
    assert_eq!((waiting(&other), waiting(&two)), (0, 45));
    let port = port(&two);
    close(two);
    assert_eq!(waiting(&other), 45, "when all are gone");
    let _last = connect(V4, port);
}

#[test]
fn as_many_sockets_as_a_map_has_room_for_are_chosen_among() {
    let (one, two) = pair(V4, Transport::Stream);
    let targets = Targets { count: ROOM, ..targets(&[&one]) };
    steer(&one, &targets, None).unwrap();
    let _clients: Vec<_> = (0..60).map(|_| connect(V4, port(&one))).collect();
    assert_eq!((waiting(&one), waiting(&two)), (60, 0));
}

#[test]
fn a_socket_that_comes_later_gets_its_share() {
    let (one, two) = pair(V4, Transport::Stream);
    let mut targets = targets(&[&one]);
    steer(&one, &targets, None).unwrap();
    targets.add(two.as_fd()).unwrap();
    assert_eq!(targets.add(two.as_fd()).unwrap_err().kind(), Kind::Busy);
    let _before: Vec<_> = (0..10).map(|_| connect(V4, port(&one))).collect();
    assert_eq!((waiting(&one), waiting(&two)), (10, 0));
    steer(&one, &targets, None).unwrap();
    let _after: Vec<_> = (0..40).map(|_| connect(V4, port(&one))).collect();
    assert!(waiting(&one) > 10 && waiting(&two) > 0, "{} and {}", waiting(&one), waiting(&two));
    assert_eq!(Targets::try_from(targets.duplicate().unwrap()).unwrap().count, 2);
}

#[test]
fn a_probe_reaches_the_candidate_and_everybody_else_who_serves() {
    for ip in [V4, V6] {
        let (serving, candidate) = pair(ip, Transport::Stream);
        let (of_serving, of_candidate) = (targets(&[&serving]), targets(&[&candidate]));
        let (probe, source) = prober(ip, Transport::Stream);
        steer(&candidate, &of_serving, Some((probe, &of_candidate))).unwrap();
        let _clients: Vec<_> = (0..8).map(|_| connect(ip, port(&serving))).collect();
        assert_eq!((waiting(&serving), waiting(&candidate)), (8, 0));
        let _probe = connect_from(Some(&source), ip, port(&serving), Transport::Stream);
        assert_eq!((waiting(&serving), waiting(&candidate)), (8, 1));
        // The same sockets again, without the candidate.
        steer(&candidate, &of_serving, None).unwrap();
        let _client = connect(ip, port(&serving));
        assert_eq!((waiting(&serving), waiting(&candidate)), (9, 1));
    }
}

#[test]
fn the_port_of_a_probe_means_nothing_from_another_address() {
    let any = Ipv4Addr::UNSPECIFIED.into();
    let (serving, candidate) = pair(any, Transport::Stream);
    let (of_serving, of_candidate) = (targets(&[&serving]), targets(&[&candidate]));
    let (probe, source) = prober(Ipv4Addr::new(127, 0, 0, 2).into(), Transport::Stream);
    steer(&candidate, &of_serving, Some((probe, &of_candidate))).unwrap();
    let _client = connect_from(Some(&source), V4, port(&serving), Transport::Stream);
    assert_eq!((waiting(&serving), waiting(&candidate)), (1, 0));
}

#[test]
fn a_probe_of_either_version_reaches_a_candidate_that_takes_both() {
    let both = |port| {
        let socket = Socket::new(Family::V6, Transport::Stream).unwrap();
        socket.take_both_versions().unwrap();
        socket.share_port().unwrap();
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into()).unwrap();
        socket.listen(64).unwrap();
        socket
    };
    let serving = both(0);
    let candidate = both(port(&serving));
    let (of_serving, of_candidate) = (targets(&[&serving]), targets(&[&candidate]));
    for (ip, expected) in [(V4, 1), (V6, 2)] {
        let (probe, source) = prober(ip, Transport::Stream);
        steer(&serving, &of_serving, Some((probe, &of_candidate))).unwrap();
        let _probe = connect_from(Some(&source), ip, port(&serving), Transport::Stream);
        let _client = connect(ip, port(&serving));
        assert_eq!((waiting(&serving), waiting(&candidate)), (expected, expected), "{ip}");
    }
}

#[test]
fn a_probe_of_a_candidate_that_is_gone_is_refused() {
    let (serving, candidate) = pair(V4, Transport::Stream);
    let (of_serving, of_candidate) = (targets(&[&serving]), targets(&[&candidate]));
    let (probe, source) = prober(V4, Transport::Stream);
    steer(&serving, &of_serving, Some((probe, &of_candidate))).unwrap();
    close(candidate);
    let error = source.connect(&serving.local().unwrap()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ECONNREFUSED));
    let _client = connect(V4, port(&serving));
    assert_eq!(waiting(&serving), 1);
}

#[test]
fn datagrams_are_steered_and_probed_like_connections() {
    for ip in [V4, V6] {
        let (old, new) = pair(ip, Transport::Datagram);
        let (of_old, of_new) = (targets(&[&old]), targets(&[&new]));
        let (probe, source) = prober(ip, Transport::Datagram);
        steer(&old, &of_old, Some((probe, &of_new))).unwrap();
        let send = || write(connect_from(None, ip, port(&old), Transport::Datagram), b"x").unwrap();
        send();
        assert!(old.has_input().unwrap() && !new.has_input().unwrap());
        write(connect_from(Some(&source), ip, port(&old), Transport::Datagram), b"x").unwrap();
        assert!(new.has_input().unwrap());
        for socket in [&old, &new] {
            read(socket, &mut [0; 1]).unwrap();
        }
        steer(&new, &of_new, None).unwrap();
        send();
        assert!(!old.has_input().unwrap() && new.has_input().unwrap());
    }
}

#[test]
fn sockets_of_several_users_share_a_group_once_root_owns_them() {
    let root = member(V4, 0, Transport::Stream);
    let socket = as_nobody(|| Socket::new(Family::V4, Transport::Stream)).unwrap();
    socket.share_port().unwrap();
    assert_eq!(socket.bind(&root.local().unwrap()).unwrap_err().errno(), Some(libc::EADDRINUSE));
    socket.give_to_root().unwrap();
    socket.bind(&root.local().unwrap()).unwrap();
    socket.listen(8).unwrap();
    steer(&socket, &targets(&[&socket]), None).unwrap();
    let _client = connect(V4, port(&root));
    assert_eq!((waiting(&root), waiting(&socket)), (0, 1));
}

/// What a program makes that knows nothing of us.
fn ordinary(backlog: u32) -> Socket {
    let running = Socket::new(Family::V4, Transport::Stream).unwrap();
    running.reuse_address().unwrap();
    running.bind(&SocketAddr::new(V4, 0).into()).unwrap();
    running.listen(backlog).unwrap();
    running
}

#[test]
fn a_listener_that_never_shared_its_port_is_adopted_without_a_loss() {
    let running = ordinary(64);
    let mut clients: Vec<_> = (0..5).map(|_| connect(V4, port(&running))).collect();
    assert_eq!(Targets::new(&[running.as_fd()]).unwrap_err().kind(), Kind::State);
    let of_running = enlist(&running).unwrap();
    clients.extend((0..5).map(|_| connect(V4, port(&running))));
    assert_eq!(waiting(&running), 10);
    let new = member(V4, port(&running), Transport::Stream);
    clients.extend((0..5).map(|_| connect(V4, port(&running))));
    assert_eq!((waiting(&running), waiting(&new)), (15, 0));
    steer(&new, &targets(&[&new]), None).unwrap();
    clients.extend((0..5).map(|_| connect(V4, port(&running))));
    assert_eq!((waiting(&running), waiting(&new)), (15, 5));
    close(running);
    drop(of_running);
    assert_eq!(waiting(&new), 20);
}

#[test]
fn adoption_loses_no_connection_that_comes_meanwhile() {
    let running = ordinary(1024);
    let port = port(&running);
    let over = std::sync::atomic::AtomicBool::new(false);
    let clients = std::thread::scope(|scope| {
        let knocking = scope.spawn(|| {
            let mut clients = Vec::new();
            while clients.len() < 50 || (!over.load(std::sync::atomic::Ordering::Relaxed) && clients.len() < 900) {
                clients.push(connect(V4, port));
            }
            clients
        });
        let enlisted = enlist(&running);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        enlisted.unwrap();
        knocking.join().unwrap()
    });
    clients.iter().for_each(|_| serve(&running));
    assert!(clients.iter().all(is_served));
}

#[test]
fn connections_keep_the_address_of_a_listener_that_does_not_let_it_be_reused() {
    let running = Socket::new(Family::V4, Transport::Stream).unwrap();
    running.bind(&SocketAddr::new(V4, 0).into()).unwrap();
    running.listen(8).unwrap();
    let client = connect(V4, port(&running));
    let error = enlist(&running).unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    serve(&running);
    assert!(is_served(&client));
    let _later = connect(V4, port(&running));
    assert_eq!(waiting(&running), 1);
}

#[test]
fn a_socket_is_in_one_map_which_others_may_get() {
    let (one, other) = pair(V4, Transport::Stream);
    let first = targets(&[&one]);
    assert_eq!(Targets::new(&[one.as_fd()]).unwrap_err().kind(), Kind::Busy);
    let received = Targets::try_from(first.duplicate().unwrap()).unwrap();
    assert_eq!(received.count, 1);
    drop(first);
    steer(&other, &received, None).unwrap();
    let _clients = [connect(V4, port(&one)), connect(V4, port(&one))];
    assert_eq!((waiting(&one), waiting(&other)), (2, 0));
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert_eq!(Targets::try_from(file).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(Targets::new(&[]).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn the_sockets_of_the_dead_get_a_map_of_their_own() {
    let one = member(V4, 0, Transport::Stream);
    let first = targets(&[&one]);
    steer(&one, &first, None).unwrap();
    drop(first);
    assert_eq!(Targets::new(&[one.as_fd()]).unwrap_err().kind(), Kind::Busy, "the program has it");
    let next = Targets::take_over(&[one.as_fd()]).unwrap();
    steer(&one, &next, None).unwrap();
    let other = member(V4, port(&one), Transport::Stream);
    let _clients: Vec<_> = (0..8).map(|_| connect(V4, port(&one))).collect();
    assert_eq!((waiting(&one), waiting(&other)), (8, 0));
    Targets::take_over(&[other.as_fd()]).unwrap();
}

#[test]
fn an_index_steers_where_programs_are_refused() {
    let (old, new) = pair(V4, Transport::Stream);
    steer_to_index(&old, 0).unwrap();
    let _first = [connect(V4, port(&old)), connect(V4, port(&old))];
    steer_to_index(&new, 1).unwrap();
    let _then = connect(V4, port(&old));
    assert_eq!((waiting(&old), waiting(&new)), (2, 1));
    let alone = Socket::new(Family::V4, Transport::Stream).unwrap();
    assert_eq!(steer_to_index(&alone, 0).unwrap_err().errno(), Some(libc::EINVAL));
}

#[test]
fn who_may_load_no_programs_is_told_so_by_kind() {
    let (running, first) = (ordinary(8), member(V4, 0, Transport::Stream));
    as_nobody(|| {
        assert_eq!(Targets::new(&[first.as_fd()]).unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(enlist(&running).unwrap_err().kind(), Kind::Unsupported);
        steer_to_index(&first, 0).unwrap();
    });
    assert!(!running.shares_port().unwrap());
}

/// Runs in a thread that is another user's: to the kernel, users are those of threads.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn an_unmodified_program_is_adopted_by_its_process_id() {
    let script = "import socket,time\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\ns.bind(('127.0.0.1',0))\ns.listen(8)\n\
                  print(s.fileno(),flush=True)\ntime.sleep(60)";
    let mut python = Command::new("python3").args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(python.stdout.as_mut().unwrap()), &mut line).unwrap();
    let process = crate::sys::process::Process::open(i32::try_from(python.id()).unwrap()).unwrap().unwrap();
    let running = Socket::from(process.duplicate_descriptor(line.trim().parse().unwrap()).unwrap());
    let _waiting = [connect(V4, port(&running)), connect(V4, port(&running))];
    let of_running = enlist(&running).unwrap();
    let new = member(V4, port(&running), Transport::Stream);
    steer(&new, &targets(&[&new]), None).unwrap();
    python.kill().unwrap();
    python.wait().unwrap();
    assert_eq!((waiting(&running), waiting(&new)), (2, 0));
    close(running);
    drop(of_running);
    assert_eq!(waiting(&new), 2);
}
