//! What nodes say to each other.

use std::net::TcpListener;
use std::time::Duration;

use regen::control::remote::{Bounds, Dialer, Timeouts};
use regen::error::Kind;
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::harness::eventually;
use crate::node::{Node, ask, dialer};

#[test]
fn a_node_is_known_by_its_certificate() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    assert_eq!(ask(&dialer(authority.certificates("n1")), "n2", n2.address).unwrap(), "node 'n1'");
}

#[test]
fn answers_that_come_one_by_one_and_long_ones_arrive_whole() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let dialer = dialer(authority.certificates("n1"));
    let mut line = dialer.connect(&"n2".parse().unwrap(), n2.address).unwrap();
    let mut count = 0;
    let each = |answer: Value| {
        count += 1;
        assert_eq!(answer["number"], count);
        Ok(())
    };
    line.stream("test.regen.Machine.Count", &json!({"to": 3000}), each).unwrap();
    assert_eq!(count, 3000);
    let text = "lorem ipsum ".repeat(1 << 20);
    let (answer, _) = line.call::<Value>("test.regen.Machine.Echo", &json!({"text": text})).unwrap();
    assert!(answer["text"].as_str() == Some(&text), "it came back different");
}

#[test]
fn the_next_call_goes_over_the_connection_that_is_there() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let dialer = dialer(authority.certificates("n1"));
    for _ in 0..20 {
        ask(&dialer, "n2", n2.address).unwrap();
        assert_eq!(n2.gauge.connections(), 1);
    }
}

#[test]
fn a_connection_that_its_node_has_closed_is_not_used_again() {
    let authority = Authority::new(&["n1", "n2"]);
    let dialer = dialer(authority.certificates("n1"));
    let n2 = Node::start(authority.certificates("n2"));
    let address = n2.address;
    ask(&dialer, "n2", address).unwrap();
    drop(n2);
    eventually("the end of the connection arrives", || {
        ask(&dialer, "n2", address).unwrap_err() == format!("connect to node 'n2' at {address}: nobody listens there")
    });
}

#[test]
fn nodes_may_call_what_is_for_nodes_and_get_no_files() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let dialer = dialer(authority.certificates("n1"));
    let name = "n2".parse().unwrap();
    let call = |method: &str| dialer.call::<Value>((&name, n2.address), method, &json!({})).unwrap_err();
    let refused = call("test.regen.Machine.Change").to_string();
    assert!(
        refused.ends_with("node 'n1' may not call test.regen.Machine.Change: callers of this machine may"),
        "{refused}"
    );
    let refused = call("test.regen.Machine.Files");
    let words = "open files cannot go to another machine: call it there, or a method without files";
    assert!(refused.to_string().contains(words), "{refused}");
    assert_eq!(call("test.regen.Machine.Nothing").kind(), Kind::Unsupported);
}

#[test]
fn a_caller_who_goes_ends_the_method_that_waits() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let dialer = dialer(authority.certificates("n1"));
    let mut line = dialer.connect(&"n2".parse().unwrap(), n2.address).unwrap();
    line.set_patience(Some(Duration::from_millis(200)));
    let error = line.call::<Value>("test.regen.Machine.Sleep", &json!({})).unwrap_err();
    assert!(error.to_string().ends_with("nothing has happened for 0.2 s"), "{error}");
    assert_eq!(n2.gauge.connections(), 1);
    drop(line);
    eventually("the method has ended", || n2.gauge.connections() == 0);
}

#[test]
fn a_node_with_a_newer_protocol_is_not_called() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start_with(authority.certificates("n2"), Bounds::default(), 99);
    let error = ask(&dialer(authority.certificates("n1")), "n2", n2.address).unwrap_err();
    assert!(error.ends_with("it speaks protocol 99, and this node up to 1: update this one first"), "{error}");
}

#[test]
fn nobody_waits_for_ever_for_one_that_does_not_answer() {
    let authority = Authority::new(&["n1"]);
    let timeouts = Timeouts { hello: Duration::from_millis(200), ..Timeouts::default() };
    let dialer = Dialer::new(authority.certificates("n1"), timeouts);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    assert_eq!(
        ask(&dialer, "n2", address).unwrap_err(),
        format!("connect to node 'n2' at {address}: it does not answer")
    );
}
