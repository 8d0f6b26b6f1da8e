//! What cannot be done, and how that is said: one line that names what is wrong and what can be done, and nothing is left.

use std::net::{TcpListener, UdpSocket};

use nix::sys::signal::Signal;

use super::life::greeting;
use crate::harness::daemon::Daemon;
use crate::harness::port::free_port;
use crate::harness::user::{Person, Subordinates};
use crate::harness::{Output, World, eventually};

/// `service add` of the usual server at an address.
fn add_at(world: &World, daemon: &Daemon<'_>, name: &str, address: &str, more: &[&str]) -> Output {
    let server = world.server();
    let arguments = ["add", name, "--version", "1.0.0", "--listen", address, "--bundle", server.text()];
    daemon.service(&[&arguments, more].concat())
}

/// Nothing is left of a service that could not be added.
#[track_caller]
fn nothing_is_left(world: &World, daemon: &Daemon<'_>) {
    assert!(daemon.list().is_empty(), "{:?}", daemon.list());
    assert_eq!(daemon.keepers(), [""; 0]);
    assert_eq!(world.regen(&["list", "--quiet"]).success().stdout(), "");
    assert_eq!(crate::harness::ring::names(&world.store().join("services")), [""; 0]);
}

#[test]
fn a_port_of_another_process_names_it() {
    let world = World::new("svc-port");
    let daemon = world.daemon();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = format!("tcp://{}", listener.local_addr().unwrap());
    let output = add_at(&world, &daemon, &daemon.name("web"), &tcp, &[]);
    output.fails_with(1, &std::process::id().to_string());
    assert!(output.stderr().contains(&tcp[6..]), "{}", output.stderr());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = format!("udp://{}", socket.local_addr().unwrap());
    add_at(&world, &daemon, &daemon.name("dns"), &udp, &[]).fails_with(1, &std::process::id().to_string());
    nothing_is_left(&world, &daemon);
}

#[test]
fn an_address_of_another_service_names_that() {
    let world = World::new("svc-taken");
    let daemon = world.daemon();
    let (one, other) = (daemon.name("one"), daemon.name("other"));
    let port = free_port("127.0.0.1");
    add_at(&world, &daemon, &one, &format!("tcp://127.0.0.1:{port}"), &[]).success();
    let words = format!("address tcp://0.0.0.0:{port} belongs to service '{one}@1.0.0'");
    add_at(&world, &daemon, &other, &format!("tcp://0.0.0.0:{port}"), &[]).fails_with(1, &words);
}

#[test]
fn a_privileged_port_is_refused_to_an_ordinary_user() {
    let world = World::new("svc-low");
    let person = Person::new(&world, Subordinates::None);
    let serve = world.spawn(person.command("regen", &["serve"]));
    let regen = |arguments: &[&str]| world.finish(person.command("regen", arguments));
    eventually("the daemon answers", || regen(&["service", "ls"]).code == 0);
    let rootfs = world.rootfs_text();
    let name = world.id("web");
    let arguments = ["service", "add", &name, "--version", "1.0.0", "--listen", "tcp://127.0.0.1:81"];
    let output = regen(&[&arguments[..], &["--rootfs", &rootfs, "--", "sleep", "1000"]].concat());
    serve.signal(Signal::SIGTERM);
    serve.finish().success();
    output.fails_with(1, "listen on tcp://127.0.0.1:81: ports below 1024 are for root: choose one from 1024 on");
}

#[test]
fn a_service_that_is_there_already_is_refused() {
    let world = World::new("svc-twice");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let pid = daemon.instance_pid(&name);
    let output = add_at(&world, &daemon, &name, "auto", &[]);
    output.fails_with(1, &format!("add service '{name}@1.0.0': there is one already"));
    assert_eq!((daemon.list().len(), daemon.instance_pid(&name)), (1, pid));
}

