//! Methods that answer more than once, and callers who do not wait for the end.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use regen::control::Limits;
use serde_json::json;

use crate::harness::eventually;
use crate::local::Local;

#[test]
fn a_stream_continues_until_its_last_answer() {
    let server = Local::start(Limits::default());
    let mut caller = server.connect();
    caller.send(&json!({"method": "test.regen.Machine.Count", "parameters": {"to": 3}, "more": true}));
    for number in 1..=3 {
        let answer = caller.receive().unwrap();
        assert_eq!(answer["parameters"]["number"], number);
        assert_eq!(answer.get("continues"), (number < 3).then_some(&json!(true)), "{answer}");
    }
    // Who does not ask for more gets the last one only.
    let answer = caller.call(&json!({"method": "test.regen.Machine.Count", "parameters": {"to": 3}}));
    assert_eq!(answer["number"], 3);
}

#[test]
fn a_method_that_is_of_no_use_once_says_so() {
    let server = Local::start(Limits::default());
    let mut caller = server.connect();
    caller.send(&json!({"method": "test.regen.Machine.Wait"}));
    let (name, parameters) = caller.error();
    assert_eq!(name, "org.varlink.service.ExpectedMore");
    assert!(parameters["message"].as_str().unwrap().contains("'more'"), "{parameters}");
}

#[test]
fn a_caller_who_goes_ends_the_stream_although_nothing_happens_in_it() {
    let server = Local::start(Limits::default());
    let mut callers: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for caller in &mut callers {
        let begun = caller.call(&json!({"method": "test.regen.Machine.Wait", "more": true}));
        assert_eq!(begun["begun"], true);
    }
    assert_eq!((server.connections(), server.ended()), (5, 0));
    callers.truncate(2);
    eventually("three streams have ended", || server.connections() == 2 && server.ended() == 3);
    // One who only says that nothing more will come still listens; what comes in between waits.
    callers[0].stream.shutdown(std::net::Shutdown::Write).unwrap();
    callers[1].send(&json!({"method": "test.regen.Machine.Look"}));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(server.ended(), 3);
    callers.clear();
    eventually("all have ended", || server.connections() == 0 && server.ended() == 5);
}

#[test]
fn a_server_that_stops_ends_its_streams() {
    let server = Local::start(Limits::default());
    let mut caller = server.connect();
    caller.call(&json!({"method": "test.regen.Machine.Wait", "more": true}));
    drop(server);
    assert_eq!(caller.receive(), None);
}

#[test]
fn a_caller_who_does_not_read_is_let_go() {
    let silence = Duration::from_millis(200);
    let server = Local::start(Limits { silence, ..Limits::default() });
    let mut caller = server.connect();
    caller.send(&json!({"method": "test.regen.Machine.Flood", "more": true}));
    eventually("the stream has ended", || server.ended() == 1 && server.connections() == 0);
}

#[test]
fn who_stops_in_the_middle_of_a_call_is_told_and_closed_and_who_says_nothing_is_not() {
    let silence = Duration::from_millis(200);
    let server = Local::start(Limits { silence, ..Limits::default() });
    let mut quiet = server.connect();
    for half in [&b"{"[..], b"{\"method\":\"test.regen.Machine.Look\"}", b"\xff\xfe"] {
        let mut caller = server.connect();
        caller.stream.write_all(half).unwrap();
        caller.is_closed_with("run.regen.Control.MessageIncomplete");
    }
    assert_eq!(quiet.call(&json!({"method": "test.regen.Machine.Look"}))["uid"], 0);
}

nix::ioctl_read_bad!(
    /// Bytes that were sent and that the other end has not read (tcp(7), for all stream sockets).
    siocoutq,
    libc::TIOCOUTQ,
    libc::c_int
);

/// Bytes that were sent on it and that nobody has read.
pub fn unread(stream: &UnixStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the kernel writes an integer to where there is one.
    unsafe { siocoutq(stream.as_raw_fd(), &raw mut bytes) }.unwrap();
    bytes
}

#[test]
fn large_calls_share_what_there_is() {
    let limits = Limits { message: 300_000, incoming: 250_000, ..Limits::default() };
    let server = Local::start(limits);
    let text = "x".repeat(250_000);
    let call = json!({"method": "test.regen.Machine.Swallow", "parameters": {"text": text}});
    let (mut one, mut other) = (server.connect(), server.connect());
    // All but the end.
    let bytes = call.to_string();
    one.stream.write_all(bytes.as_bytes()).unwrap();
    eventually("it is received", || unread(&one.stream) == 0);
    assert_eq!(server.connect().call(&json!({"method": "test.regen.Machine.Look"}))["uid"], 0);
    let _ = other.stream.write_all(format!("{bytes}\0").as_bytes());
    other.is_closed_with("run.regen.Control.OutOfResources");
    one.stream.write_all(b"\0").unwrap();
    assert_eq!(one.receive().unwrap()["parameters"]["length"], 250_000);
    eventually("there is room again", || {
        other = server.connect();
        let _ = other.stream.write_all(format!("{bytes}\0").as_bytes());
        other.receive().is_some_and(|answer| answer.get("error").is_none())
    });
}
