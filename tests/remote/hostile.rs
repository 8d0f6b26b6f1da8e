//! Strangers who misbehave before anybody knows them, and nodes that do.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use regen::control::PROTOCOL;
use regen::control::remote::Bounds;
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::harness::eventually;
use crate::node::{Node, ask, dialer};

/// Whether the other end has closed, for whatever reason.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// The first bytes of a handshake, cut off.
const HALF: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

#[test]
fn two_hundred_strangers_who_say_nothing_keep_no_node_out() {
    let authority = Authority::new(&["n1", "n2"]);
    let bounds = Bounds { handshakes: 16, time: Duration::from_secs(60) };
    let n2 = Node::start_with(authority.certificates("n2"), bounds, PROTOCOL);
    let mut strangers: Vec<_> = (0..200).map(|_| TcpStream::connect(n2.address).unwrap()).collect();
    let dialer = dialer(authority.certificates("n1"));
    assert_eq!(ask(&dialer, "n2", n2.address).unwrap(), "node 'n1'");
    // Those who came first are gone.
    assert!(is_closed(&mut strangers[0]) && is_closed(&mut strangers[150]));
    assert_eq!(n2.gauge.connections(), 1);
}

#[test]
fn a_handshake_that_is_not_finished_in_time_is_ended() {
    let authority = Authority::new(&["n1", "n2"]);
    let bounds = Bounds { handshakes: 64, time: Duration::from_millis(300) };
    let n2 = Node::start_with(authority.certificates("n2"), bounds, PROTOCOL);
    let mut silent = TcpStream::connect(n2.address).unwrap();
    let mut half = TcpStream::connect(n2.address).unwrap();
    half.write_all(HALF).unwrap();
    assert!(is_closed(&mut silent) && is_closed(&mut half));
    ask(&dialer(authority.certificates("n1")), "n2", n2.address).unwrap();
}

#[test]
fn garbage_and_plain_calls_are_closed_and_never_read_as_messages() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let call: &[u8] = b"{\"method\":\"test.regen.Machine.Who\"}\0";
    let noise: Vec<u8> = (0..70_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut record = vec![0x16, 3, 3, 0xff, 0xff];
    record.extend_from_slice(&noise);
    for garbage in [call, b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0\0\0\0\0", &noise, &record] {
        let mut stream = TcpStream::connect(n2.address).unwrap();
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.contains(&b'{'), "a stranger was answered: {answer:?}");
        assert_eq!(n2.gauge.connections(), 0);
    }
    ask(&dialer(authority.certificates("n1")), "n2", n2.address).unwrap();
}

#[test]
fn those_who_come_and_go_at_once_leave_nothing() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let dialer = dialer(authority.certificates("n1"));
    for round in 0..50 {
        let mut stream = TcpStream::connect(n2.address).unwrap();
        stream.write_all(&HALF[..round % HALF.len()]).unwrap();
        drop(stream);
        drop(dialer.connect(&"n2".parse().unwrap(), n2.address).unwrap());
    }
    eventually("they are gone", || n2.gauge.connections() == 0);
}

#[test]
fn one_node_cannot_have_all_connections() {
    let authority = Authority::new(&["n1", "n2", "n3"]);
    let n2 = Node::start(authority.certificates("n2"));
    let (greedy, other) = (dialer(authority.certificates("n1")), dialer(authority.certificates("n3")));
    let name = "n2".parse().unwrap();
    let _lines: Vec<_> = (0..64).map(|_| greedy.connect(&name, n2.address).unwrap()).collect();
    let error = greedy.connect(&name, n2.address).unwrap_err().to_string();
    assert!(error.contains("node 'n1' has 64 connections, which is all that one may have"), "{error}");
    assert_eq!(ask(&other, "n2", n2.address).unwrap(), "node 'n3'");
}

#[test]
fn a_node_that_sends_and_does_not_read_harms_nobody_else() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let dialer = dialer(authority.certificates("n1"));
    let mut deaf = dialer.connect(&"n2".parse().unwrap(), n2.address).unwrap();
    deaf.set_patience(Some(Duration::from_millis(300)));
    let text = "x".repeat(4 << 20);
    let sent = (0..50).take_while(|_| {
        deaf.send("test.regen.Machine.Echo", &json!({"text": text}), regen::control::Mode::Once).is_ok()
    });
    assert!(sent.count() < 50, "everything was taken, and nothing read");
    ask(&dialer, "n2", n2.address).unwrap();
    drop(deaf);
    eventually("it is gone", || n2.gauge.connections() == 1);
    let answer: Value =
        dialer.call((&"n2".parse().unwrap(), n2.address), "test.regen.Machine.Echo", &json!({"a": 1})).unwrap();
    assert_eq!(answer, json!({"a": 1}));
}
