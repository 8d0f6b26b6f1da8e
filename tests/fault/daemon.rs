//! The daemon is killed at every call that changes something while it changes a service. Clients notice nothing, and the
//! next daemon finds the old state or the new one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::daemon::Daemon;
use crate::harness::load::{Load, Plan, Protocol, Request, Target};
use crate::harness::ring::names;
use crate::harness::{Running, World, eventually};
use crate::phase::{SHARE, choose, text_of};
use crate::trace::{CALLS, Point, parse};

/// How many clients ask all the time.
const CLIENTS: u64 = 4;

/// What is done to services while the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Add,
    Restart,
    Upgrade,
    /// An upgrade whose new instance writes something and ends.
    Fail,
    Recover,
    Remove,
}

/// What becomes of what the service writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    ThrownAway,
    Ring,
}

#[test]
fn a_daemon_that_is_killed_while_it_restarts_a_service_leaves_the_old_or_the_new_instance() {
    check(Act::Restart, Root::ThrownAway);
}

#[test]
fn a_daemon_that_is_killed_while_it_restarts_a_service_with_a_ring_leaves_that_to_who_serves() {
    check(Act::Restart, Root::Ring);
}

#[test]
fn a_daemon_that_is_killed_while_an_upgrade_fails_leaves_the_ring_to_the_old_instance() {
    check(Act::Fail, Root::Ring);
}

#[test]
fn a_daemon_that_is_killed_while_it_replaces_an_instance_with_a_ring_that_crashed_loses_none_of_its_state() {
    check(Act::Recover, Root::Ring);
}

#[test]
fn a_daemon_that_is_killed_while_it_upgrades_a_service_leaves_the_old_or_the_new_version() {
    check(Act::Upgrade, Root::ThrownAway);
}

#[test]
fn a_daemon_that_is_killed_while_it_adds_a_service_leaves_all_of_it_or_nothing() {
    check(Act::Add, Root::ThrownAway);
}

#[test]
fn a_daemon_that_is_killed_while_it_removes_a_service_leaves_all_of_it_or_nothing() {
    check(Act::Remove, Root::ThrownAway);
}

#[test]
fn a_daemon_that_is_killed_while_it_replaces_an_instance_that_crashed_is_followed_by_one_that_does() {
    check(Act::Recover, Root::ThrownAway);
}

