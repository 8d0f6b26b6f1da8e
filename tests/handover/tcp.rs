//! Servers on TCP ports, restarted while clients ask.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::keeper::Kept;
use crate::harness::load::{Load, Plan, Target};
use crate::harness::port::free_port;
use crate::program::{Network, body, build, haproxy, nginx, order, order_in, words};

/// How often each is restarted.
pub const ROUNDS: usize = 3;

/// Starts the first instance.
pub fn first(world: &World, order: &Value) -> Kept {
    let kept = world.keep_running(order);
    kept.await_phase("ready");
    kept.tell("serve");
    kept
}

/// Puts a new instance in the place of the old one.
pub fn succeed(world: &World, old: Kept, mut order: Value) -> Kept {
    order["beside"] = json!(old.instance);
    let new = world.keep_running(&order);
    new.await_phase("ready");
    new.tell("serve");
    let drain = json!({"command": "drain", "timeout": 20_000, "grace": 0, "succeeded": true});
    assert_eq!(old.ask_for_sockets(&drain).0["reply"], "done");
    let outcome = old.await_phase("ended")["outcome"].clone();
    assert_eq!(outcome["cut"], 0, "{outcome}");
    old.tell("release");
    old.gone();
    new
}

/// Restarts a service under load; the words of an instance depend on its name.
fn restarts_without_loss(
    world: &World,
    listen: &[&str],
    network: Network,
    words_of: &dyn Fn(&str) -> Vec<String>,
    targets: &[SocketAddr],
) {
    let targets: Vec<_> = targets.iter().copied().map(Target::Tcp).collect();
    restarts(world, listen, network, words_of, &targets);
}

/// The same for clients of any kind of socket.
pub fn restarts(
    world: &World,
    listen: &[&str],
    network: Network,
    words_of: &dyn Fn(&str) -> Vec<String>,
    targets: &[Target],
) {
    let names: Vec<String> = (0..=ROUNDS).map(|round| format!("i{round}")).collect();
    let make = |name: &str| {
        let words = words_of(name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut order = order_in(world, name, &words, listen, network);
        if !listen.iter().any(|address| address.starts_with("tcp")) {
            order["definition"]["ready"] = json!("none");
        }
        order
    };
    let mut kept = first(world, &make(&names[0]));
    let loads: Vec<Load> = targets
        .iter()
        .map(|target| {
            let mut plan = Plan::http(target.clone(), "/body", body(&names[0]).as_bytes());
            for name in &names[1..] {
                plan = plan.or(body(name).as_bytes());
            }
            Load::start(Plan { threads: 2, ..plan })
        })
        .collect();
    for name in &names[1..] {
        loads.iter().for_each(|load| load.wait_for(50));
        kept = succeed(world, kept, make(name));
    }
    loads.iter().for_each(|load| load.wait_for(50));
    for load in loads {
        let outcome = load.stop();
        assert_eq!(outcome.failed(), 0, "{outcome}");
    }
    assert_eq!(kept.ask("status")["notes"], json!([]));
    kept.finish();
}

fn local(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

#[test]
fn pythons_own_server() {
    let world = World::new("hp");
    let port = free_port("127.0.0.1");
    let words = |_: &str| words(&["/usr/bin/python3", "-m", "http.server", &port.to_string()]);
    let listen = format!("tcp://0.0.0.0:{port}");
    restarts_without_loss(&world, &[&listen], Network::Host, &words, &[local("127.0.0.1", port)]);
}

#[test]
fn pythons_own_server_in_a_network_of_its_own() {
    let world = World::new("hpn");
    let port = free_port("127.0.0.1");
    let words = |_: &str| words(&["/usr/bin/python3", "-m", "http.server", &port.to_string()]);
    let listen = format!("tcp://127.0.0.1:{port}");
    restarts_without_loss(&world, &[&listen], Network::Own, &words, &[local("127.0.0.1", port)]);
}

#[test]
fn nginx_with_workers_at_both_versions_of_ip() {
    let world = World::new("hn");
    let port = free_port("::");
    let words = |name: &str| nginx(&world, name, &[format!("0.0.0.0:{port}"), format!("[::]:{port}")], "");
    let listen = [&*format!("tcp://0.0.0.0:{port}"), &*format!("tcp://[::]:{port}")];
    let targets = [local("127.0.0.1", port), local("::1", port)];
    restarts_without_loss(&world, &listen, Network::Host, &words, &targets);
}

#[test]
fn nginx_with_a_socket_for_each_worker() {
    let world = World::new("hnr");
    let port = free_port("127.0.0.1");
    let words = |name: &str| nginx(&world, name, &[format!("127.0.0.1:{port}")], "reuseport");
    let listen = format!("tcp://127.0.0.1:{port}");
    restarts_without_loss(&world, &[&listen], Network::Host, &words, &[local("127.0.0.1", port)]);
}

#[test]
fn nginx_in_a_network_of_its_own_on_several_ports() {
    let world = World::new("hnn");
    let ports = [free_port("127.0.0.1"), free_port("127.0.0.1")];
    let words = |name: &str| nginx(&world, name, &ports.map(|port| format!("0.0.0.0:{port}")), "");
    let listen = ports.map(|port| format!("tcp://127.0.0.1:{port}"));
    let listen = listen.each_ref().map(String::as_str);
    let targets = ports.map(|port| local("127.0.0.1", port));
    restarts_without_loss(&world, &listen, Network::Own, &words, &targets);
}

#[test]
fn haproxy_with_a_master_and_threads() {
    let world = World::new("hh");
    let port = free_port("127.0.0.1");
    let words = |name: &str| haproxy(&world, name, &[format!("127.0.0.1:{port}")]);
    let listen = format!("tcp://127.0.0.1:{port}");
    restarts_without_loss(&world, &[&listen], Network::Host, &words, &[local("127.0.0.1", port)]);
}

const GO: &str = r#"
package main

import ("fmt"; "net/http"; "os")

func main() {
    http.HandleFunc("/body", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "this is %s\n", os.Args[2]) })
    fmt.Println(http.ListenAndServe(":" + os.Args[1], nil))
}
"#;

