//! Programs that run already, and become the first instance of a service.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use regen::sys::process::Identity;
use serde_json::{Value, json};

use crate::harness::load::{Load, Plan, Protocol, Target};
use crate::harness::port::free_port;
use crate::harness::{World, eventually};
use crate::program::{Network, body, nginx, order, order_in, site};
use crate::tcp::succeed;

/// A program of the host's, which ends with the test.
struct Running(Child);

impl Running {
    fn start(world: &World, name: &str, words: &[&str], address: SocketAddr) -> Self {
        let directory = site(world, name);
        // What a container finds in /srv.
        let words: Vec<_> = words.iter().map(|word| word.replace("/srv", directory.to_str().unwrap())).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(directory).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let running = Self(command.spawn().unwrap());
        eventually("it listens", || std::net::TcpStream::connect(address).is_ok());
        running
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.pid());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// An order to keep a process.
fn adoption(world: &World, name: &str, pid: i32, listen: &[&str]) -> Value {
    let mut order = order(world, name, &[], listen);
    order["definition"]["source"] = Value::Null;
    order["adopt"] = serde_json::to_value(Identity::of(pid).unwrap()).unwrap();
    order
}

/// Adopts what runs, and puts an instance of ours in its place, while clients ask.
fn is_succeeded_without_loss(world: &World, mut running: Running, plan: Plan, listen: &str, next: &[Value]) {
    let load = Load::start(plan);
    load.wait_for(50);
    let mut kept = world.keep_running(&adoption(world, "adopted", running.pid(), &[listen]));
    kept.await_phase("ready");
    kept.tell("serve");
    for order in next {
        load.wait_for(50);
        kept = succeed(world, kept, order.clone());
    }
    assert!(running.0.try_wait().unwrap().is_some(), "the adopted program has ended");
    load.wait_for(50);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    kept.finish();
}

fn http(address: SocketAddr, names: &[&str]) -> Plan {
    let plan = Plan::http(Target::Tcp(address), "/body", body("old").as_bytes());
    names.iter().fold(plan, |plan, name| plan.or(body(name).as_bytes()))
}

#[test]
fn pythons_own_server() {
    let world = World::new("ap");
    let port = free_port("127.0.0.1");
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let port = port.to_string();
    let words = ["/usr/bin/python3", "-m", "http.server", &port];
    let running = Running::start(&world, "old", &words, address);
    let listen = format!("tcp://0.0.0.0:{port}");
    let next = ["a", "b"].map(|name| order(&world, name, &words, &[&listen]));
    is_succeeded_without_loss(&world, running, http(address, &["a", "b"]), &listen, &next);
}

#[test]
fn nginx_with_workers() {
    let world = World::new("an");
    let port = free_port("127.0.0.1");
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let words = |name: &str| {
        let words = nginx(&world, name, &[address.to_string()], "");
        if name == "old" {
            let file = site(&world, name).join("nginx.conf");
            let text = std::fs::read_to_string(&file).unwrap();
            let text = text.replace("/tmp/", &format!("{}/", world.base().display()));
            std::fs::write(&file, text.replace("/srv", site(&world, name).to_str().unwrap())).unwrap();
        }
        words
    };
    let old = words("old");
    let old: Vec<&str> = old.iter().map(String::as_str).collect();
    let running = Running::start(&world, "old", &old, address);
    let listen = format!("tcp://127.0.0.1:{port}");
    let next = ["a", "b"].map(|name| {
        let words = words(name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        order(&world, name, &words, &[&listen])
    });
    is_succeeded_without_loss(&world, running, http(address, &["a", "b"]), &listen, &next);
}

#[test]
fn redis_which_a_program_with_a_passed_socket_follows() {
    let world = World::new("ar");
    let port = free_port("127.0.0.1");
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let port = port.to_string();
    let words = ["/usr/bin/redis-server", "--port", &port, "--bind", "127.0.0.1", "--save", ""];
    let running = Running::start(&world, "old", &words, address);
    let listen = format!("tcp://127.0.0.1:{port}");
    // A stand-in that is given its socket.
    let script = "
import socket
listener = socket.socket(fileno=3)
while True:
    connection, text = listener.accept()[0], b''
    while not text.endswith(b'QUIT\\r\\n'):
        more = connection.recv(100)
        if not more: break
        text += more
    if text: connection.sendall(b'+PONG\\r\\n+OK\\r\\n')
    connection.close()
";
    let mut passed = order_in(&world, "a", &["/usr/bin/python3", "-c", script], &[&listen], Network::Host);
    passed["definition"]["handover"] = json!("listen-fds");
    let mut plan = http(address, &[]);
    plan.protocol = Protocol::Bytes;
    plan.requests[0].bytes = b"PING\r\nQUIT\r\n".to_vec();
    plan.requests[0].answers = vec![b"+PONG\r\n+OK\r\n".to_vec()];
    let back = order(&world, "b", &words, &[&listen]);
    is_succeeded_without_loss(&world, running, plan, &listen, &[passed, back]);
}

#[test]
fn what_cannot_be_adopted_is_named() {
    let world = World::new("ax");
    let port = free_port("127.0.0.1");
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let text = port.to_string();
    let running = Running::start(&world, "old", &["/usr/bin/python3", "-m", "http.server", &text], address);
    let refused = |order: &Value| {
        let (kept, reply) = world.keep(order, &[]);
        assert_eq!(reply["reply"], "failed", "{reply}");
        kept.gone();
        reply["error"].to_string()
    };
    let elsewhere = refused(&adoption(&world, "a", running.pid(), &["tcp://0.0.0.0:1"]));
    assert!(elsewhere.contains("it does not listen on tcp://0.0.0.0:1"), "{elsewhere}");
    assert!(elsewhere.contains(&format!("tcp://0.0.0.0:{port}")), "{elsewhere}");
    let mut gone = adoption(&world, "b", running.pid(), &["tcp://0.0.0.0:1"]);
    gone["adopt"]["start_time"] = json!(1);
    let gone = refused(&gone);
    assert!(gone.contains("it has ended"), "{gone}");
    // It goes on.
    assert!(std::net::TcpStream::connect(address).is_ok());
}
