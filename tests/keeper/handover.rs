//! Instances that come after each other at one address.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use serde_json::{Value, json};

use crate::harness::keeper::{GREETER, Kept};
use crate::harness::{World, eventually};
use crate::{greeting, replaced};

#[test]
fn connections_to_a_crashed_instance_wait_for_the_next_one() {
    let world = World::new("crash");
    let first = world.keep_running(&world.order("a", GREETER));
    first.await_phase("ready");
    first.tell("serve");
    let port = first.port();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(world.pid(&first.instance)), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let status = first.await_phase("ended");
    assert_eq!((&status["outcome"]["exit_code"], &status["outcome"]["requested"]), (&json!(137), &json!(false)));
    let mut waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
    waiting.write_all(b"x").unwrap();
    let (reply, sockets) = first.ask_for_sockets(&json!({"command": "sockets"}));
    let mut order = world.order("b", GREETER);
    order["listen"] = reply["listen"].clone();
    order["inherited"] = json!([0]);
    order["beside"] = json!(first.instance);
    let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let (second, reply) = world.keep(&order, &sockets);
    assert_eq!(reply["reply"], "status", "{reply}");
    second.await_phase("ready");
    second.tell("serve");
    first.tell("release");
    first.gone();
    waiting.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert_eq!(text, "b");
    assert_eq!(second.port(), port);
    second.finish();
}

/// A second instance of the same addresses, while the first one serves.
fn beside(world: &World, first: &Kept, name: &str, script: &str) -> Value {
    let mut order = world.order(name, script);
    order["listen"] = first.ask("status")["listen"].clone();
    order["beside"] = json!(first.instance);
    order
}

#[test]
fn a_new_instance_gets_connections_once_it_is_to_serve_and_only_the_keepers_questions_before() {
    let world = World::new("beside");
    let first = world.keep_running(&world.order("first", GREETER));
    first.await_phase("ready");
    first.tell("serve");
    let port = first.port();
    let script = GREETER.replace(
        "listener = ",
        "
import time
while not os.path.exists('/tmp/go'): time.sleep(0.005)
listener = ",
    );
    let second = world.keep_running(&beside(&world, &first, "second", &script));
    assert_eq!((0..20).map(|_| greeting(port)).collect::<Vec<_>>(), vec!["first"; 20]);
    assert_eq!(second.ask("status")["phase"], "starting", "it accepts nothing yet");
    fs::write(world.rootfs().join("tmp/go"), "").unwrap();
    second.await_phase("ready");
    assert_eq!((0..20).map(|_| greeting(port)).collect::<Vec<_>>(), vec!["first"; 20]);
    second.tell("serve");
    assert_eq!((0..20).map(|_| greeting(port)).collect::<Vec<_>>(), vec!["second"; 20]);
    first.finish();
    assert_eq!(greeting(port), "second");
    let third = world.keep_running(&beside(&world, &second, "third", GREETER));
    third.await_phase("ready");
    third.tell("serve");
    assert_eq!(greeting(port), "third");
    second.finish();
    third.finish();
}

#[test]
fn a_new_instance_that_crashes_leaves_the_old_one_serving() {
    let world = World::new("crashes");
    let first = world.keep_running(&world.order("first", GREETER));
    first.await_phase("ready");
    first.tell("serve");
    for (name, script, ready) in [
        ("at-once", "import sys; print('no', flush=True); sys.exit(3)", "tcp"),
        // It has been asked by then.
        ("later", "import socket, sys; socket.socket(fileno=3).accept(); sys.exit(3)", "http:/"),
    ] {
        let mut order = beside(&world, &first, name, script);
        order["definition"]["ready"] = json!(ready);
        let second = world.keep_running(&order);
        let status = second.await_phase("ended");
        assert_eq!(status["outcome"]["exit_code"], 3, "{status:#}");
        second.tell("release");
        second.gone();
        assert_eq!((0..20).map(|_| greeting(first.port())).collect::<Vec<_>>(), vec!["first"; 20]);
    }
    let last = world.keep_running(&beside(&world, &first, "last", GREETER));
    last.await_phase("ready");
    last.tell("serve");
    assert_eq!(greeting(first.port()), "last");
    first.finish();
    last.finish();
}

