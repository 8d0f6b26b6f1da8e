//! Instances of programs that bind their sockets themselves.

use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;

use serde_json::{Value, json};

use crate::harness::keeper::Kept;
use crate::harness::{World, eventually};
use crate::{greeting, replaced};

/// A server that knows nothing of services: it binds a port, or a path.
const BINDER: &str = "
import os, socket, sys, time
if os.environ['GREETING'].startswith('crash'): sys.exit(3)
where = os.environ['WHERE']
listener = socket.socket(socket.AF_UNIX if where[0] == '/' else socket.AF_INET)
listener.bind(where if where[0] == '/' else ('127.0.0.1', int(where)))
print('bound', flush=True)
listener.listen(5)
while True:
    connection = listener.accept()[0]
    connection.sendall(os.environ['GREETING'].encode())
    connection.close()
";

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Whose network an instance has.
#[derive(Clone, Copy)]
enum Network {
    Host,
    Own,
}

fn order(world: &World, name: &str, port: u16, network: Network) -> Value {
    let mut order = world.order(name, BINDER);
    let path = order["definition"]["source"]["bundle"].as_str().unwrap().to_owned() + "/config.json";
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    if let Network::Own = network {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "network"}));
    }
    std::fs::write(&path, spec.to_string()).unwrap();
    order["definition"]["env"] = json!([format!("WHERE={port}")]);
    order["definition"]["handover"] = json!("intercept");
    order["listen"][0]["address"] = json!(format!("tcp://127.0.0.1:{port}"));
    order["definition"]["listen"] = order["listen"].clone();
    order
}

fn beside(world: &World, before: &Kept, name: &str, network: Network) -> Value {
    let mut order = order(world, name, before.port(), network);
    order["beside"] = json!(before.instance);
    order
}

fn ten(port: u16) -> Vec<String> {
    (0..10).map(|_| greeting(port)).collect()
}

fn replace(network: Network) {
    let world = World::new("binder");
    let port = free_port();
    let first = world.keep_running(&order(&world, "first", port, network));
    first.await_phase("ready");
    first.tell("serve");
    assert_eq!(ten(port), vec!["first"; 10]);
    let crashing = world.keep_running(&beside(&world, &first, "crashes", network));
    assert_eq!(crashing.await_phase("ended")["outcome"]["exit_code"], 3);
    crashing.tell("release");
    crashing.gone();
    assert_eq!(ten(port), vec!["first"; 10]);
    let second = world.keep_running(&beside(&world, &first, "second", network));
    second.await_phase("ready");
    assert_eq!(ten(port), vec!["first"; 10]);
    second.tell("serve");
    assert_eq!(ten(port), vec!["second"; 10]);
    let drain = json!({"command": "drain", "timeout": 60_000, "grace": 0, "succeeded": true});
    assert_eq!(first.ask_for_sockets(&drain).0, json!({"reply": "done"}));
    first.await_phase("ended");
    first.tell("release");
    first.gone();
    assert_eq!(ten(port), vec!["second"; 10]);
    second.finish();
}

#[test]
fn instances_that_bind_the_hosts_port_themselves_replace_each_other() {
    replace(Network::Host);
}

#[test]
fn instances_in_networks_of_their_own_replace_each_other_at_the_hosts_port() {
    replace(Network::Own);
}

fn crash(network: Network) {
    let world = World::new("bindcrash");
    let port = free_port();
    let first = world.keep_running(&order(&world, "first", port, network));
    first.await_phase("ready");
    first.tell("serve");
    assert_eq!(greeting(port), "first");
    let pid = nix::unistd::Pid::from_raw(world.pid(&first.instance));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    first.await_phase("ended");
    let mut waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
    waiting.shutdown(Shutdown::Write).unwrap();
    let (_, sockets) = first.ask_for_sockets(&json!({"command": "sockets"}));
    let mut next = order(&world, "second", port, network);
    next["inherited"] = json!([0]);
    let (second, reply) = world.keep(&next, &sockets.iter().map(|socket| socket.as_fd()).collect::<Vec<_>>());
    assert_eq!(reply["reply"], "status", "{reply}");
    // What waits in them moves when nobody has them any more.
    drop(sockets);
    second.await_phase("ready");
    second.tell("serve");
    first.tell("release");
    first.gone();
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert_eq!(text, "second");
    assert_eq!(ten(port), vec!["second"; 10]);
    second.finish();
}

#[test]
fn connections_wait_for_the_next_one_that_binds_the_port_itself() {
    crash(Network::Host);
}

#[test]
fn connections_wait_for_the_next_one_in_a_network_of_its_own() {
    crash(Network::Own);
}

