use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::*;

fn loopback(family: Family) -> Address {
    match family {
        Family::V4 => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(),
        Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into(),
        Family::Unix => Address::Unnamed,
    }
}

/// A socket on a free port.
fn bound(family: Family, transport: Transport) -> Socket {
    let socket = Socket::new(family, transport).unwrap();
    socket.bind(&loopback(family)).unwrap();
    socket
}

fn connected(to: &Socket) -> Socket {
    let socket = Socket::new(to.family().unwrap().unwrap(), to.transport().unwrap().unwrap()).unwrap();
    socket.connect(&to.local().unwrap()).unwrap();
    socket
}

#[test]
fn a_socket_tells_what_it_is() {
    for (family, transport, protocol) in [
        (Family::V4, Transport::Stream, 6),
        (Family::V6, Transport::Datagram, 17),
        (Family::Unix, Transport::SeqPacket, 0),
        (Family::Unix, Transport::Stream, 0),
    ] {
        let socket = Socket::new(family, transport).unwrap();
        assert_eq!((socket.family().unwrap(), socket.transport().unwrap()), (Some(family), Some(transport)));
        assert_eq!(socket.protocol().unwrap(), protocol);
        assert!(!socket.is_listening().unwrap() && !socket.shares_port().unwrap());
    }
    let file = Socket::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    assert_eq!(file.family().unwrap_err().errno(), Some(libc::ENOTSOCK));
}

#[test]
fn a_listener_counts_the_connections_that_wait() {
    for family in [Family::V4, Family::V6] {
        let listener = bound(family, Transport::Stream);
        assert_eq!(listener.queue().unwrap_err().kind(), Kind::State);
        listener.listen(7).unwrap();
        assert!(listener.is_listening().unwrap());
        assert_eq!(listener.queue().unwrap(), Queue { waiting: 0, backlog: 7 });
        assert!(!listener.has_input().unwrap());
        let _waiting = [connected(&listener), connected(&listener)];
        assert_eq!(listener.queue().unwrap(), Queue { waiting: 2, backlog: 7 });
        assert!(listener.has_input().unwrap());
        listener.listen(9).unwrap();
        assert_eq!(listener.duplicate().unwrap().queue().unwrap(), Queue { waiting: 2, backlog: 9 });
    }
}

#[test]
fn a_datagram_socket_tells_what_was_not_read() {
    let socket = bound(Family::V4, Transport::Datagram);
    assert_eq!((socket.received_memory().unwrap(), socket.has_input().unwrap()), (0, false));
    let sender = connected(&socket);
    rustix::io::write(&sender, b"").unwrap();
    assert!(socket.received_memory().unwrap() > 0, "a message without bytes");
    assert!(socket.has_input().unwrap());
    rustix::io::read(&socket, &mut [0; 8]).unwrap();
    assert_eq!((socket.received_memory().unwrap(), socket.has_input().unwrap()), (0, false));
}

#[test]
fn unix_addresses_are_read_as_they_were_bound() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("regen-test-{}", std::process::id()).into_bytes();
    let addresses = [Address::Path(directory.path().join("s")), Address::Abstract(name), Address::Unnamed];
    for (address, unnamed) in addresses.into_iter().zip([false, false, true]) {
        let socket = Socket::new(Family::Unix, Transport::Stream).unwrap();
        if !unnamed {
            socket.bind(&address).unwrap();
        }
        assert_eq!(socket.local().unwrap(), address);
    }
    let long = Address::Path(directory.path().join("x".repeat(100)));
    let error = Socket::new(Family::Unix, Transport::Stream).unwrap().bind(&long).unwrap_err();
    assert!(error.to_string().contains("at most 107"), "{error}");
}

#[test]
fn a_listener_of_version_6_leaves_version_4_to_others() {
    let of_6 = Socket::new(Family::V6, Transport::Stream).unwrap();
    of_6.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    of_6.listen(1).unwrap();
    let Address::Internet(address) = of_6.local().unwrap() else { panic!("no address") };
    assert!(!of_6.takes_both_versions().unwrap());
    let of_4 = Socket::new(Family::V4, Transport::Stream).unwrap();
    of_4.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())).into()).unwrap();
    of_4.listen(1).unwrap();
    let both = Socket::new(Family::V6, Transport::Stream).unwrap();
    both.take_both_versions().unwrap();
    assert!(both.takes_both_versions().unwrap());
}

#[test]
fn errors_of_bind_keep_their_number() {
    let holder = bound(Family::V4, Transport::Stream);
    holder.listen(1).unwrap();
    let error = Socket::new(Family::V4, Transport::Stream).unwrap().bind(&holder.local().unwrap()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EADDRINUSE));
    assert!(error.to_string().starts_with(&format!("bind a socket to {}", holder.local().unwrap())), "{error}");
}

#[test]
fn the_options_of_a_program_are_copied() {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16),
        (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
        (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
        (libc::SOL_SOCKET, libc::SO_RCVBUF, 40_000),
        (libc::SOL_SOCKET, libc::SO_SNDBUF, 1 << 22),
        (libc::SOL_SOCKET, libc::SO_REUSEPORT, 1),
    ];
    let (from, to) = (bound(Family::V4, Transport::Stream), bound(Family::V4, Transport::Stream));
    let fresh = Socket::new(Family::V4, Transport::Stream).unwrap();
    for (level, name, value) in options {
        option::set(from.as_fd(), level, name, value).unwrap();
    }
    from.set_nonblocking().unwrap();
    copy_options(&from, &to, Rights::Network).unwrap();
    for (level, name, _) in options.iter().take(8).copied() {
        let read = |socket: &Socket| option::get::<i32>(socket.as_fd(), level, name).unwrap();
        assert_eq!(read(&to), read(&from), "{level} {name}");
        assert_ne!(read(&to), read(&fresh), "{level} {name}");
    }
    assert!(!to.shares_port().unwrap());
    assert!(fcntl_getfl(&to).unwrap().contains(OFlags::NONBLOCK));
    copy_options(&fresh, &to, Rights::None).unwrap();
    assert!(!fcntl_getfl(&to).unwrap().contains(OFlags::NONBLOCK));
    for family in [Family::V6, Family::Unix] {
        for transport in [Transport::Stream, Transport::Datagram] {
            let socket = || Socket::new(family, transport).unwrap();
            copy_options(&socket(), &socket(), Rights::Network).unwrap();
        }
    }
}

#[test]
fn what_a_program_may_set_in_its_own_network_alone_is_not_copied() {
    for (family, transparent) in [
        (Family::V4, (libc::IPPROTO_IP, libc::IP_TRANSPARENT)),
        (Family::V6, (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)),
    ] {
        let socket = || Socket::new(family, Transport::Datagram).unwrap();
        let from = socket();
        let theirs = [(libc::SOL_SOCKET, libc::SO_MARK), (libc::SOL_SOCKET, libc::SO_PRIORITY), transparent];
        for (level, name) in theirs.into_iter().chain([(libc::SOL_SOCKET, libc::SO_BROADCAST)]) {
            option::set(from.as_fd(), level, name, 1).unwrap();
        }
        let read = |socket: &Socket, (level, name)| option::get::<i32>(socket.as_fd(), level, name).unwrap();
        for (rights, expected) in [(Rights::None, 0), (Rights::Network, 1)] {
            let to = socket();
            copy_options(&from, &to, rights).unwrap();
            assert_eq!(theirs.map(|option| read(&to, option)), [expected; 3], "{family:?}");
            assert_eq!(read(&to, (libc::SOL_SOCKET, libc::SO_BROADCAST)), 1);
        }
    }
}
