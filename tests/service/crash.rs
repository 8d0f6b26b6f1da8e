//! What becomes of services while one of the processes that see to them is stuck, or callers come and go in the middle.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::life::greeting;
use crate::harness::{World, eventually};

/// A process that is stopped, until this is dropped.
#[derive(Debug)]
struct Stopped(Pid);

impl Stopped {
    fn new(pid: i32) -> Self {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        eventually("it is stopped", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        });
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn a_keeper_that_is_stuck_holds_up_its_own_service_alone_and_ends_nothing() {
    let world = World::new("svc-stuck");
    let mut daemon = world.daemon();
    let (one, other) = (daemon.name("one"), daemon.name("other"));
    daemon.add(&one, "1.0.0", &[]);
    daemon.add(&other, "1.0.0", &[]);
    let (port, pid) = (daemon.port(&one), daemon.instance_pid(&one));
    let keeper = i32::try_from(daemon.show(&one)["instances"][0]["keeper"].as_i64().unwrap()).unwrap();
    let stopped = Stopped::new(keeper);
    daemon.service(&["restart", &other]).success();
    // Others ask it too, so many that nobody is let in any more.
    let directory = fs::File::open(world.root().join("@keepers").join(format!("{one}-1.0.0-1"))).unwrap();
    let mut waiting = Vec::new();
    while let Some(socket) = connect_at_once(&directory).unwrap() {
        waiting.push(socket);
    }
    // A daemon that starts cannot ask it either.
    daemon.crash();
    assert_eq!(daemon.list().len(), 2);
    daemon.service(&["restart", &other, "--wait"]).success();
    assert_eq!((greeting(port), daemon.keepers().len()), ("hello".to_owned(), 2));
    drop(waiting);
    drop(stopped);
    daemon.crash();
    assert_eq!(daemon.instance_pid(&one), pid, "it was left alone");
    let stopped = Stopped::new(keeper);
    // It gets a successor, and is told to go as soon as it can be told.
    daemon.service(&["restart", &one]).success();
    assert_ne!(daemon.instance_pid(&one), pid);
    assert_eq!(greeting(port), "hello");
    drop(stopped);
    daemon.await_rest(&one);
    daemon.await_rest(&other);
}

/// The process with these words in its command line.
fn process_with(words: &str) -> Option<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| String::from_utf8_lossy(&text).contains(words))
    })
}

#[test]
fn a_keeper_that_is_killed_while_it_makes_an_instance_leaves_nothing() {
    let world = World::new("svc-halfborn");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let (pid, go) = (daemon.instance_pid(&name), world.base().join("go"));
    let wait = format!("until test -e {}; do sleep 0.01; done", go.display());
    let bundle = world.bundle(|spec| {
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", wait]}]});
    });
    let arguments = ["service", "upgrade", &name, "--to", "1.1.0", "--bundle", bundle.text()];
    let upgrade = world.spawn(world.command(&arguments));
    let half = world.state_directory(&format!("{name}-1.1.0-2"));
    eventually("its container is being made", || half.exists() && process_with(&wait).is_some());
    let keeper = process_with(&format!("keeper\0{name}-1.1.0-2")).unwrap();
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    upgrade.finish().fails_with(1, "it has ended");
    fs::write(&go, "").unwrap();
    assert_eq!((daemon.keepers().len(), half.exists()), (1, false));
    assert_eq!(world.regen(&["list", "--quiet"]).success().stdout().lines().count(), 1);
    assert_eq!((daemon.instance_pid(&name), greeting(daemon.port(&name)).as_str()), (pid, "hello"));
    eventually("the hook has ended", || process_with(&wait).is_none());
}

#[test]
fn a_thousand_calls_of_every_kind_leave_no_descriptor_and_no_thread_behind() {
    let world = World::new("svc-descriptors");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    daemon.service(&["restart", &name, "--wait"]).success();
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().count();
    let at_rest = || {
        eventually("only two threads are left", || count("task") == 2);
        count("fd")
    };
    let before = at_rest();
    let call = |method: &str, parameters: Value, more: bool| json!({"method": format!("run.regen.Service.{method}"), "parameters": parameters, "more": more});
    let calls = [
        call("List", json!({}), false),
        call("Show", json!({"name": name}), false),
        call("Show", json!({"name": "nobody"}), false),
        call("Resolve", json!({"name": name}), false),
        call("Resolve", json!({"name": name, "requirement": "^9"}), false),
        call("Connect", json!({"name": name}), false),
        call("Watch", json!({}), true),
        call("Watch", json!({}), false),
        call("Logs", json!({"name": name, "follow": true}), true),
        call("Logs", json!({"name": name}), false),
        call("Restart", json!({"name": "nobody"}), true),
        call("Add", json!({"name": name, "version": "1.0.0"}), true),
        call("Nothing", json!({}), false),
    ];
    let socket = world.root().join("run.regen.Control");
    for round in 0..80 {
        for call in &calls {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(call.to_string().as_bytes()).unwrap();
            // Some go in the middle of the call, some in the middle of the answer, some after it.
            if round % 3 > 0 {
                stream.write_all(b"\0").unwrap();
            }
            if round % 3 > 1 {
                std::io::Read::read(&mut stream, &mut [0; 4096]).unwrap();
            }
        }
        if round % 20 == 0 {
            daemon.service(&["restart", &name, "--wait"]).success();
        }
    }
    daemon.await_rest(&name);
    eventually("descriptors are as many as before", || at_rest() == before);
}

/// Connects if that needs no waiting.
fn connect_at_once(directory: &fs::File) -> nix::Result<Option<std::os::fd::OwnedFd>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let path = format!("/proc/self/fd/{}/control", directory.as_raw_fd());
    match connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?) {
        Ok(()) => Ok(Some(socket)),
        Err(nix::Error::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}
