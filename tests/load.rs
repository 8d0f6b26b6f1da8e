//! The clients that other tests and the benchmark rely on: they see every way in which a request can fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "harness/load/mod.rs"]
mod load;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use load::answer::{After, Progress, check_bytes, check_http};
use load::{Connections, Load, Outcome, Plan, Protocol, Target, http_request, redis_request};

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer";

/// A server for one test: what it does with each connection whose request it has read.
fn serve(handle: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                handle(stream);
            }
        }
    });
    address
}

/// A server that says this and closes.
fn say(text: &'static str) -> SocketAddr {
    serve(move |mut stream| stream.write_all(text.as_bytes()).unwrap())
}

fn plan(address: SocketAddr) -> Plan {
    Plan { threads: 1, patience: Duration::from_millis(300), ..Plan::http(Target::Tcp(address), "/", b"answer") }
}

/// So many requests, or some more.
fn load(plan: Plan, requests: u64) -> Outcome {
    let load = Load::start(plan);
    load.wait_for(requests);
    load.stop()
}

fn only_reason(outcome: &Outcome) -> &str {
    assert_eq!((outcome.failed(), outcome.reasons.len()), (outcome.requests, 1), "{outcome}");
    outcome.reasons.keys().next().unwrap()
}

#[test]
fn right_answers_are_no_failures_and_each_has_a_latency() {
    let outcome = load(Plan { threads: 3, ..plan(say(GOOD)) }, 100);
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(outcome.requests >= 100 && outcome.latencies.len() as u64 == outcome.requests);
    assert!(outcome.latencies.is_sorted() && outcome.percentile(50.0) <= outcome.percentile(100.0));
    assert_eq!((outcome.connected, &outcome.answers), (outcome.requests, &vec![outcome.requests]));
    let json: serde_json::Value = serde_json::from_str(&outcome.to_json()).unwrap();
    assert_eq!((&json["failed"], json["requests"].as_u64()), (&0.into(), Some(outcome.requests)));
}

#[test]
fn answers_of_two_versions_are_told_apart() {
    let plan = plan(say("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nnew")).or(b"new");
    let outcome = load(plan, 10);
    assert_eq!((outcome.failed(), &outcome.answers), (0, &vec![0, outcome.requests]), "{outcome}");
}

#[test]
fn every_wrong_answer_is_a_failure_with_its_reason() {
    for (text, reason) in [
        ("", "read: closed after no bytes"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "read: closed after some bytes"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nansw", "read: closed after some bytes"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer!", "body: 7 bytes, 6 were announced"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nANSWER", "body: another one"),
        ("HTTP/1.1 200 OK\r\n\r\nanswer", "head: no Content-Length"),
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\nanswer", "status: HTTP/1.1 502 Bad Gateway"),
        ("SSH-2.0-x\r\n\r\n", "status: SSH-2.0-x"),
    ] {
        assert_eq!(only_reason(&load(plan(say(text)), 3)), reason);
    }
}

#[test]
fn refused_reset_and_silent_connections_are_failures() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(only_reason(&load(plan(nobody), 3)), "connect: ECONNREFUSED");

    // Closed with bytes unread: the kernel sends a reset.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().peek(&mut [0; 1]).unwrap();
        }
    });
    assert_eq!(only_reason(&load(plan(address), 3)), "read: ECONNRESET");

    let silent = serve(std::mem::forget);
    assert_eq!(only_reason(&load(plan(silent), 1)), "read: no answer in time");
}

#[test]
fn a_reset_in_place_of_the_end_is_a_failure_though_the_answer_has_come() {
    // What is still unread when the server closes resets the connection behind the answer.
    let address = serve(|mut stream| {
        stream.write_all(GOOD.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    });
    let mut request = plan(address);
    request.requests[0].bytes.resize(8000, b' ');
    assert_eq!(only_reason(&load(request, 2)), "read of the rest: ECONNRESET");
}

#[test]
fn kept_connections_that_are_closed_between_requests_are_counted_apart() {
    // Two answers on each connection, then the end.
    let address = serve(|mut stream| {
        stream.write_all(GOOD.as_bytes()).unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(GOOD.as_bytes()).unwrap();
        let _ = stream.shutdown(Shutdown::Both);
    });
    let mut plan = Plan { connections: Connections::Kept, ..plan(address) };
    plan.requests[0].bytes = http_request("/", Connections::Kept);
    let outcome = load(plan, 20);
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(outcome.retired >= 9 && outcome.connected < outcome.requests, "{outcome:?}");
}

#[test]
fn a_rate_is_kept_and_pauses_do_not_count_as_latency() {
    let pause = Duration::from_millis(20);
    let outcome = load(Plan { rate: Some(200.0), threads: 8, pause, ..plan(say(GOOD)) }, 60);
    assert_eq!(outcome.failed(), 0, "{outcome}");
    #[allow(clippy::cast_precision_loss, reason = "some hundred")]
    let rate = outcome.requests as f64 / outcome.elapsed.as_secs_f64();
    assert!(rate < 240.0, "{rate} a second");
}

#[test]
fn redis_and_unix_sockets_are_spoken_to_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut buffer = [0; 64];
            let count = stream.read(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"PING\r\nGET key\r\nQUIT\r\n");
            stream.write_all(b"+PONG\r\n$5\r\nvalue\r\n+OK\r\n").unwrap();
        }
    });
    let requests = vec![redis_request("key", b"value")];
    let target = Target::Unix(path);
    let plan = Plan { protocol: Protocol::Bytes, requests, ..Plan::http(target, "/", b"") };
    assert_eq!(load(plan, 10).failed(), 0);
}

#[test]
fn an_answer_of_http_is_whole_when_all_that_was_announced_has_come() {
    let check = |text: &str| check_http(text.as_bytes(), &[b"one".to_vec(), b"second".to_vec()]);
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n";
    assert_eq!(check(head), Ok(Progress::Partial));
    assert_eq!(check(&format!("{head}\r\nsecon")), Ok(Progress::Partial));
    assert_eq!(check(&format!("{head}\r\nsecond")), Ok(Progress::Whole { answer: 1, after: After::Kept }));
    let closed = format!("{head}Connection: close\r\n\r\nsecond");
    assert_eq!(check(&closed), Ok(Progress::Whole { answer: 1, after: After::Closed }));
    assert_eq!(check_bytes(b"+PO", &[b"+PONG".to_vec()]), Ok(Progress::Partial));
    assert_eq!(check_bytes(b"-LO", &[b"+PONG".to_vec()]), Err("body: another one, '-LO'".to_owned()));
}