#[test]
fn a_static_program_in_go_on_both_versions_of_ip() {
    let world = World::new("hg");
    build(&world, "server.go", GO);
    let port = free_port("::");
    let words = |name: &str| words(&["/server", &port.to_string(), name]);
    let listen = [&*format!("tcp://0.0.0.0:{port}"), &*format!("tcp://[::]:{port}")];
    let targets = [local("127.0.0.1", port), local("::1", port)];
    restarts_without_loss(&world, &listen, Network::Host, &words, &targets);
}

#[test]
fn a_static_program_in_go_in_a_network_of_its_own() {
    let world = World::new("hgn");
    build(&world, "server.go", GO);
    let port = free_port("::");
    let words = |name: &str| words(&["/server", &port.to_string(), name]);
    let listen = [&*format!("tcp://0.0.0.0:{port}"), &*format!("tcp://[::]:{port}")];
    let targets = [local("127.0.0.1", port), local("::1", port)];
    restarts_without_loss(&world, &listen, Network::Own, &words, &targets);
}

/// A backlog of one, one connection at a time, and no thought of signals.
const C: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int one = 1, s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    char text[200], in[4096];
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s, (void *)&a, sizeof a) || listen(s, 1)) { perror("listen"); return 1; }
    snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %zu\r\n\r\nthis is %s\n",
             strlen(argv[2]) + 9, argv[2]);
    for (;;) {
        int c = accept(s, 0, 0);
        if (read(c, in, sizeof in) > 0 && write(c, text, strlen(text)) > 0) { shutdown(c, SHUT_WR); read(c, in, sizeof in); }
        close(c);
    }
}
"#;

#[test]
fn a_static_program_in_c_with_a_backlog_of_one() {
    let world = World::new("hc");
    build(&world, "server.c", C);
    let port = free_port("127.0.0.1");
    let words = |name: &str| words(&["/server", &port.to_string(), name]);
    let listen = format!("tcp://127.0.0.1:{port}");
    restarts_without_loss(&world, &[&listen], Network::Host, &words, &[local("127.0.0.1", port)]);
}

#[test]
fn redis() {
    let world = World::new("hr");
    let port = free_port("127.0.0.1");
    let listen = format!("tcp://127.0.0.1:{port}");
    let make = |name: &str| {
        let words = ["/usr/bin/redis-server", "--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""];
        order(&world, name, &words, &[&listen])
    };
    let mut kept = first(&world, &make("i0"));
    let mut plan = Plan::http(Target::Tcp(local("127.0.0.1", port)), "/", b"");
    plan.protocol = crate::harness::load::Protocol::Bytes;
    plan.requests[0].bytes = b"PING\r\nQUIT\r\n".to_vec();
    plan.requests[0].answers = vec![b"+PONG\r\n+OK\r\n".to_vec()];
    let load = Load::start(plan);
    for round in 1..=ROUNDS {
        load.wait_for(50);
        kept = succeed(&world, kept, make(&format!("i{round}")));
    }
    load.wait_for(50);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    kept.finish();
}
