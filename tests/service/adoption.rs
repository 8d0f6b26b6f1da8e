//! Programs that ran before they were a service.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regen::sys::process::Identity;

use super::life::{greeting, load};
use crate::harness::daemon::Daemon;
use crate::harness::{World, eventually};

/// A server with four children. What those do first is put in, and what the first process does.
const FORKING: &str = "
import os, signal, socket
listener = socket.create_server(('127.0.0.1', 0))
def serve():
    while True:
        connection = listener.accept()[0]
        connection.recv(1)
        connection.sendall(b'forked')
        connection.close()
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        CHILD
        serve()
    pids.append(pid)
print(listener.getsockname()[1], *pids, flush=True)
PARENT
";
/// Only the children of it answer.
const WAITS: &str = "listener.close(); signal.pause()";

struct Forking {
    /// The first one, and its children.
    processes: Vec<Identity>,
    port: u16,
    /// Takes the first one's status as soon as there is one: other tests look for what nobody reaps.
    reaper: Option<JoinHandle<()>>,
}

impl Forking {
    fn start(child: &str, parent: &str) -> Self {
        let mut python = Command::new("/usr/bin/python3");
        let script = FORKING.replace("CHILD", child).replace("PARENT", parent);
        let mut first = python.args(["-c", &script]).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let numbers: Vec<i32> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let pids = std::iter::once(i32::try_from(first.id()).unwrap()).chain(numbers[1..].iter().copied());
        let processes = pids.map(|pid| Identity::of(pid).unwrap()).collect();
        let reaper = Some(std::thread::spawn(move || first.wait().map(drop).unwrap()));
        Self { processes, port: u16::try_from(numbers[0]).unwrap(), reaper }
    }

    fn adopt(&self, daemon: &Daemon<'_>, name: &str) {
        let (pid, listen) = (self.processes[0].pid.to_string(), format!("tcp://127.0.0.1:{}", self.port));
        daemon.service(&["adopt", name, "--version", "1.0.0", "--pid", &pid, "--listen", &listen]).success();
        assert_eq!(greeting(self.port), "forked");
    }

    /// Whether all its processes have ended.
    #[track_caller]
    fn is_gone(&self) {
        let left: Vec<_> = self.processes.iter().filter(|process| process.is_alive().unwrap()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Forking {
    fn drop(&mut self) {
        for process in &self.processes {
            if let Ok(Some(process)) = process.open() {
                let _ = process.signal(regen::sys::signal::Signal::KILL);
            }
        }
        let _ = self.reaper.take().map(JoinHandle::join);
    }
}

#[test]
fn an_adopted_program_that_is_removed_leaves_no_process() {
    let world = World::new("svc-adopt-rm");
    let daemon = world.daemon();
    let (name, forking) = (daemon.name("web"), Forking::start("pass", WAITS));
    forking.adopt(&daemon, &name);
    daemon.service(&["rm", &name]).success();
    forking.is_gone();
    assert!(daemon.list().is_empty() && daemon.keepers().is_empty());
}

#[test]
fn an_adopted_program_that_is_succeeded_leaves_no_process_and_no_request_is_lost() {
    let world = World::new("svc-adopt-up");
    let daemon = world.daemon();
    let (name, forking) = (daemon.name("web"), Forking::start("pass", WAITS));
    forking.adopt(&daemon, &name);
    let load = load(forking.port, &["forked", "hello"]);
    load.wait_for(50);
    let server = world.server();
    daemon.service(&["upgrade", &name, "--to", "1.1.0", "--bundle", server.text(), "--wait"]).success();
    forking.is_gone();
    load.wait_for(50);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert_eq!(greeting(forking.port), "hello");
    daemon.await_rest(&name);
}

#[test]
fn children_that_serve_go_on_when_their_adopted_parent_crashes_and_end_with_the_service() {
    let world = World::new("svc-adopt-crash");
    let daemon = world.daemon();
    let (name, forking) = (daemon.name("web"), Forking::start("pass", WAITS));
    forking.adopt(&daemon, &name);
    for _ in 0..2 {
        // The second time it is one of the children that took the first one's place.
        let pid = daemon.instance_pid(&name);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("another process has its place", || {
            daemon.show(&name)["pid"].as_i64().is_some_and(|now| now != i64::from(pid))
        });
        assert_eq!(daemon.show(&name)["state"], "serving");
        assert_eq!(greeting(forking.port), "forked");
    }
    daemon.service(&["rm", &name]).success();
    forking.is_gone();
}

#[test]
fn children_that_ignore_the_stop_signal_are_killed() {
    let world = World::new("svc-adopt-force");
    let daemon = world.daemon();
    let name = daemon.name("web");
    let forking = Forking::start("signal.signal(signal.SIGTERM, signal.SIG_IGN)", WAITS);
    forking.adopt(&daemon, &name);
    daemon.service(&["rm", "--force", &name]).success();
    forking.is_gone();
    assert!(daemon.keepers().is_empty());
}

#[test]
fn children_without_a_socket_end_when_their_adopted_parent_crashes() {
    let world = World::new("svc-adopt-idle");
    let daemon = world.daemon();
    let (name, forking) = (daemon.name("web"), Forking::start(WAITS, "serve()"));
    forking.adopt(&daemon, &name);
    kill(Pid::from_raw(daemon.instance_pid(&name)), Signal::SIGKILL).unwrap();
    eventually("its end is told", || daemon.show(&name)["state"] != "serving");
    eventually("all have ended", || forking.processes.iter().all(|process| !process.is_alive().unwrap()));
    daemon.service(&["rm", &name]).success();
}