#[test]
fn a_unix_socket_is_there_while_somebody_serves_and_never_missing_meanwhile() {
    let world = World::new("unix");
    let path = world.base().join("web.sock");
    let order = |name: &str| {
        let mut order = world.order(name, GREETER);
        order["listen"] = json!([{"name": "web", "address": format!("unix:{}", path.display())}]);
        order["definition"]["listen"] = order["listen"].clone();
        order["definition"]["ready"] = json!("none");
        order
    };
    let greeting = || {
        let mut connection = std::os::unix::net::UnixStream::connect(&path).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).unwrap();
        text
    };
    replaced(&world, &order, &greeting);
    assert!(!path.exists());
}

/// A client that has been accepted and is not served yet.
fn client(port: u16) -> TcpStream {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.read_exact(&mut [0]).unwrap();
    connection
}

/// A greeter that serves any number of clients at once.
fn patient() -> String {
    GREETER.replace("connection, _ = listener.accept()", "import threading; held = listener.accept()[0]; threading.Thread(target=lambda held: (held.sendall(b'x'), held.recv(9), held.close()), args=[held], daemon=True).start(); continue")
}

fn drain(kept: &Kept, timeout: u64, succeeded: bool) {
    let order = json!({"command": "drain", "timeout": timeout, "grace": 0, "succeeded": succeeded});
    assert_eq!(kept.ask_for_sockets(&order).0, json!({"reply": "done"}));
}

#[test]
fn an_instance_finishes_its_connections_before_it_ends() {
    let world = World::new("drain");
    let kept = world.keep_running(&world.order("a", &patient()));
    kept.await_phase("ready");
    kept.tell("serve");
    let connections = [client(kept.port()), client(kept.port())];
    drain(&kept, 60_000, false);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(kept.ask("status")["phase"], "draining");
    for mut connection in connections {
        connection.write_all(b"done").unwrap();
        assert_eq!(connection.read(&mut [0]).unwrap(), 0);
    }
    let outcome = kept.await_phase("ended")["outcome"].clone();
    assert_eq!((&outcome["cut"], &outcome["exit_code"]), (&json!(0), &json!(0)), "{outcome:#}");
    kept.tell("release");
    kept.gone();
}

#[test]
fn connections_that_are_left_when_the_time_is_over_are_cut_and_counted() {
    let world = World::new("cut");
    let kept = world.keep_running(&world.order("a", &patient()));
    kept.await_phase("ready");
    kept.tell("serve");
    let _connections = [client(kept.port()), client(kept.port())];
    drain(&kept, 200, false);
    assert_eq!(kept.await_phase("ended")["outcome"]["cut"], 2);
    kept.tell("release");
    kept.gone();
}

#[test]
fn what_waits_for_an_instance_that_hangs_moves_to_its_successor() {
    let world = World::new("moves");
    let script = GREETER.replace("while True:", "import time\nlistener.accept()\ntime.sleep(1000)\nwhile True:");
    let first = world.keep_running(&world.order("first", &script));
    first.await_phase("ready");
    first.tell("serve");
    let port = first.port();
    let waiting = std::thread::spawn(move || greeting(port));
    eventually("it waits", || {
        let (_, sockets) = first.ask_for_sockets(&json!({"command": "sockets"}));
        regen::sys::socket::Socket::from(sockets.into_iter().next().unwrap()).queue().unwrap().waiting == 1
    });
    let second = world.keep_running(&beside(&world, &first, "second", GREETER));
    second.await_phase("ready");
    second.tell("serve");
    drain(&first, 200, true);
    let outcome = first.await_phase("ended")["outcome"].clone();
    assert_eq!(outcome["cut"], 1, "{outcome:#}");
    assert_eq!(waiting.join().unwrap(), "second");
    first.tell("release");
    first.gone();
    second.finish();
}

