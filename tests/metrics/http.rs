//! The listener: who gets what, and what becomes of those who misbehave.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{World, eventually};
use crate::page::{Page, address, exchange, fetch, scrape, start};

#[test]
fn only_the_page_is_told_and_only_to_a_get() {
    let world = World::new("metrics-http");
    let daemon = start(&world);
    let address = address(&daemon);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("GET /metrics/../etc HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
        ("GET /metrics HTTP/2\r\n\r\n", "505"),
    ] {
        let answer = exchange(&address, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(20_000));
    assert!(exchange(&address, long.as_bytes()).starts_with("HTTP/1.1 431 "));
    fetch(&address);
}

#[test]
fn the_slow_and_the_many_keep_nobody_from_the_page() {
    let world = World::new("metrics-slow");
    let daemon = start(&world);
    let address = address(&daemon);
    let connect = || TcpStream::connect(&address).unwrap();
    let mut slow: Vec<_> = (0..100).map(|_| connect()).collect();
    for stream in &mut slow {
        // Those that came first are closed already.
        let _ = stream.write_all(b"GET /metr");
    }
    for _ in 0..20 {
        fetch(&address);
    }
    // Those who are slow are closed, and whoever asks and does not read is, too.
    let mut deaf = connect();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    for stream in slow.iter_mut().chain([&mut deaf]) {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // Closed in whatever way, before this side has waited enough.
        let ended = stream.read_to_end(&mut Vec::new());
        let waited = ended.is_err_and(|error| [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()));
        assert!(!waited, "a connection stays open");
    }
    eventually("all descriptors are closed", || scrape(&daemon).sum("regen_process_open_fds", &[]) < 40.0);
}

#[test]
fn without_being_asked_for_there_is_no_listener_and_no_thread() {
    let world = World::new("metrics-none");
    let mut daemon = world.daemon();
    let threads = |pid: i32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map(|task| name(task.unwrap())).filter(|name| name.trim() == "metrics").count()
    };
    assert_eq!(threads(daemon.pid()), 0);
    daemon.end(Signal::SIGTERM).success();
    daemon.start_as(world.command(&["serve", "--metrics", "tcp://127.0.0.1:0"]));
    assert_eq!(threads(daemon.pid()), 1);
}

#[test]
fn the_socket_stays_open_while_the_daemon_is_executed_anew() {
    let world = World::new("metrics-hup");
    let daemon = start(&world);
    let address = address(&daemon);
    let started = |page: &Page| page.sum("regen_process_start_time_seconds", &[]);
    let before = started(&scrape(&daemon));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Nobody is refused; who is being answered at that moment may be cut off.
        let knocking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                TcpStream::connect(&address).expect("somebody was refused");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        kill(Pid::from_raw(daemon.pid()), Signal::SIGHUP).unwrap();
        eventually("the new program tells numbers", || {
            let mut stream = TcpStream::connect(&address).unwrap();
            let mut text = String::new();
            let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").is_ok();
            let _ = stream.read_to_string(&mut text);
            let body = text.split_once("\r\n\r\n").filter(|_| asked).map(|(_, body)| body);
            body.is_some_and(|body| body.ends_with("# EOF\n") && started(&Page::parse(body)) > before)
        });
        stop.store(true, Ordering::Relaxed);
        knocking.join().unwrap();
    });
    assert_eq!(crate::page::address(&daemon), address);
}

#[test]
fn an_address_that_cannot_be_had_is_told_at_the_start() {
    let world = World::new("metrics-taken");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("tcp://{}", taken.local_addr().unwrap());
    world
        .regen(&["serve", "--metrics", &place])
        .fails_with(1, &format!("listen at {place} for those who fetch metrics"));
    world.regen(&["serve", "--metrics", "9464"]).fails_with(2, "write tcp://HOST:PORT or unix:/PATH");
    assert!(!world.root().join("run.regen.Control").exists());
}

#[test]
fn the_configuration_may_name_a_unix_socket_which_goes_with_the_daemon() {
    let world = World::new("metrics-unix");
    let path = world.base().join("metrics.socket");
    let config = world.base().join("config.toml");
    fs::write(&config, format!("[metrics]\nlisten = 'unix:{}'\n", path.display())).unwrap();
    let mut daemon = world.daemon();
    let serve = || {
        let mut command = world.command(&["--config"]);
        command.arg(&config).arg("serve");
        command
    };
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        daemon.end(Signal::SIGTERM);
        daemon.start_as(serve());
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        Page::parse(answer.split_once("\r\n\r\n").unwrap().1);
        daemon.end(signal);
        assert_eq!(path.exists(), signal == Signal::SIGKILL);
        daemon.start_as(serve());
    }
    daemon.end(Signal::SIGTERM).success();
    assert!(!path.exists());
}