#[test]
fn a_path_that_programs_bind_themselves_is_never_missing() {
    let world = World::new("bindpath");
    let path = world.base().join("web.sock");
    let order = |name: &str| {
        let mut order = order(&world, name, 1, Network::Host);
        order["definition"]["env"] = json!([format!("WHERE={}", path.display())]);
        order["listen"][0]["address"] = json!(format!("unix:{}", path.display()));
        order["definition"]["listen"] = order["listen"].clone();
        order["definition"]["ready"] = json!("none");
        order
    };
    std::fs::create_dir_all(world.rootfs().join(path.parent().unwrap().strip_prefix("/").unwrap())).unwrap();
    let greeting = || {
        let mut text = String::new();
        std::os::unix::net::UnixStream::connect(&path).unwrap().read_to_string(&mut text).unwrap();
        text
    };
    replaced(&world, &order, &greeting);
    assert!(!path.exists());
}

#[test]
fn a_port_that_nobody_declared_is_told_and_one_that_is_not_bound_is_missing() {
    let world = World::new("undeclared");
    let (declared, bound) = (free_port(), free_port());
    let mut order = order(&world, "a", declared, Network::Host);
    order["definition"]["env"] = json!([format!("WHERE={bound}")]);
    order["definition"]["ready_timeout_ms"] = json!(1000);
    let kept = world.keep_running(&order);
    eventually("it is told", || kept.ask("status")["notes"].to_string().contains(&bound.to_string()));
    let status = kept.await_phase("ended");
    let reason = status["outcome"]["reason"].as_str().unwrap();
    assert!(reason.ends_with(&format!("it does not listen on tcp://127.0.0.1:{declared}")), "{reason}");
    kept.tell("release");
    kept.gone();
}

#[test]
fn a_chosen_port_cannot_be_bound_by_who_does_not_know_it() {
    let world = World::new("bindauto");
    let mut order = order(&world, "a", 1, Network::Host);
    order["listen"][0]["address"] = json!("auto");
    let (kept, reply) = world.keep(&order, &[]);
    assert!(reply["error"]["next"].as_str().unwrap().contains("--handover listen-fds"), "{reply}");
    kept.gone();
}

#[test]
fn a_worker_that_is_gone_gets_no_connections_any_more() {
    let world = World::new("workers");
    let port = free_port();
    let mut order = order(&world, "a", port, Network::Host);
    let script = "
import os, socket, time
def work(name):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(('127.0.0.1', int(os.environ['WHERE'])))
    listener.listen(5)
    print('worker', os.getpid(), flush=True)
    while True:
        connection = listener.accept()[0]
        connection.sendall(name)
        connection.close()
if os.fork() == 0: work(b'one')
if os.fork() == 0: work(b'two')
os.wait()
print('one less', flush=True)
time.sleep(1000)
";
    let bundle = world.python(script, |spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != "network" && namespace["type"] != "pid");
    });
    order["definition"]["source"]["bundle"] = json!(bundle.text());
    let kept = world.keep_running(&order);
    kept.await_phase("ready");
    kept.tell("serve");
    let hundred = || (0..100).map(|_| greeting(port)).collect::<std::collections::BTreeSet<_>>();
    eventually("both serve", || hundred().len() == 2);
    let words = || crate::printed(&world);
    let pid: i32 = words().iter().find_map(|line| line.strip_prefix("worker ")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is gone", || words().contains(&"one less".to_owned()));
    assert_eq!(hundred().len(), 1);
    kept.finish();
}

#[test]
fn a_socket_that_a_program_closes_while_it_has_another_gets_no_connections_any_more() {
    let world = World::new("closes");
    let port = free_port();
    let mut order = order(&world, "a", port, Network::Host);
    let script = "
import os, signal, socket
def listen():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(('127.0.0.1', int(os.environ['WHERE'])))
    listener.listen(5)
    return listener
# The kernel may have chosen one, and its connection never accepted.
first, second = listen(), listen()
print('two', flush=True)
first.close()
print('one', flush=True)
while True:
    connection = second.accept()[0]
    connection.sendall(b'second')
    connection.close()
";
    let bundle = world.python(script, |_| ());
    order["definition"]["source"]["bundle"] = json!(bundle.text());
    let kept = world.keep_running(&order);
    kept.await_phase("ready");
    kept.tell("serve");
    eventually("it has closed one", || crate::printed(&world).contains(&"one".to_owned()));
    for _ in 0..50 {
        assert_eq!(greeting(port), "second");
    }
    // The next one beside it gets nothing, though a place in the map is empty.
    let next = world.keep_running(&beside(&world, &kept, "next", Network::Host));
    next.await_phase("ready");
    for _ in 0..50 {
        assert_eq!(greeting(port), "second");
    }
    next.tell("serve");
    assert_eq!(greeting(port), "next");
    kept.finish();
    next.finish();
}