/// A program of nobody's that listens, as a child of the test.
struct Stranger(std::process::Child, u16);

impl Stranger {
    fn new() -> Self {
        Self::running(
            "
import os, socket
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('127.0.0.1', 0))
listener.listen(5)
print(listener.getsockname()[1], flush=True)
while True:
    connection = listener.accept()[0]
    connection.sendall(b'stranger')
    connection.close()
",
        )
    }

    /// One that prints its port.
    fn running(script: &str) -> Self {
        let mut child = std::process::Command::new("/usr/bin/python3")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        Self(child, line.trim().parse().unwrap())
    }

    fn order(&self, world: &World, port: u16) -> Value {
        let mut order = world.order("adopted", "");
        let pid = i32::try_from(self.0.id()).unwrap();
        order["adopt"] = serde_json::to_value(regen::sys::process::Identity::of(pid).unwrap()).unwrap();
        order["definition"]["source"] = Value::Null;
        order["listen"][0]["address"] = json!(format!("tcp://127.0.0.1:{port}"));
        order
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_program_that_runs_already_becomes_an_instance_and_has_a_successor() {
    let world = World::new("adopt");
    let mut stranger = Stranger::new();
    let adopted = world.keep_running(&stranger.order(&world, stranger.1));
    adopted.await_phase("ready");
    adopted.tell("serve");
    let (pid, port) = (stranger.0.id(), stranger.1);
    assert_eq!(adopted.ask("status")["init"]["pid"], pid);
    assert_eq!(greeting(port), "stranger");
    let next = world.keep_running(&beside(&world, &adopted, "next", GREETER));
    next.await_phase("ready");
    assert_eq!(greeting(port), "stranger");
    next.tell("serve");
    assert_eq!((0..10).map(|_| greeting(port)).collect::<Vec<_>>(), vec!["next"; 10]);
    drain(&adopted, 60_000, true);
    eventually("the stranger has ended", || stranger.0.try_wait().unwrap().is_some());
    assert_eq!(adopted.await_phase("ended")["outcome"]["exit_code"], Value::Null, "its parent alone learns it");
    assert_eq!(greeting(port), "next");
    adopted.tell("release");
    adopted.gone();
    next.finish();
}

#[test]
fn a_socket_that_an_adopted_program_closes_while_it_has_another_gets_no_connections_any_more() {
    let world = World::new("adoptcloses");
    let stranger = Stranger::running(
        "
import signal, socket
def listen(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(('127.0.0.1', port))
    listener.listen(5)
    return listener
first = listen(0)
second = listen(first.getsockname()[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print(first.getsockname()[1], flush=True)
signal.sigwait([signal.SIGUSR1])
first.close()
while True:
    connection = second.accept()[0]
    connection.sendall(b'second')
    connection.close()
",
    );
    let mut order = stranger.order(&world, stranger.1);
    order["definition"]["ready"] = json!("none");
    let adopted = world.keep_running(&order);
    adopted.await_phase("ready");
    adopted.tell("serve");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(stranger.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    for _ in 0..50 {
        assert_eq!(greeting(stranger.1), "second");
    }
    drain(&adopted, 60_000, false);
    adopted.await_phase("ended");
    adopted.tell("release");
    adopted.gone();
}

#[test]
fn a_program_that_does_not_listen_where_it_should_is_not_adopted_and_goes_on() {
    let world = World::new("adoptnot");
    let mut stranger = Stranger::new();
    let (kept, reply) = world.keep(&stranger.order(&world, 1), &[]);
    assert_eq!(reply["error"]["kind"], "NotFound", "{reply}");
    kept.gone();
    assert!(stranger.0.try_wait().unwrap().is_none());
    assert_eq!(greeting(stranger.1), "stranger");
}
