use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::service::address::Listen;
use crate::service::socket::{Company, Listener};
use crate::sys::socket_table::await_closed;

/// The listeners of one instance, in their order.
fn instance(addresses: &[Address], company: Company) -> Vec<Listener> {
    let listen = |address: &Address| Listen { name: "web".parse().unwrap(), address: address.clone() };
    addresses.iter().map(|address| Listener::make(&listen(address), company).unwrap()).collect()
}

fn first(count: usize) -> (Vec<Address>, Vec<Listener>) {
    let listeners = instance(&vec![Address::Auto; count], Company::Alone);
    (listeners.iter().map(|listener| listener.listen().address.clone()).collect(), listeners)
}

fn steering(listeners: &[Listener]) -> Steering {
    Steering::new(listeners.iter().map(|listener| (&listener.listen().address, listener.socket()))).unwrap()
}

/// As it comes from another process.
fn serving(steering: &Steering) -> Serving {
    let (addresses, maps) =
        steering.targets().map(|(address, map)| (address.clone(), map.try_clone_to_owned().unwrap())).unzip();
    Serving::new(addresses, maps).unwrap()
}

fn connect(address: &Address) -> std::net::TcpStream {
    let Address::Tcp(place) = address else { panic!("{address}") };
    std::net::TcpStream::connect(place).unwrap()
}

/// The listeners are no more when this returns, and what waits in them has moved.
fn close(listeners: Vec<Listener>, steering: Steering) {
    let inodes: Vec<u64> = listeners.iter().map(|listener| listener.socket().inode().unwrap()).collect();
    drop((listeners, steering));
    await_closed(&inodes);
}

fn waiting(listeners: &[Listener]) -> Vec<u32> {
    listeners.iter().map(|listener| listener.socket().queue().unwrap().waiting).collect()
}

/// Connects as a prober does; whether somebody took it.
fn probe(steering: &Steering, serving: &Serving, address: &Address) -> (Reach, bool) {
    let prober = Prober::new(address).unwrap();
    let reach = steering.probe(serving, &prober).unwrap();
    let Ok(socket) = prober.connect() else { return (reach, false) };
    poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&Timespec { tv_sec: 60, tv_nsec: 0 })).unwrap();
    (reach, rustix::net::sockopt::socket_error(&socket).unwrap().is_ok())
}

#[test]
fn every_port_of_a_service_is_steered() {
    let (addresses, old) = first(3);
    let old_steering = steering(&old);
    old_steering.serve().unwrap();
    let new = instance(&addresses, Company::Beside);
    let before: Vec<_> = addresses.iter().map(connect).collect();
    assert_eq!((waiting(&old), waiting(&new)), (vec![1; 3], vec![0; 3]));
    steering(&new).serve().unwrap();
    let after: Vec<_> = addresses.iter().map(connect).collect();
    assert_eq!((waiting(&old), waiting(&new)), (vec![1; 3], vec![1; 3]));
    close(old, old_steering);
    assert_eq!(waiting(&new), vec![2; 3]);
    drop((before, after));
}

#[test]
fn a_candidate_is_probed_while_another_serves() {
    let (addresses, old) = first(2);
    let old_steering = steering(&old);
    old_steering.serve().unwrap();
    let new = instance(&addresses, Company::Beside);
    let (new_steering, serving) = (steering(&new), serving(&old_steering));
    for count in 1..=3 {
        assert_eq!(probe(&new_steering, &serving, &addresses[1]), (Reach::Probes, true));
        let _client = connect(&addresses[1]);
        assert_eq!((waiting(&old), waiting(&new)), (vec![0, count], vec![0, count]));
    }
    new_steering.end_probing(&serving).unwrap();
    let _client = connect(&addresses[1]);
    assert_eq!((waiting(&old), waiting(&new)), (vec![0, 4], vec![0, 3]));
    // It failed, and is gone: nothing of it is left in the way.
    close(new, new_steering);
    let next = instance(&addresses, Company::Beside);
    let next_steering = steering(&next);
    assert_eq!(probe(&next_steering, &serving, &addresses[0]), (Reach::Probes, true));
    next_steering.serve().unwrap();
    let _client = connect(&addresses[0]);
    assert_eq!((waiting(&old)[0], waiting(&next)[0]), (0, 2));
}

