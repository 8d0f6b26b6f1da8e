//! From `add` to `rm`.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::harness::load::{Load, Plan, Protocol, Request, Target};
use crate::harness::{World, eventually};

/// What a server answers.
pub fn greeting(port: u16) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(b"?").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

/// Clients that connect anew for every request.
pub fn load(port: u16, answers: &[&str]) -> Load {
    let target = Target::Tcp(([127, 0, 0, 1], port).into());
    let bodies = answers.iter().map(|answer| answer.as_bytes().to_vec()).collect();
    let requests = vec![Request { bytes: b"?".to_vec(), answers: bodies }];
    Load::start(Plan { protocol: Protocol::Bytes, requests, ..Plan::http(target, "/", b"") })
}

#[test]
fn a_service_is_added_listed_shown_and_removed() {
    let world = World::new("svc-life");
    let daemon = world.daemon();
    let name = daemon.name("web");
    let report = daemon.add(&name, "1.0.0", &["--env", "GREETING=one"]);
    assert_eq!((&report["name"], &report["version"], &report["old"]), (&json!(name), &json!("1.0.0"), &json!(null)));
    assert_eq!(report["change"].as_str().unwrap().len(), 32);
    let list = daemon.list();
    assert_eq!((list.len(), &list[0]["state"], &list[0]["ready"]), (1, &json!("serving"), &json!(true)));
    assert_eq!(list[0]["instance"], report["instance"]);
    assert_eq!(list[0]["addresses"], report["addresses"]);
    assert_eq!(greeting(daemon.port(&name)), "one");
    let instance = report["instance"].as_str().unwrap();
    assert_eq!(instance, format!("{name}-1.0.0-1"));
    assert_eq!(world.status(instance), "running");
    assert_eq!(world.pid(instance), daemon.instance_pid(&name));
    let text = daemon.service(&["ls"]).success().stdout().to_owned();
    assert!(text.starts_with("SERVICE") && text.contains(&name), "{text}");
    let removed = daemon.service(&["rm", &name, "--json"]);
    assert_eq!(removed.success().stdout().trim(), json!([{"name": name, "version": "1.0.0"}]).to_string());
    assert!(daemon.list().is_empty() && daemon.keepers().is_empty());
    assert!(!world.state_directory(instance).exists());
    daemon.service(&["show", &name]).fails_with(1, &format!("there is no service '{name}': see 'regen service ls'"));
}

#[test]
fn a_restart_loses_no_request_and_leaves_one_instance() {
    let world = World::new("svc-restart");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let load = load(daemon.port(&name), &["hello"]);
    load.wait_for(100);
    let first = daemon.instance_pid(&name);
    for generation in 2..8 {
        let output = daemon.service(&["restart", &name, "--json"]);
        assert!(output.success().stdout().contains(&format!("{name}-1.0.0-{generation}")));
    }
    load.wait_for(2000);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert_ne!(daemon.instance_pid(&name), first);
    daemon.await_rest(&name);
    assert_eq!(daemon.keepers(), [format!("{name}-1.0.0-7")]);
}

#[test]
fn a_restart_that_waits_tells_how_the_old_instance_went() {
    let world = World::new("svc-wait");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--drain-timeout", "300ms"]);
    let port = daemon.port(&name);
    let output = daemon.service(&["restart", &name, "--wait", "--json"]);
    let report: serde_json::Value = serde_json::from_str(output.success().stdout()).unwrap();
    assert_eq!((&report["old"], &report["drained"]["cut"]), (&json!(format!("{name}-1.0.0-1")), &json!(0)));
    assert_eq!(daemon.keepers().len(), 1, "the old one is gone");
    // Somebody who connects and says nothing is cut at the end of the time, and that is told.
    let mut silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    eventually("it is accepted", || greeting(port) == "hello");
    let output = daemon.service(&["restart", &name, "--wait"]);
    assert!(output.success().stdout().contains("connections that were cut: 1"), "{}", output.stdout());
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0, "it was cut");
    assert_eq!(daemon.show(&name)["drained"]["cut"], 1);
}

#[test]
fn a_connection_that_is_open_outlives_the_restart() {
    let world = World::new("svc-open");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--env", "GREETING=old"]);
    let mut old = TcpStream::connect(("127.0.0.1", daemon.port(&name))).unwrap();
    daemon.service(&["upgrade", &name, "--to", "1.1.0", "--env", "GREETING=new"]).success();
    assert_eq!(greeting(daemon.port(&name)), "new");
    old.write_all(b"?").unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    daemon.await_rest(&name);
}

