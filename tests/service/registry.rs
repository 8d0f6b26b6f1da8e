//! The registry is damaged, of a newer regen, or cannot be written: that is said in one line, and means nothing to
//! instances, to clients who resolve, and to the OCI verbs.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::life::greeting;
use crate::harness::daemon::Daemon;
use crate::harness::enclosure::Enclosure;
use crate::harness::port::free_port;
use crate::harness::ring::picture;
use crate::harness::{World, eventually};

/// Clients find the instance, which serves, and the OCI verbs know it.
#[track_caller]
fn all_goes_on(world: &World, name: &str, port: u16) {
    let found = world.regen(&["resolve", &format!("{name}@^1"), "--json"]);
    assert!(found.success().stdout().contains(&format!("127.0.0.1:{port}")), "{}", found.stdout());
    assert_eq!(greeting(port), "hello");
    let list = world.regen(&["list", "--quiet"]);
    assert_eq!(list.success().stdout().lines().count(), 1, "{}", list.stdout());
    assert_eq!(world.status(list.stdout().trim()), "running");
}

/// The registry of a daemon that has ended, with all that was committed in the one file.
fn registry(world: &World) -> PathBuf {
    let file = world.store().join("registry.db");
    drop(rusqlite::Connection::open(&file).unwrap().query_row("SELECT count(*) FROM entry", [], |_| Ok(())));
    assert!(!file.with_file_name("registry.db-wal").exists());
    file
}

#[test]
fn with_a_registry_that_is_damaged_or_newer_clients_are_served_and_nothing_is_changed() {
    let world = World::new("svc-registry");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let (port, keepers) = (daemon.port(&name), daemon.keepers());
    daemon.end(Signal::SIGTERM);
    let file = registry(&world);
    let good = fs::read(&file).unwrap();
    let open = format!("manage services: open registry '{}': ", file.display());
    let put_back = format!("mv {0} {0}.damaged; then restart 'regen serve'", file.display());
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    serves_without(&world, &mut daemon, &name, port, &[&open, &put_back]);
    fs::write(&file, "not a database, but long enough to be looked at as one").unwrap();
    serves_without(&world, &mut daemon, &name, port, &[&open, &put_back]);
    fs::write(&file, &good).unwrap();
    let newer = rusqlite::Connection::open(&file).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let before = picture(&world.store());
    serves_without(&world, &mut daemon, &name, port, &[&open, "it has format version 99, this regen knows 2"]);
    assert_eq!(picture(&world.store()), before, "it was touched");
    fs::write(&file, &good).unwrap();
    daemon.start();
    assert_eq!((&daemon.show(&name)["state"], daemon.keepers()), (&"serving".into(), keepers));
}

/// A daemon that cannot use its registry.
#[track_caller]
fn serves_without(world: &World, daemon: &mut Daemon<'_>, name: &str, port: u16, words: &[&str]) {
    daemon.start_without_registry();
    for verb in [&["ls"][..], &["restart", name], &["rm", name], &["show", name], &["logs", name]] {
        let output = daemon.service(verb);
        for words in words {
            output.fails_with(1, words);
        }
        assert_eq!(output.stderr().lines().count(), 1, "{}", output.stderr());
    }
    all_goes_on(world, name, port);
    assert!(daemon.log().contains(words[0]), "{}", daemon.log());
    daemon.end(Signal::SIGTERM).success();
}

#[test]
fn without_a_registry_an_instance_that_ends_is_no_longer_found() {
    let world = World::new("svc-withdrawn");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--restart", "no"]);
    let instance = daemon.show(&name)["instance"].as_str().unwrap().to_owned();
    daemon.end(Signal::SIGTERM);
    let file = registry(&world);
    let good = fs::read(&file).unwrap();
    fs::write(&file, "damaged").unwrap();
    daemon.start_without_registry();
    let resolve = || world.regen(&["resolve", &format!("{name}@1")]);
    resolve().success();
    world.delete(&instance);
    eventually("it is not found any more", || resolve().code == 1);
    daemon.end(Signal::SIGTERM).success();
    // Nobody is there to be helped now.
    world.regen(&["serve"]).fails_with(1, "open registry ");
    fs::write(&file, &good).unwrap();
    daemon.start();
    eventually("it has ended", || daemon.show(&name)["state"] == "ended");
}

/// A server that is ready once somebody listens at a port.
fn late_server(port: u16) -> String {
    format!(
        "
import os, socket, time
while True:
    try:
        socket.create_connection(('127.0.0.1', {port})).close()
        break
    except OSError:
        time.sleep(0.01)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(1000)
"
    )
}