#[test]
fn what_says_nothing_valid_is_refused_as_it_is_read() {
    let world = World::new("svc-words");
    let daemon = world.daemon();
    let rootfs = world.rootfs_text();
    let add = |name: &str, version: &str, listen: &str, more: &[&str]| {
        let arguments = ["add", name, "--version", version, "--listen", listen, "--rootfs", &rootfs];
        daemon.service(&[&arguments[..], more, &["--", "sleep", "1000"]].concat())
    };
    for version in ["1", "1.0", "v1.0.0", "latest", "1.0.0.0", ""] {
        add("web", version, "auto", &[]).fails_with(2, "is no version like 1.2.3");
    }
    let long = format!("unix:/{}", "x".repeat(108));
    add("web", "1.0.0", &long, &[]).fails_with(2, "the path has 109 bytes, a socket's has at most 107");
    add("web", "1.0.0", "80", &[]).fails_with(2, "it has no known scheme");
    add("web/../x", "1.0.0", "auto", &[]).fails_with(2, "'/' is not allowed");
    add("web", "1.0.0", "auto", &["--ready", "maybe"]).fails_with(2, "give notify, tcp, http:/PATH or none");
    add("web", "1.0.0", "auto", &["--drain-timeout", "5"]).fails_with(2, "is no duration like 5s");
    add("web", "1.0.0", "auto", &["--stop-signal", "NOPE"]).fails_with(2, "unknown signal");
    add("web", "1.0.0", "unix:/run/x", &["--ready", "tcp"]).fails_with(1, "readiness 'tcp' needs a TCP address");
    add("web", "1.0.0", "auto", &["--env", "A"]).fails_with(1, "variable 'A' is not NAME=VALUE");
    add("web", "1.0.0", "tcp://127.0.0.1:9", &["--listen", "tcp://127.0.0.1:9"]).fails_with(1, "is given twice");
    let none = daemon.service(&["add", "web", "--version", "1.0.0", "--listen", "auto"]);
    none.fails_with(2, "required arguments were not provided");
    daemon.service(&["restart", "web@1"]).fails_with(2, "is no version like 1.2.3");
    daemon.service(&["restart", "web"]).fails_with(1, "restart service 'web': there is no service 'web'");
    nothing_is_left(&world, &daemon);
}

#[test]
fn a_program_or_a_root_that_is_not_there_is_named() {
    let world = World::new("svc-missing");
    let daemon = world.daemon();
    let (name, rootfs) = (daemon.name("web"), world.rootfs_text());
    let add = |source: &[&str], command: &str| {
        let arguments = ["add", &name, "--version", "1.0.0", "--listen", "auto"];
        daemon.service(&[&arguments[..], source, &["--", command]].concat())
    };
    add(&["--rootfs", &rootfs], "nobody-has-this").fails_with(1, "nobody-has-this");
    add(&["--rootfs", "/nowhere"], "true").fails_with(1, "/nowhere");
    add(&["--image", "oci:nowhere:1"], "true").fails_with(1, "nowhere");
    nothing_is_left(&world, &daemon);
}

#[test]
fn an_instance_that_ends_at_once_is_removed_and_its_last_words_are_told() {
    let world = World::new("svc-exit");
    let daemon = world.daemon();
    let name = daemon.name("web");
    let python = ["--", "/usr/bin/python3", "-c"];
    let failing = "import sys; print('going'); sys.exit('it cannot work')";
    let output = add_at(&world, &daemon, &name, "auto", &[&python[..], &[failing]].concat());
    output.fails_with(1, "it ended with status 1 before it was ready; its last words: ");
    assert!(output.stderr().contains("it cannot work"), "{}", output.stderr());
    nothing_is_left(&world, &daemon);
    daemon.add(&name, "1.0.0", &[]);
    let (pid, port) = (daemon.instance_pid(&name), daemon.port(&name));
    let arguments = ["upgrade", &name, "--to", "1.1.0"];
    let output = daemon.service(&[&arguments[..], &python, &[failing]].concat());
    output.fails_with(
        1,
        &format!("upgrade service '{name}@1.0.0': start instance '{name}-1.1.0-2': it ended with status 1"),
    );
    let show = daemon.show(&name);
    assert_eq!((&show["version"], show["instances"].as_array().unwrap().len()), (&"1.0.0".into(), 1));
    assert_eq!((daemon.instance_pid(&name), greeting(port).as_str()), (pid, "hello"));
    assert_eq!(daemon.keepers().len(), 1);
}