#[test]
fn an_upgrade_changes_what_is_said_and_the_version() {
    let world = World::new("svc-upgrade");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--env", "GREETING=one", "--env", "KEPT=1"]);
    let (port, load) = (daemon.port(&name), load(daemon.port(&name), &["one", "two"]));
    load.wait_for(50);
    daemon.service(&["upgrade", &name, "--to", "1.1.0", "--env", "GREETING=two"]).success();
    load.wait_for(500);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let show = daemon.show(&name);
    assert_eq!(show["version"], "1.1.0");
    assert_eq!(show["definition"]["env"], json!(["KEPT=1", "GREETING=two"]));
    assert_eq!((daemon.port(&name), greeting(port).as_str()), (port, "two"));
    assert_eq!(daemon.list().len(), 1);
}

#[test]
fn versions_stand_side_by_side_and_one_has_to_be_named() {
    let world = World::new("svc-versions");
    let daemon = world.daemon();
    let name = daemon.name("web");
    for version in ["1.0.0", "1.1.0", "2.0.0"] {
        daemon.add(&name, version, &["--env", &format!("GREETING={version}")]);
    }
    let versions: Vec<_> = daemon.list().iter().map(|one| one["version"].as_str().unwrap().to_owned()).collect();
    assert_eq!(versions, ["1.0.0", "1.1.0", "2.0.0"]);
    let error = format!("restart service '{name}': there are several versions of it: 1.0.0, 1.1.0, 2.0.0");
    daemon.service(&["restart", &name]).fails_with(1, &error);
    daemon.service(&["restart", &format!("{name}@1.1.0")]).success();
    assert_eq!(greeting(daemon.port(&format!("{name}@2.0.0"))), "2.0.0");
    daemon
        .service(&["upgrade", &format!("{name}@1.0.0"), "--to", "2.0.0"])
        .fails_with(1, "version 2.0.0 is there already");
    daemon.service(&["rm", &format!("{name}@1.1.0")]).success();
    assert_eq!(daemon.list().len(), 2);
    daemon.service(&["rm", &name]).success();
    assert!(daemon.list().is_empty());
}

#[test]
fn what_instances_print_is_kept_over_restarts_and_followed() {
    let world = World::new("svc-logs");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let mut follower = world.spawn(world.command(&["service", "logs", "-f", &name]));
    follower.wait_for(&format!("up {name}"));
    daemon.service(&["restart", &name, "--wait"]).success();
    follower.wait_for("bye");
    let printed = daemon.service(&["logs", &name]);
    let lines: Vec<_> = printed.success().stdout().lines().collect();
    assert_eq!(lines, [format!("up {name}"), format!("up {name}"), "bye".to_owned()]);
    let json = daemon.service(&["logs", &name, "--json"]);
    let first: serde_json::Value = serde_json::from_str(json.success().stdout().lines().next().unwrap()).unwrap();
    assert_eq!((&first["instance"], &first["source"]), (&json!(format!("{name}-1.0.0-1")), &json!("out")));
    follower.signal(nix::sys::signal::Signal::SIGINT);
    follower.finish();
}

#[test]
fn a_log_that_is_written_faster_than_it_is_read_has_an_end() {
    let world = World::new("svc-flood");
    let daemon = world.daemon();
    let name = daemon.name("web");
    let server = world.python("import os\nwhile True: os.write(1, b'x' * 63 + b'\\n')", |_| {});
    let arguments =
        ["add", &name, "--version", "1.0.0", "--listen", "auto", "--bundle", server.text(), "--ready", "none"];
    daemon.service(&arguments).success();
    eventually("much is there", || daemon.service(&["logs", &name]).success().stdout().len() > 1 << 20);
    daemon.service(&["rm", "--force", &name]).success();
}

#[test]
fn several_sockets_keep_their_names_and_kinds() {
    let world = World::new("svc-sockets");
    let daemon = world.daemon();
    let (name, path) = (daemon.name("web"), world.base().join("web.sock"));
    let script = "
import os, socket, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
names = os.environ['LISTEN_FDNAMES'].split(':')
assert int(os.environ['LISTEN_PID']) == os.getpid()
for number, name in enumerate(names):
    s = socket.socket(fileno=3 + number)
    print(name, s.family.name, s.type.name, flush=True)
signal.pause()
";
    let server = world.python(script, |spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != "network");
    });
    let port = crate::harness::port::free_port("127.0.0.1");
    let (udp, unix) = (format!("dns=udp://127.0.0.1:{port}"), format!("admin=unix:{}", path.display()));
    let arguments = ["add", &name, "--version", "1.0.0", "--listen", "auto", "--listen", &udp, "--listen", &unix];
    let more = ["--bundle", server.text(), "--ready", "none"];
    daemon.service(&[&arguments[..], &more].concat()).success();
    eventually("it has said what it got", || daemon.service(&["logs", &name]).stdout().lines().count() == 3);
    let logs = daemon.service(&["logs", &name]);
    let expected =
        [format!("{name} AF_INET SOCK_STREAM"), "dns AF_INET SOCK_DGRAM".into(), "admin AF_UNIX SOCK_STREAM".into()];
    assert_eq!(logs.stdout().lines().collect::<Vec<_>>(), expected);
    assert!(path.exists());
}