#[test]
fn a_disk_that_is_full_refuses_changes_and_undoes_the_one_that_was_on_its_way() {
    let world = World::new("svc-full");
    let mut daemon = world.daemon();
    daemon.end(Signal::SIGTERM);
    fs::create_dir_all(world.store()).unwrap();
    let serve = world.command(&["serve"]);
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=4m none \"$0\" && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(world.store());
    command.arg(serve.get_program()).args(serve.get_args());
    daemon.start_as(command);
    let (name, go) = (daemon.name("web"), free_port("127.0.0.1"));
    daemon.add(&name, "1.0.0", &[]);
    let (port, pid) = (daemon.port(&name), daemon.instance_pid(&name));
    let late = late_server(go);
    let slow =
        ["service", "upgrade", &name, "--to", "1.1.0", "--ready", "notify", "--", "/usr/bin/python3", "-c", &late];
    let upgrade = world.spawn(world.command(&slow));
    eventually("it runs", || {
        daemon.keepers().len() == 2 && daemon.show(&name)["instances"].as_array().unwrap().len() == 2
    });
    let inside = Path::new("/proc").join(daemon.pid().to_string()).join("root");
    let fill = inside.join(world.store().strip_prefix("/").unwrap()).join("fill");
    let mut file = fs::File::create(&fill).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    let listener = TcpListener::bind(("127.0.0.1", go)).unwrap();
    let full = "registry.db': the disk is full: make room";
    upgrade.finish().fails_with(1, full);
    // That it has failed cannot be written down: it holds what it had.
    daemon.service(&["restart", &name]).fails_with(1, "has it: service-upgrade");
    daemon.service(&["rm", &name]).fails_with(1, full);
    let server = world.server();
    let other = ["add", "other", "--version", "1.0.0", "--listen", "auto", "--bundle", server.text()];
    daemon.service(&other).fails_with(1, full);
    eventually("the new instance is gone", || daemon.keepers().len() == 1);
    assert_eq!((daemon.instance_pid(&name), &daemon.show(&name)["version"]), (pid, &"1.0.0".into()));
    all_goes_on(&world, &name, port);
    drop((file, listener));
    fs::remove_file(fill).unwrap();
    eventually("that is written down now", || daemon.service(&["restart", &name]).code == 0);
    assert_eq!(greeting(port), "hello");
    daemon.await_rest(&name);
}

#[test]
fn a_single_record_that_cannot_be_read_is_told_of_and_keeps_nobody_from_serving() {
    let world = World::new("svc-record");
    let mut daemon = world.daemon();
    let (one, other) = (daemon.name("one"), daemon.name("other"));
    daemon.add(&one, "1.0.0", &[]);
    daemon.add(&other, "1.0.0", &[]);
    daemon.end(Signal::SIGTERM);
    let (key, open) =
        (format!("service/{one}/1.0.0"), || rusqlite::Connection::open(world.store().join("registry.db")));
    let change = |value: &[u8]| {
        open().unwrap().execute("UPDATE entry SET value = ?1 WHERE key = ?2", (value, &key)).unwrap();
    };
    let query = "SELECT value FROM entry WHERE key = ?1";
    let good: Vec<u8> = open().unwrap().query_row(query, [&key], |row| row.get(0)).unwrap();
    change(b"{\"definition\":");
    daemon.start();
    let names: Vec<_> = daemon.list().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, std::slice::from_ref(&other));
    assert!(daemon.log().contains(&format!("read '{key}'")), "{}", daemon.log());
    let server = world.server();
    let same = ["add", &one, "--version", "1.0.0", "--listen", "auto", "--bundle", server.text()];
    daemon.service(&same).fails_with(1, "something is written down under its name that cannot be read");
    daemon.end(Signal::SIGTERM);
    change(&good);
    daemon.start();
    assert_eq!(daemon.await_state(&one, "serving")["restarts"], 0);
}

#[test]
fn a_store_that_cannot_be_written_is_said_so() {
    let world = World::new("svc-readonly");
    let mut daemon = world.daemon();
    daemon.end(Signal::SIGTERM);
    fs::create_dir_all(world.base().join("store")).unwrap();
    let enclosure = Enclosure::new(&world, "mount --bind store store; mount -o remount,bind,ro store");
    let output = enclosure.regen(&["serve"]);
    output.fails_with(1, "registry.db': ");
    assert!(output.stderr().contains("writable"), "{}", output.stderr());
    drop(enclosure);
    daemon.start();
}
