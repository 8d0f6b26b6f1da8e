//! The real daemon.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use regen::control::remote::Dialer;
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::harness::{World, eventually, port};
use crate::node::dialer;

fn status(dialer: &Dialer, address: SocketAddr) -> Option<Value> {
    dialer.call((&"n2".parse().unwrap(), address), "run.regen.Control.GetStatus", &json!({})).ok()
}

#[test]
fn other_nodes_look_into_a_daemon_and_change_nothing_by_the_way() {
    let world = World::new("remote");
    let authority = Authority::new(&["n1", "n2"]);
    let address: SocketAddr = format!("127.0.0.1:{}", port::free_port("127.0.0.1")).parse().unwrap();
    let certs = authority.path("n2");
    let arguments = ["serve", "--address", &address.to_string(), "--certs", certs.to_str().unwrap()];
    let mut daemon = world.spawn(world.command(&arguments));
    let dialer = dialer(authority.certificates("n1"));
    eventually("the daemon answers", || {
        assert_eq!(daemon.child.try_wait().unwrap(), None, "{}", daemon.complaints());
        status(&dialer, address).is_some()
    });
    assert_eq!(status(&dialer, address).unwrap()["pid"], daemon.pid());
    let name = "n2".parse().unwrap();
    let call = |method: &str, parameters: Value| dialer.call::<Value>((&name, address), method, &parameters);
    assert_eq!(call("run.regen.Service.List", json!({})).unwrap()["services"], json!([]));
    let error = call("run.regen.Service.Resolve", json!({"name": "web"})).unwrap_err().to_string();
    assert!(error.ends_with("no version of service 'web' is serving"), "{error}");
    for method in ["Service.Show", "Service.Add", "Service.Remove", "Service.Logs", "Template.Create"] {
        let error = call(&format!("run.regen.{method}"), json!({"name": "web"})).unwrap_err().to_string();
        assert!(error.contains("node 'n1' may not call run.regen."), "{error}");
    }
    let line = dialer.connect(&name, address).unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("the daemon executes its file anew", || daemon.complaints().contains(" anew"));
    eventually("the daemon answers again", || status(&dialer, address).is_some());
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
    drop(line);
}

#[test]
fn a_daemon_whose_certificates_are_no_use_does_not_start() {
    let world = World::new("remote-key");
    let authority = Authority::new(&["n2"]);
    let certs = authority.path("n2");
    let serve = |address: &str| world.regen(&["serve", "--address", address, "--certs", certs.to_str().unwrap()]);
    serve("localhost:1").fails_with(1, "give an address of this host and a port in numbers");
    serve("0.0.0.0:1").fails_with(1, "other nodes cannot connect to all addresses");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    serve(&taken.local_addr().unwrap().to_string()).fails_with(1, "listen for other nodes on 127.0.0.1:");
    fs::set_permissions(certs.join("node.key"), Permissions::from_mode(0o644)).unwrap();
    serve("127.0.0.1:0").fails_with(1, "others may read or write it: its mode is 0644");
    world.regen(&["serve", "--address", "127.0.0.1:0"]).fails_with(2, "--certs");
}
