//! Many services, and many changes.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;
use regen::control::client::Client;
use serde_json::{Value, json};

use crate::harness::World;

/// How many services a machine may well have.
const MANY: usize = 1000;
/// How many callers add them.
const CALLERS: usize = 8;

/// Does something with each number, by several callers at once.
fn with_callers(world: &World, work: impl Fn(&mut Client, usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let mut client = Client::connect(&world.root()).unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= MANY {
                        return;
                    }
                    work(&mut client, number);
                }
            });
        }
    });
}

#[test]
#[allow(clippy::print_stdout, reason = "the times are told, and kept to itself by a test that passes")]
fn a_thousand_services_come_up_are_listed_and_outlive_the_daemon() {
    let world = World::new("svc-thousand");
    let mut daemon = world.daemon();
    let name = |number: usize| world.id(&format!("s{number}"));
    let path = |number: usize| world.base().join(format!("{number}.sock"));
    let begun = Instant::now();
    with_callers(&world, |client, number| {
        let settings = json!({"source": {"rootfs": world.rootfs()}, "command": ["sleep", "100000"]});
        let listen = json!([{"address": format!("unix:{}", path(number).display())}]);
        let service = json!({"name": name(number), "version": "1.0.0", "listen": listen, "settings": settings});
        client.call::<Value>("run.regen.Service.Add", &service).unwrap();
    });
    println!("{MANY} services were added in {:?}", begun.elapsed());
    let list = |what: &str| {
        let begun = Instant::now();
        let list = daemon.list();
        println!("{what} they were listed in {:?}", begun.elapsed());
        assert_eq!(list.len(), MANY);
        assert!(list.iter().all(|one| one["state"] == "serving"), "{what}");
    };
    list("then");
    let resident = daemon.number("VmRSS");
    println!("{resident} KiB are resident");
    // With what the threads had that added them.
    assert!(resident < 48 << 10, "{resident} KiB are resident");
    daemon.end(Signal::SIGKILL);
    let begun = Instant::now();
    daemon.start();
    println!("the next daemon answered after {:?}", begun.elapsed());
    assert_eq!(daemon.list().iter().filter(|one| one["state"] == "serving").count(), MANY);
    let begun = Instant::now();
    with_callers(&world, |client, number| {
        client.call::<Value>("run.regen.Service.Remove", &json!({"name": name(number), "force": true})).unwrap();
    });
    println!("they were removed in {:?}", begun.elapsed());
    assert!(daemon.list().is_empty());
    assert!(UnixStream::connect(path(0)).is_err());
}