/// Kills the daemon at its points, all or some, and checks what is left each time.
fn check(act: Act, root: Root) {
    let began = Instant::now();
    let world = World::new("fault-daemon");
    let mut stage = Stage::new(&world, act, root);
    let mut all = stage.record();
    // Only what the daemon starts calls it, before it is another program; without that there is no successor.
    all.retain(|point| act != Act::Recover || point.call != "setsid");
    let total = all.len();
    let points = if std::env::var_os("REGEN_OCI_FAULT_ALL").is_some() { all } else { choose(&mut all, SHARE) };
    let (mut killed, mut faults) = (0, Vec::new());
    for point in &points {
        println!("fault: {act:?} at {point}");
        match catch_unwind(AssertUnwindSafe(|| stage.strike(point))) {
            Ok(hit) => killed += usize::from(hit),
            // What follows would only find what this one left.
            Err(panic) => {
                faults.push(format!("{act:?} killed at {point}: {}", text_of(&*panic)));
                break;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f32();
    let (count, failed) = (points.len(), faults.len());
    println!("fault: the daemon, {act:?}: {count} of {total} points, {killed} killed, {failed} failed, {seconds:.1} s");
    assert!(faults.is_empty(), "{failed} of {count} points failed:\n{}", faults.join("\n"));
    assert!(killed * 2 > count, "only {killed} of {count} points were reached");
}

/// A daemon with a service that clients use.
struct Stage<'a> {
    world: &'a World,
    daemon: Daemon<'a>,
    act: Act,
    root: Root,
    /// The service that clients use.
    name: String,
    /// Another one, that comes and goes.
    other: String,
    count: u32,
}

/// What an act came to.
struct Outcome {
    /// Whether who asked for it was told that it is done.
    done: bool,
    killed: bool,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World, act: Act, root: Root) -> Self {
        let daemon = world.daemon();
        let (name, other) = (daemon.name("web"), daemon.name("other"));
        let ring: &[&str] = match root {
            Root::ThrownAway => &[],
            Root::Ring => &["--ring", &name],
        };
        daemon.add(&name, "1.0.0", &[&["--env", "GREETING=1.0.0"], ring].concat());
        Self { world, daemon, act, root, name, other, count: 0 }
    }

    /// One run without harm, checked as the others are, and its points.
    fn record(&mut self) -> Vec<Point> {
        let log = self.world.base().join("out/strace.log");
        let text = |log: &std::path::Path| fs::read_to_string(log).unwrap_or_default();
        let outcome = self.act_under(&["-o", log.to_str().unwrap(), "-e", &format!("trace={CALLS}"), "-s", "0"]);
        assert!(outcome.done == (self.act != Act::Fail) && !outcome.killed, "{}", self.daemon.log());
        let points: BTreeSet<Point> = parse(&text(&log));
        assert!(points.len() > 5, "strace saw nothing");
        points.into_iter().collect()
    }

    /// One run in which the daemon is killed. Whether it was.
    fn strike(&mut self, point: &Point) -> bool {
        let Point { call, number } = point;
        let inject = format!("inject={call}:signal=SIGKILL:when={number}");
        self.act_under(&["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]).killed
    }

    /// Does it while strace looks at the daemon, with all its threads, but at none of the programs that it executes. What
    /// must be so afterwards is.
    fn act_under(&mut self, strace: &[&str]) -> Outcome {
        self.count += 1;
        self.prepare();
        let before = self.daemon.show(&self.name);
        if self.root == Root::Ring {
            self.world.append(&text(&before["instance"]), &self.count.to_string());
        }
        let (old, new) = (text(&before["version"]), format!("1.0.{}", self.count));
        let load = self.load(&[&old, &new]);
        load.wait_for(20);
        let tracer = self.attach(strace);
        let done = self.act(&before, &new);
        // What goes on after the answer is part of it.
        let killed = self.wait_for_rest(done);
        if !killed {
            tracer.signal(Signal::SIGINT);
        }
        tracer.finish();
        if killed {
            assert_eq!(self.daemon.end(Signal::SIGKILL).code, 1009);
            self.daemon.start();
        }
        self.settle(&before, &new, done);
        load.wait_for(20);
        let outcome = load.stop();
        // What an instance has accepted ends with it, if that is killed: one connection of each client.
        let allowed = if self.act == Act::Recover { CLIENTS } else { 0 };
        assert!(outcome.failed() <= allowed, "{outcome}");
        Outcome { done, killed }
    }

    /// The other service is there, if it is to go, and is not, if it is to come.
    fn prepare(&self) {
        match self.act {
            Act::Restart | Act::Upgrade | Act::Fail | Act::Recover => {}
            Act::Remove if self.has_other() => {}
            Act::Remove => drop(self.daemon.add(&self.other, "1.0.0", &[])),
            Act::Add if self.has_other() => drop(self.daemon.service(&["rm", &self.other]).success()),
            Act::Add => {}
        }
    }

    fn has_other(&self) -> bool {
        self.daemon.list().iter().any(|one| one["name"] == self.other)
    }

    fn load(&self, answers: &[&str]) -> Load {
        let target = Target::Tcp(([127, 0, 0, 1], self.daemon.port(&self.name)).into());
        let bodies = answers.iter().map(|answer| answer.as_bytes().to_vec()).collect();
        let requests = vec![Request { bytes: b"?".to_vec(), answers: bodies }];
        // A rate, so that machines with few processors have time for everybody else.
        let plan = Plan { protocol: Protocol::Bytes, requests, ..Plan::http(target, "/", b"") };
        Load::start(Plan { rate: Some(200.0), threads: usize::try_from(CLIENTS).unwrap(), ..plan })
    }

    fn attach(&self, strace: &[&str]) -> Running {
        let mut command = Command::new("strace");
        command.args(["-f", "--detach-on=execve", "-p", &self.daemon.pid().to_string()]).args(strace);
        let mut tracer = self.world.spawn(command);
        let attached = || tracer.complaints().contains("attached");
        eventually("strace is attached", attached);
        assert_eq!(tracer.child.try_wait().unwrap(), None, "{}", tracer.complaints());
        tracer
    }

    /// Whether it was done.
    fn act(&self, before: &Value, new: &str) -> bool {
        let service = |arguments: &[&str]| self.daemon.service(arguments).code == 0;
        let server = self.world.server();
        match self.act {
            Act::Restart => service(&["restart", &self.name]),
            Act::Upgrade => service(&["upgrade", &self.name, "--to", new, "--env", &format!("GREETING={new}")]),
            Act::Fail => {
                let script = "open('/tmp/f', 'a').write('broken'); raise SystemExit(3)";
                service(&["upgrade", &self.name, "--to", new, "--", "/usr/bin/python3", "-c", script])
            }
            Act::Add => {
                let what = ["--version", "1.0.0", "--listen", "auto", "--bundle", server.text()];
                service(&[&["add", &self.other][..], &what].concat())
            }
            Act::Remove => service(&["rm", &self.other]),
            Act::Recover => {
                let pid = i32::try_from(before["pid"].as_i64().unwrap()).unwrap();
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
                eventually("it has a successor", || self.daemon.has_ended() || self.is_recovered(before));
                !self.daemon.has_ended()
            }
        }
    }

    /// Whether it has another instance, which serves.
    fn is_recovered(&self, before: &Value) -> bool {
        let output = self.daemon.service(&["show", &self.name, "--json"]);
        let show: Value = serde_json::from_str(output.stdout()).unwrap_or_default();
        output.code == 0 && show["state"] == "serving" && show["instance"] != before["instance"]
    }

    /// Waits until the daemon has nothing left to do, or is killed; whether it is.
    fn wait_for_rest(&self, done: bool) -> bool {
        let keepers = match self.act {
            Act::Restart | Act::Upgrade | Act::Fail | Act::Recover => 1,
            Act::Add => 1 + usize::from(done),
            Act::Remove => 1 + usize::from(!done),
        };
        // The daemon is not asked: that would be one more of its threads, and points that are not of the act.
        eventually("it is killed, or has nothing left to do", || {
            self.daemon.has_ended() || self.daemon.keepers().len() == keepers
        });
        eventually("it is killed, or knows that it has nothing left to do", || {
            let output = self.daemon.service(&["show", &self.name, "--json"]);
            let show: Value = serde_json::from_str(output.stdout()).unwrap_or_default();
            self.daemon.has_ended() || is_at_rest(&show)
        });
        self.daemon.has_ended()
    }

    /// The old state or the new one, whole, and the new one if somebody was told so; nothing else.
    fn settle(&self, before: &Value, new: &str, done: bool) {
        let daemon = &self.daemon;
        eventually("the service is at rest", || {
            let show = daemon.show(&self.name);
            is_at_rest(&show) && (self.act != Act::Recover || show["instance"] != before["instance"])
        });
        let after = daemon.show(&self.name);
        let (old, version) = (text(&before["version"]), text(&after["version"]));
        let replaced = after["instance"] != before["instance"];
        match self.act {
            Act::Restart => assert!(version == old && (replaced || !done), "{after}"),
            Act::Upgrade => {
                assert!(version == new && replaced || version == old && !replaced && !done, "{before}, {after}");
            }
            Act::Recover => assert_eq!((version == old, &after["restarts"]), (true, &next(&before["restarts"]))),
            Act::Add | Act::Remove | Act::Fail => assert!(version == old && !replaced, "{before}, {after}"),
        }
        let env = after["definition"]["env"].as_array().unwrap();
        assert_eq!(env, &[json!(format!("GREETING={version}"))]);
        assert_eq!(after["addresses"], before["addresses"]);
        let other = match self.act {
            Act::Add | Act::Remove => self.settle_other(done),
            Act::Restart | Act::Upgrade | Act::Fail | Act::Recover => false,
        };
        if self.root == Root::Ring {
            self.settle_ring(&text(&after["instance"]));
        }
        self.nothing_else_is_there(1 + usize::from(other));
    }

    /// Who serves has the ring, alone, and in it all that was ever written by who served.
    fn settle_ring(&self, instance: &str) {
        eventually("who serves has the ring", || {
            let ring = &self.world.ring_json(&["ls"])[0];
            ring["in_use_by"] == instance && ring["beside"] == json!([])
        });
        let all: Vec<_> = (1..=self.count).map(|count| count.to_string()).collect();
        assert_eq!(self.world.lines_in(instance), all.join(" "));
        assert_eq!(self.world.ring(&["verify"]).success().stdout(), "");
    }

    /// Whether the other service is there, and serves.
    fn settle_other(&self, done: bool) -> bool {
        let find = || self.daemon.list().into_iter().find(|one| one["name"] == self.other);
        eventually("the other service serves or is gone", || find().is_none_or(|one| one["state"] == "serving"));
        let there = find().is_some();
        if there {
            self.daemon.await_rest(&self.other);
            assert_eq!(greeting(self.daemon.port(&self.other)), "hello");
        }
        assert!(!done || there == (self.act == Act::Add), "{:?} was done, and is not", self.act);
        there
    }

    fn nothing_else_is_there(&self, services: usize) {
        eventually("nothing is left of other instances", || self.daemon.keepers().len() == services);
        assert_eq!(self.daemon.list().len(), services);
        let containers = self.world.regen(&["list", "--quiet"]);
        assert_eq!(containers.success().stdout().lines().count(), services, "{}", containers.stdout());
        let logs = names(&self.world.store().join("services"));
        assert_eq!(logs.len(), services, "{logs:?}");
    }
}

fn is_at_rest(show: &Value) -> bool {
    let one = show["instances"].as_array().is_some_and(|instances| instances.len() == 1);
    one && show["state"] == "serving" && show["change"].is_null()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn next(count: &Value) -> Value {
    json!(count.as_u64().unwrap() + 1)
}

fn greeting(port: u16) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(b"?").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}