#[test]
fn the_first_instance_needs_no_probe_of_a_special_sort() {
    let (addresses, only) = first(1);
    let steering = steering(&only);
    let nobody = Serving::new(Vec::new(), Vec::new()).unwrap();
    assert_eq!(probe(&steering, &nobody, &addresses[0]), (Reach::Nothing, true));
    assert_eq!(waiting(&only), [1]);
    assert_eq!(Prober::new(&"udp://127.0.0.1:9".parse().unwrap()).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(Serving::new(addresses, Vec::new()).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn the_next_instance_goes_on_with_the_sockets_of_a_dead_one() {
    let (addresses, dead) = first(1);
    let of_dead = steering(&dead);
    of_dead.serve().unwrap();
    let client = connect(&addresses[0]);
    let sockets: Vec<_> = dead.iter().map(|listener| listener.socket().duplicate().unwrap()).collect();
    drop((dead, of_dead));
    let heirs: Vec<_> = sockets
        .into_iter()
        .zip(&addresses)
        .map(|(socket, address)| {
            Listener::inherit(&Listen { name: "web".parse().unwrap(), address: address.clone() }, socket)
        })
        .collect::<Result<_>>()
        .unwrap();
    let of_heirs = steering(&heirs);
    of_heirs.serve().unwrap();
    assert_eq!(waiting(&heirs), [1]);
    let next = instance(&addresses, Company::Beside);
    let _client = (client, connect(&addresses[0]));
    assert_eq!((waiting(&heirs), waiting(&next)), (vec![2], vec![0]));
    assert_eq!(probe(&steering(&next), &serving(&of_heirs), &addresses[0]), (Reach::Probes, true));
}

#[test]
fn several_sockets_of_a_program_share_one_port() {
    let (addresses, old) = first(1);
    let old_steering = steering(&old);
    old_steering.serve().unwrap();
    let new: Vec<_> = (0..3).flat_map(|_| instance(&addresses, Company::Beside)).collect();
    let mut new_steering = steering(&new[..2]);
    new_steering.serve().unwrap();
    let _early: Vec<_> = (0..30).map(|_| connect(&addresses[0])).collect();
    assert_eq!((waiting(&old)[0], waiting(&new)[2]), (0, 0));
    new_steering.add(&addresses[0], new[2].socket()).unwrap();
    new_steering.serve().unwrap();
    let _late: Vec<_> = (0..60).map(|_| connect(&addresses[0])).collect();
    assert_eq!(waiting(&old), [0]);
    assert!(waiting(&new).iter().all(|waiting| *waiting > 0), "{:?}", waiting(&new));
}

#[test]
fn datagrams_follow_and_unix_sockets_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let addresses: Vec<Address> =
        [format!("udp://127.0.0.1:{port}"), format!("unix:{}", directory.path().join("s").display())]
            .map(|text| text.parse().unwrap())
            .to_vec();
    let old = instance(&addresses, Company::Alone);
    let old_steering = steering(&old);
    old_steering.serve().unwrap();
    assert_eq!(old_steering.targets().count(), 1);
    let new = instance(&addresses, Company::Beside);
    let send = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", ("127.0.0.1", port)).unwrap();
    send();
    assert!(old[0].socket().has_input().unwrap() && !new[0].socket().has_input().unwrap());
    steering(&new).serve().unwrap();
    send();
    assert!(new[0].socket().has_input().unwrap());
}

#[test]
fn who_may_load_no_programs_steers_by_order() {
    std::thread::scope(|scope| {
        let ordinary = scope.spawn(|| {
            rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).unwrap();
            let (addresses, mut old) = first(1);
            let mut old_steering = steering(&old);
            old_steering.serve().unwrap();
            assert_eq!(old_steering.targets().count(), 0);
            // Longer than the chain of sockets that could be there at once.
            for _ in 0..4 {
                let new = instance(&addresses, Company::Beside);
                let new_steering = steering(&new);
                let _before = connect(&addresses[0]);
                assert_eq!((waiting(&old), waiting(&new)), (vec![1], vec![0]));
                assert_eq!(probe(&new_steering, &serving(&old_steering), &addresses[0]).0, Reach::Nothing);
                while waiting(&old) != [0] {
                    rustix::net::accept(old[0].socket()).unwrap();
                }
                new_steering.serve().unwrap();
                let client = connect(&addresses[0]);
                assert_eq!((waiting(&old), waiting(&new)), (vec![0], vec![1]));
                drop(client);
                rustix::net::accept(new[0].socket()).unwrap();
                close(std::mem::replace(&mut old, new), std::mem::replace(&mut old_steering, new_steering));
                old_steering.renew().unwrap();
            }
        });
        ordinary.join().unwrap();
    });
}

#[test]
fn a_datagram_socket_that_never_shared_its_port_stays_single() {
    let socket = Socket::from(OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()));
    let socket::Address::Internet(place) = socket.local().unwrap() else { panic!("no port") };
    let steering = Steering::new([(&Address::Udp(place), &socket)]).unwrap();
    steering.serve().unwrap();
    assert_eq!(steering.targets().count(), 0);
}

#[test]
fn a_listener_that_never_shared_its_port_is_taken_along() {
    let socket = Socket::from(OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap()));
    let socket::Address::Internet(place) = socket.local().unwrap() else { panic!("no port") };
    let address = Address::Tcp(place);
    let old = Steering::new([(&address, &socket)]).unwrap();
    let new = instance(std::slice::from_ref(&address), Company::Beside);
    assert_eq!(probe(&steering(&new), &serving(&old), &address), (Reach::Probes, true));
    let _client = connect(&address);
    assert_eq!((socket.queue().unwrap().waiting, waiting(&new)), (1, vec![1]));
}
