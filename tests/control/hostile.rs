//! Callers who mean harm.

use std::io::{ErrorKind, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::json;

use crate::caller::status;
use crate::daemon::Daemon;
use crate::harness::{REGEN, World, eventually, process_status};

/// What one message may have.
const MESSAGE_MAX: usize = 16 << 20;

/// Memory that is not a file's, in KiB.
fn anonymous(daemon: &Daemon) -> u64 {
    daemon.number("RssAnon")
}

#[test]
fn a_gibibyte_without_an_end_costs_no_more_than_the_longest_message() {
    let world = World::new("endless");
    let daemon = Daemon::start(&world);
    let mut caller = daemon.connect();
    let chunk = vec![b'x'; 1 << 20];
    let (mut sent, mut highest) = (0_usize, 0);
    let error = loop {
        match caller.stream.write(&chunk) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        highest = highest.max(anonymous(&daemon));
        assert!(sent < 1 << 30, "all of it was taken");
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    assert!(sent <= MESSAGE_MAX + (4 << 20), "{sent} bytes were taken");
    // Growing takes up to twice as much.
    assert!(highest <= 40 << 10, "{highest} KiB");
    let parameters = caller.is_closed_with("run.regen.Control.MessageTooLarge");
    assert_eq!(parameters["limit"], MESSAGE_MAX);
    eventually("the memory is given back", || anonymous(&daemon) <= 6 << 10);
}

#[test]
fn the_longest_message_is_taken_and_one_byte_more_is_not() {
    let world = World::new("longest");
    let daemon = Daemon::start(&world);
    for (more, name) in [(0, None), (1, Some("run.regen.Control.MessageTooLarge"))] {
        let mut caller = daemon.connect();
        let call = json!({"method": "run.regen.Control.GetStatus", "parameters": {"x": ""}}).to_string();
        let filler = "x".repeat(MESSAGE_MAX - call.len() + more);
        let call = call.replace("\"x\":\"\"", &format!("\"x\":\"{filler}\""));
        assert_eq!(call.len(), MESSAGE_MAX + more);
        // The end may find a closed door.
        let _ = caller.stream.write_all(format!("{call}\0").as_bytes());
        match name {
            None => assert_eq!(caller.receive().unwrap()["parameters"]["pid"], daemon.pid()),
            Some(name) => drop(caller.is_closed_with(name)),
        }
    }
    // Deep nesting is no way to its stack either.
    let mut caller = daemon.connect();
    let (open, close) = ("[".repeat(1 << 20), "]".repeat(1 << 20));
    for (parameters, parameter) in
        [(format!("{open}{close}"), ""), (format!("{{\"interface\":{open}{close}}}"), "interface")]
    {
        let method = "org.varlink.service.GetInterfaceDescription";
        let call = format!("{{\"method\":\"{method}\",\"parameters\":{parameters}}}\0");
        caller.stream.write_all(call.as_bytes()).unwrap();
        let (name, parameters) = caller.error();
        assert_eq!(
            (name.as_str(), &parameters["parameter"]),
            ("org.varlink.service.InvalidParameter", &parameter.into())
        );
    }
    assert_eq!(daemon.status()["pid"], daemon.pid());
}

#[test]
fn ten_thousand_connections_are_answered_or_told_why_not() {
    let world = World::new("connections");
    let daemon = Daemon::start(&world);
    let descriptors = daemon.descriptors_at_rest();
    let mut held: Vec<_> = (0..512).map(|_| daemon.connect()).collect();
    held.iter_mut().for_each(|caller| drop(caller.call(&status())));
    for number in 512..10_000 {
        let mut caller = daemon.connect();
        let parameters = if number % 2 == 0 {
            // Written after it was refused, or before: nobody sees a broken pipe in place of the reason.
            caller.send(&status());
            caller.is_closed_with("run.regen.Control.TooManyConnections")
        } else {
            // They are not waited for, and wait themselves for nothing.
            let (name, parameters) = caller.error();
            assert_eq!(name, "run.regen.Control.TooManyConnections");
            parameters
        };
        assert_eq!(parameters["message"], "there are 512 connections already");
    }
    assert_eq!(held[0].call(&status())["connections"], 512);
    held.clear();
    daemon.is_at_rest_with(descriptors);
    assert_eq!(daemon.log().lines().count(), 1, "strangers are logged: {}", daemon.log());
}

#[test]
fn files_that_nobody_asked_for_are_closed() {
    let world = World::new("files");
    let daemon = Daemon::start(&world);
    let descriptors = daemon.descriptors_at_rest();
    let mut caller = daemon.connect();
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    let many = vec![writer.as_raw_fd(); 250];
    let call = format!("{}\0", status());
    for _ in 0..50 {
        let control = [ControlMessage::ScmRights(&many)];
        let descriptor = caller.stream.as_raw_fd();
        let sent =
            sendmsg::<()>(descriptor, &[IoSlice::new(call.as_bytes())], &control, MsgFlags::empty(), None).unwrap();
        assert_eq!(sent, call.len());
        caller.receive().unwrap();
    }
    assert_eq!(daemon.descriptors(), descriptors + 1);
    // Half a call with files, never finished, and gone.
    let half = daemon.connect();
    let control = [ControlMessage::ScmRights(&many)];
    sendmsg::<()>(half.stream.as_raw_fd(), &[IoSlice::new(b"{")], &control, MsgFlags::empty(), None).unwrap();
    drop(half);
    drop(writer);
    // Nobody has the pipe's other end: reading comes to its end.
    assert_eq!(std::io::read_to_string(reader).unwrap(), "");
    drop(caller);
    daemon.is_at_rest_with(descriptors);
}

#[test]
fn a_daemon_without_descriptors_left_tells_so_and_sleeps() {
    let world = World::new("descriptors");
    let mut command = Command::new("prlimit");
    command.args(["--nofile=24:24", "--", REGEN, "--root"]).arg(world.root()).arg("--store").arg(world.store());
    command.arg("serve");
    let daemon = Daemon::start_as(&world, command, &world.root());
    let mut callers: Vec<_> = (0..40).map(|_| daemon.connect()).collect();
    let mut refused = 0;
    for caller in &mut callers {
        caller.stream.write_all(format!("{}\0", status()).as_bytes()).unwrap_or_default();
        match caller.receive() {
            Some(answer) if answer.get("error").is_none() => {}
            Some(answer) => {
                assert_eq!(answer["error"], "run.regen.Control.OutOfResources");
                refused += 1;
            }
            None => panic!("closed without a word"),
        }
    }
    assert!((10..40).contains(&refused), "{refused} of 40 were refused");
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<u64> =
            stat.rsplit_once(')').unwrap().1.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        // utime and stime, fields 14 and 15; the state, field 3, is no number.
        fields[10] + fields[11]
    };
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(ticks() - before < 20, "it spins: {} ticks", ticks() - before);
    drop(callers);
    eventually("there is room again", || {
        let mut caller = daemon.connect();
        caller.send(&status());
        caller.receive().is_some_and(|answer| answer["parameters"]["connections"] == 1)
    });
}

#[test]
fn calls_in_a_flood_are_answered_and_others_meanwhile_too() {
    let world = World::new("flood");
    let daemon = Daemon::start(&world);
    let descriptors = daemon.descriptors_at_rest();
    let mut flood = daemon.connect();
    let calls = format!("{}\0", json!({"method": "no.such.Method", "oneway": true})).repeat(200_000);
    let sender = std::thread::spawn(move || {
        flood.stream.write_all(calls.as_bytes()).unwrap();
        flood.call(&status())
    });
    while !sender.is_finished() {
        assert_eq!(daemon.status()["pid"], daemon.pid());
    }
    assert_eq!(sender.join().unwrap()["pid"], daemon.pid());
    daemon.is_at_rest_with(descriptors);
    assert!(process_status(daemon.pid(), "VmHWM").split(' ').next().unwrap().parse::<u64>().unwrap() < 40 << 10);
    daemon.end(Signal::SIGTERM).success();
}