#[test]
fn an_instance_that_never_becomes_ready_is_removed_and_what_was_missing_is_told() {
    let world = World::new("svc-unready");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--env", "GREETING=old"]);
    let (pid, port) = (daemon.instance_pid(&name), daemon.port(&name));
    let arguments = ["upgrade", &name, "--to", "1.1.0", "--ready", "notify", "--ready-timeout", "500ms"];
    let output = daemon.service(&[&arguments[..], &["--env", "GREETING=new"]].concat());
    output.fails_with(1, "it was not ready within 0.5 s: it has not said so (READY=1 on NOTIFY_SOCKET)");
    assert_eq!((daemon.instance_pid(&name), greeting(port).as_str()), (pid, "old"));
    assert_eq!(daemon.keepers().len(), 1);
    assert_eq!(daemon.show(&name)["definition"]["ready"], "tcp");
}

#[test]
fn a_downgrade_has_to_be_meant() {
    let world = World::new("svc-down");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "2.0.0", &[]);
    let words = "1.9.0 is older than 2.0.0: give --allow-downgrade if that is meant";
    daemon.service(&["upgrade", &name, "--to", "1.9.0"]).fails_with(1, words);
    daemon.service(&["upgrade", &name, "--to", "2.0.0-rc.1"]).fails_with(1, "is older than 2.0.0");
    daemon.service(&["upgrade", &name, "--to", "2.0.0"]).fails_with(1, "version 2.0.0 is there already");
    daemon.service(&["upgrade", &name, "--to", "1.9.0", "--allow-downgrade"]).success();
    assert_eq!(daemon.show(&name)["version"], "1.9.0");
}

#[test]
fn a_program_that_binds_another_kind_of_socket_is_not_ready_and_what_it_binds_is_told() {
    let world = World::new("svc-kind");
    let daemon = world.daemon();
    let (name, port) = (daemon.name("web"), free_port("127.0.0.1"));
    let script = format!(
        "import signal, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', {port})); signal.pause()"
    );
    let more = ["--handover", "intercept", "--ready-timeout", "1s", "--", "/usr/bin/python3", "-c", &script];
    let output = add_at(&world, &daemon, &name, &format!("tcp://127.0.0.1:{port}"), &more);
    output.fails_with(1, "it was not ready within 1 s: ");
    let told = output.stderr();
    assert!(told.contains(&format!("tcp://127.0.0.1:{port}")), "{told}");
    assert!(told.contains(&format!("udp://127.0.0.1:{port}")), "{told}");
    nothing_is_left(&world, &daemon);
}

#[test]
fn a_second_change_is_refused_with_the_id_of_the_first() {
    let world = World::new("svc-busy");
    let daemon = world.daemon();
    let (name, other) = (daemon.name("web"), daemon.name("other"));
    daemon.add(&name, "1.0.0", &[]);
    daemon.add(&other, "1.0.0", &[]);
    let slow = ["service", "upgrade", &name, "--to", "1.1.0", "--ready", "notify", "--ready-timeout", "1h"];
    let first = world.spawn(world.command(&slow));
    eventually("it has begun", || daemon.show(&name)["change"]["kind"] == "upgrade");
    let id = daemon.show(&name)["change"]["id"].as_str().unwrap().to_owned();
    let words = format!("operation {id} has it: service-upgrade, on node '");
    daemon.service(&["upgrade", &name, "--to", "1.2.0"]).fails_with(1, &words);
    daemon.service(&["restart", &name]).fails_with(1, &words);
    daemon.service(&["rm", &name]).fails_with(1, &words);
    let server = world.server();
    let same = ["add", &name, "--version", "1.1.0", "--listen", "auto", "--bundle", server.text()];
    daemon.service(&same).fails_with(1, &words);
    // Others have nothing to do with it.
    daemon.service(&["restart", &other]).success();
    world.delete(&format!("{name}-1.1.0-2"));
    first.finish().fails_with(1, "before it was ready");
    daemon.service(&["upgrade", &name, "--to", "1.2.0"]).success();
}

#[test]
fn without_a_daemon_that_is_said() {
    let world = World::new("svc-nobody");
    let words = format!("{}/run.regen.Control': nobody listens: start 'regen serve'", world.root().display());
    world.regen(&["service", "ls"]).fails_with(1, &words);
}
