use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::ids::Name;

fn listen(addresses: &[&str]) -> Vec<Listen> {
    let name: Name = "web".parse().unwrap();
    addresses.iter().map(|text| Listen::parse(text, &name).unwrap()).collect()
}

fn bind(protocol: Protocol, address: &str) -> Request {
    let address: SocketAddr = address.parse().unwrap();
    Request {
        call: Call::Bind,
        network: Network::Shared,
        protocol,
        wanted: Wanted::Internet(address),
        versions: if address.is_ipv6() { Versions::Both } else { Versions::One },
        reuse: Reuse::default(),
        forbidden_below: 0,
    }
}

fn file(call: Call, kind: UnixKind) -> Request {
    Request { call, wanted: Wanted::Declared(0), ..bind(Protocol::Unix(kind), "0.0.0.0:1") }
}

fn matching(listen: &[usize]) -> Match {
    Match { listen: listen.to_vec(), note: None }
}

fn note(verdict: Verdict) -> String {
    match verdict {
        Verdict::ContinueWithNote(note) | Verdict::Take(Match { note: Some(note), .. }) => note,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_declared_port_is_taken_where_the_network_is_shared() {
    let declared = listen(&["udp://0.0.0.0:80", "tcp://127.0.0.1:80", "tcp://0.0.0.0:81"]);
    assert_eq!(decide(&bind(Protocol::Tcp, "127.0.0.1:80"), &declared, &[]), Verdict::Take(matching(&[1])));
    assert_eq!(decide(&bind(Protocol::Tcp, "0.0.0.0:80"), &declared, &[]), Verdict::Take(matching(&[1])));
    assert_eq!(decide(&bind(Protocol::Tcp, "127.0.0.9:81"), &declared, &[]), Verdict::Take(matching(&[2])));
    assert_eq!(decide(&bind(Protocol::Udp, "127.0.0.1:80"), &declared, &[]), Verdict::Take(matching(&[0])));
    let listens = Request { call: Call::Listen, ..bind(Protocol::Tcp, "127.0.0.1:80") };
    assert_eq!(decide(&listens, &declared, &[]), Verdict::Take(matching(&[1])));
}

#[test]
fn one_socket_of_both_versions_serves_both_declarations() {
    let declared = listen(&["tcp://0.0.0.0:80", "tcp://[::]:80"]);
    assert_eq!(decide(&bind(Protocol::Tcp, "[::]:80"), &declared, &[]), Verdict::Take(matching(&[0, 1])));
    let only_6 = Request { versions: Versions::One, ..bind(Protocol::Tcp, "[::]:80") };
    assert_eq!(decide(&only_6, &declared, &[]), Verdict::Take(matching(&[1])));
    assert_eq!(decide(&bind(Protocol::Tcp, "0.0.0.0:80"), &declared, &[]), Verdict::Take(matching(&[0])));
}

#[test]
fn an_address_of_version_4_in_the_form_of_version_6_is_one_of_version_4() {
    let declared = listen(&["tcp://127.0.0.1:80"]);
    let mapped = bind(Protocol::Tcp, "[::ffff:127.0.0.1]:80");
    assert_eq!(decide(&mapped, &declared, &[]), Verdict::Take(matching(&[0])));
    let other = bind(Protocol::Tcp, "[::ffff:127.0.0.2]:80");
    assert!(note(decide(&other, &declared, &[])).contains("not declared"));
}

#[test]
fn the_other_version_of_a_declared_port_is_handed_over_too() {
    let declared = listen(&["tcp://0.0.0.0:80"]);
    let only_6 = Request { versions: Versions::One, ..bind(Protocol::Tcp, "[::]:80") };
    let Verdict::Take(found) = decide(&only_6, &declared, &[]) else { panic!() };
    assert!(found.listen.is_empty() && found.note.unwrap().contains("tcp://[::]:80"));
    let declared = listen(&["tcp://[::]:80"]);
    assert!(note(decide(&bind(Protocol::Tcp, "0.0.0.0:80"), &declared, &[])).contains("tcp://[::]:80 was declared"));
    // In a network of its own it is in nobody's way.
    let private = Request { network: Network::Private, ..bind(Protocol::Tcp, "0.0.0.0:80") };
    assert!(note(decide(&private, &declared, &[])).contains("not declared"));
}

#[test]
fn a_program_in_a_network_of_its_own_gets_a_socket_of_the_hosts() {
    let declared = listen(&["tcp://127.0.0.1:80", "udp://127.0.0.1:80"]);
    let private = |protocol, call| Request { network: Network::Private, call, ..bind(protocol, "0.0.0.0:80") };
    assert_eq!(decide(&private(Protocol::Tcp, Call::Bind), &declared, &[]), Verdict::Await);
    assert_eq!(decide(&private(Protocol::Tcp, Call::Listen), &declared, &[]), Verdict::Replace(matching(&[0])));
    assert_eq!(decide(&private(Protocol::Udp, Call::Bind), &declared, &[]), Verdict::Replace(matching(&[1])));
}

#[test]
fn a_socket_of_several_paths_is_replaced() {
    let declared = listen(&["tcp://0.0.0.0:80"]);
    let shared = bind(Protocol::MultipathTcp, "[::]:80");
    assert_eq!(decide(&shared, &declared, &[]), Verdict::Replace(matching(&[0])));
    let private = Request { network: Network::Private, ..shared };
    assert_eq!(decide(&private, &declared, &[]), Verdict::Await);
    assert_eq!(decide(&Request { call: Call::Listen, ..private }, &declared, &[]), Verdict::Replace(matching(&[0])));
}

#[test]
fn a_declared_file_is_the_containers_until_it_listens() {
    let declared = listen(&["unix:/run/x"]);
    assert_eq!(decide(&file(Call::Bind, UnixKind::Stream), &declared, &[]), Verdict::Await);
    assert_eq!(decide(&file(Call::Listen, UnixKind::Stream), &declared, &[]), Verdict::Replace(matching(&[0])));
    let wrong = decide(&file(Call::Bind, UnixKind::Seqpacket), &declared, &[]);
    assert!(note(wrong).contains("unix-seqpacket:/run/x, and unix:/run/x was declared"));
    let declared = listen(&["unix-dgram:/run/x"]);
    assert_eq!(decide(&file(Call::Bind, UnixKind::Datagram), &declared, &[]), Verdict::Replace(matching(&[0])));
    assert_eq!(decide(&file(Call::Listen, UnixKind::Datagram), &declared, &[]), Verdict::Continue);
}

#[test]
fn a_port_that_nobody_declared_is_bound_and_told_of() {
    let declared = listen(&["tcp://0.0.0.0:80"]);
    for request in [bind(Protocol::Tcp, "0.0.0.0:81"), bind(Protocol::Udp, "0.0.0.0:80")] {
        assert!(note(decide(&request, &declared, &[])).contains("was not declared"));
        let listens = Request { call: Call::Listen, ..request };
        assert_eq!(decide(&listens, &declared, &[]), Verdict::Continue, "told of once");
    }
}

#[test]
fn a_privileged_port_stays_one() {
    let declared = listen(&["tcp://0.0.0.0:80"]);
    let request = Request { forbidden_below: 1024, ..bind(Protocol::Tcp, "0.0.0.0:80") };
    assert_eq!(decide(&request, &declared, &[]), Verdict::Refuse(Refusal::Forbidden));
    let request = Request { forbidden_below: 80, ..request };
    assert_eq!(decide(&request, &declared, &[]), Verdict::Take(matching(&[0])));
}

#[test]
fn a_program_that_binds_twice_is_told_what_the_kernel_would_tell() {
    let declared = listen(&["tcp://0.0.0.0:80", "udp://0.0.0.0:80"]);
    let held = |address: &str, reuse, listens| Held {
        protocol: Protocol::Tcp,
        address: address.parse().unwrap(),
        versions: Versions::One,
        reuse,
        listens,
    };
    let port = Reuse { port: true, address: false };
    let address = Reuse { port: false, address: true };
    let again = |reuse| Request { reuse, ..bind(Protocol::Tcp, "0.0.0.0:80") };
    let in_use = Verdict::Refuse(Refusal::InUse);
    let taken = Verdict::Take(matching(&[0]));
    for (request, held, expected) in [
        (again(Reuse::default()), held("0.0.0.0:80", Reuse::default(), true), &in_use),
        (again(port), held("0.0.0.0:80", Reuse::default(), true), &in_use),
        (again(port), held("0.0.0.0:80", port, true), &taken),
        (again(address), held("0.0.0.0:80", address, true), &in_use),
        (again(address), held("0.0.0.0:80", address, false), &taken),
        (again(Reuse::default()), held("127.0.0.1:80", Reuse::default(), true), &in_use),
        (again(Reuse::default()), held("[::]:80", Reuse::default(), true), &taken),
    ] {
        assert_eq!(decide(&request, &declared, &[held]), *expected, "{request:?} beside {held:?}");
    }
    let both = Held { versions: Versions::Both, ..held("[::]:80", Reuse::default(), true) };
    assert_eq!(decide(&again(Reuse::default()), &declared, &[both]), in_use);
    let datagrams = bind(Protocol::Udp, "0.0.0.0:80");
    assert_eq!(decide(&datagrams, &declared, &[both]), Verdict::Take(matching(&[1])));
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        Just(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        Just(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Just(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        Just(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        any::<[u8; 4]>().prop_map(|ip| IpAddr::V6(Ipv4Addr::from(ip).to_ipv6_mapped())),
    ];
    (ip, prop_oneof![0..4_u16, any::<u16>()]).prop_map(SocketAddr::from)
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::MultipathTcp),
        Just(Protocol::Udp),
        Just(Protocol::Other),
        Just(Protocol::Unix(UnixKind::Stream)),
        Just(Protocol::Unix(UnixKind::Seqpacket)),
        Just(Protocol::Unix(UnixKind::Datagram)),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let wanted = prop_oneof![
        any_address().prop_map(Wanted::Internet),
        (0..5_usize).prop_map(Wanted::Declared),
        Just(Wanted::Elsewhere)
    ];
    let call = prop_oneof![Just(Call::Bind), Just(Call::Listen)];
    let network = prop_oneof![Just(Network::Shared), Just(Network::Private)];
    let reuse = any::<(bool, bool)>().prop_map(|(port, address)| Reuse { port, address });
    (call, network, any_protocol(), wanted, any::<bool>(), reuse, prop_oneof![Just(0), Just(1024)]).prop_map(
        |(call, network, protocol, wanted, both, reuse, forbidden_below)| {
            let versions = if both { Versions::Both } else { Versions::One };
            Request { call, network, protocol, wanted, versions, reuse, forbidden_below }
        },
    )
}

fn any_declared() -> impl Strategy<Value = Vec<Listen>> {
    let address = prop_oneof![
        any_address().prop_map(Address::Tcp),
        any_address().prop_map(Address::Udp),
        Just(Address::Unix(UnixKind::Stream, "/run/x".into())),
        Just(Address::Unix(UnixKind::Datagram, "/run/y".into())),
    ];
    let name: Name = "web".parse().unwrap();
    let listen = address.prop_map(move |address| Listen { name: name.clone(), address });
    prop::collection::vec(listen, 0..5)
}

proptest! {
    /// What we do for a program, and with our rights, is for declared addresses of the same protocol and port alone.
    #[test]
    fn only_what_was_declared_is_touched(request in any_request(), declared in any_declared()) {
        let port_is_declared = |wanted: SocketAddr| declared.iter().any(|listen| match &listen.address {
            Address::Tcp(address) => {
                address.port() == wanted.port() && matches!(request.protocol, Protocol::Tcp | Protocol::MultipathTcp)
            }
            Address::Udp(address) => address.port() == wanted.port() && request.protocol == Protocol::Udp,
            Address::Unix(..) | Address::Auto => false,
        });
        let declared_place = match request.wanted {
            Wanted::Internet(wanted) => port_is_declared(wanted) && wanted.port() != 0,
            Wanted::Declared(index) => index < declared.len() && matches!(request.protocol, Protocol::Unix(_)),
            Wanted::Elsewhere => false,
        };
        let verdict = decide(&request, &declared, &[]);
        match &verdict {
            Verdict::Continue | Verdict::ContinueWithNote(_) => {}
            Verdict::Await | Verdict::Take(_) | Verdict::Replace(_) | Verdict::Refuse(_) => {
                prop_assert!(declared_place, "{verdict:?}");
            }
        }
        if let Verdict::Take(found) | Verdict::Replace(found) = &verdict {
            prop_assert!(found.listen.iter().all(|index| *index < declared.len()));
            prop_assert!(!found.listen.is_empty() || found.note.is_some());
        }
        if let (Verdict::Take(_), Network::Private) = (&verdict, request.network) {
            prop_assert!(false, "a socket of another network was taken");
        }
    }

    /// The same port of the same protocol is never left to the kernel alone where another instance may be.
    #[test]
    fn the_declared_address_itself_is_always_handed_over(address in any_address(), udp in any::<bool>()) {
        prop_assume!(address.port() != 0);
        let (place, protocol) = if udp { (Address::Udp(address), Protocol::Udp) } else { (Address::Tcp(address), Protocol::Tcp) };
        let declared = vec![Listen { name: "web".parse().unwrap(), address: place }];
        let request = Request { wanted: Wanted::Internet(address), ..bind(protocol, "0.0.0.0:1") };
        prop_assert_eq!(decide(&request, &declared, &[]), Verdict::Take(matching(&[0])));
    }
}
