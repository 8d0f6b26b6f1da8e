//! What the daemon's end and return mean to services: nothing.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::json;

use super::life::{greeting, load};
use crate::harness::{World, eventually};

#[test]
fn a_daemon_that_ends_or_is_killed_takes_nothing_along() {
    let world = World::new("svc-kill");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let (port, before) = (daemon.port(&name), daemon.show(&name));
    let mut open = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let load = load(port, &["hello"]);
    load.wait_for(100);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        daemon.end(signal);
        assert_eq!(greeting(port), "hello", "nobody is there but the instance");
        daemon.start();
        assert_eq!(daemon.show(&name), before);
    }
    daemon.service(&["restart", &name]).success();
    load.wait_for(1000);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    open.write_all(b"?").unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn a_daemon_that_is_executed_anew_goes_on() {
    let world = World::new("svc-hup");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let (before, load) = (daemon.show(&name), load(daemon.port(&name), &["hello"]));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid()), Signal::SIGHUP).unwrap();
    eventually("it serves again", || daemon.log().matches(" serving ").count() >= 2);
    assert_eq!(daemon.show(&name), before);
    daemon.service(&["restart", &name]).success();
    load.wait_for(500);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
}

#[test]
fn an_old_instance_goes_on_draining_while_the_daemon_is_away() {
    let world = World::new("svc-drain");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--env", "GREETING=old"]);
    let mut old = TcpStream::connect(("127.0.0.1", daemon.port(&name))).unwrap();
    eventually("it is accepted", || greeting(daemon.port(&name)) == "old");
    daemon.service(&["upgrade", &name, "--to", "2.0.0", "--env", "GREETING=new"]).success();
    daemon.end(Signal::SIGKILL);
    old.write_all(b"?").unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    daemon.start();
    daemon.await_rest(&name);
    assert_eq!(daemon.show(&name)["drained"]["cut"], 0);
}

#[test]
fn what_crashed_while_nobody_looked_gets_a_successor() {
    let world = World::new("svc-unseen");
    let mut daemon = world.daemon();
    let (name, killed) = (daemon.name("web"), daemon.name("killed"));
    daemon.add(&name, "1.0.0", &[]);
    daemon.add(&killed, "1.0.0", &[]);
    let (port, pid) = (daemon.port(&name), daemon.instance_pid(&name));
    let keeper = daemon.show(&killed)["instances"][0]["keeper"].as_i64().unwrap();
    daemon.end(Signal::SIGKILL);
    for pid in [pid, i32::try_from(keeper).unwrap()] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    daemon.start();
    assert_eq!(greeting(port), "hello");
    for name in [&name, &killed] {
        eventually("its successor serves", || daemon.show(name)["instance"] == format!("{name}-1.0.0-2"));
        daemon.await_rest(name);
    }
}

#[test]
fn after_a_reboot_every_service_comes_back() {
    let world = World::new("svc-boot");
    let mut daemon = world.daemon();
    let (name, rested) = (daemon.name("web"), daemon.name("rested"));
    daemon.add(&name, "1.0.0", &[]);
    daemon.add(&rested, "1.0.0", &["--restart", "no"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.instance_pid(&rested)), Signal::SIGTERM).unwrap();
    daemon.await_state(&rested, "ended");
    let keeper = daemon.show(&name)["instances"][0]["keeper"].as_i64().unwrap();
    daemon.end(Signal::SIGKILL);
    // What a reboot does: everything dies, and the boot is another one.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(keeper).unwrap()), Signal::SIGKILL).unwrap();
    world.delete(&format!("{name}-1.0.0-1"));
    std::fs::remove_dir_all(world.root()).unwrap();
    std::fs::create_dir(world.root()).unwrap();
    let registry = world.store().join("registry.db");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let connection = rusqlite::Connection::open(registry).unwrap();
    let changed = connection.execute(
        "UPDATE entry SET value = CAST(replace(CAST(value AS TEXT), ?1, 'another-boot') AS BLOB) WHERE key LIKE 'service/%'",
        [boot.trim()],
    );
    assert_eq!(changed.unwrap(), 2);
    drop(connection);
    daemon.start();
    for name in [&name, &rested] {
        daemon.await_state(name, "serving");
        assert_eq!(greeting(daemon.port(name)), "hello");
    }
    assert_eq!(daemon.show(&name)["restarts"], json!(0));
}

#[test]
fn an_instance_that_no_service_explains_is_told_of_and_left_alone() {
    let world = World::new("svc-stray");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let port = daemon.port(&name);
    daemon.end(Signal::SIGTERM);
    std::fs::remove_file(world.store().join("registry.db")).unwrap();
    daemon.start();
    assert!(daemon.list().is_empty());
    let instance = format!("{name}-1.0.0-1");
    assert!(daemon.log().contains(&format!("instance '{instance}' has a keeper and belongs to no service")));
    assert_eq!(greeting(port), "hello");
    world.delete(&instance);
    eventually("its keeper goes", || daemon.keepers().is_empty());
}
