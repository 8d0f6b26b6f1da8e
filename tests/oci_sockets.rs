//! Sockets that a container's program is given, and binds of its own that are reported: this test executes itself again,
//! and the child makes the container, as whoever keeps a service does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::{env, fs, process};

use harness::{Directory, Running, World, eventually};
use regen::bundle::Bundle;
use regen::runtime::{self, CreateRequest, Intercept, Listen, Starter, StateRoot, Stop};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

const VARIABLE: &str = "REGEN_OCI_TEST_SOCKETS";

/// What the child says of itself.
fn say(text: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "@@@{text}").and_then(|()| output.flush()).unwrap();
}

/// The child: a container with sockets and a reporting filter, as it is told; its end is the container's.
fn make(told: &Value) -> regen::error::Result<()> {
    let root = StateRoot::new(told["root"].as_str().unwrap());
    let bundle = Bundle::load(Path::new(told["bundle"].as_str().unwrap()))?;
    let id: regen::ids::ContainerId = told["id"].as_str().unwrap().parse()?;
    let mut request = CreateRequest::new(id.clone(), bundle.directory, bundle.spec);
    for name in told["names"].as_array().into_iter().flatten() {
        let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket))).unwrap().ino();
        say(&format!("port {} inode {inode}", socket.local_addr().unwrap().port()));
        request.listen.push(Listen { socket: socket.into(), name: name.as_str().unwrap().to_owned() });
    }
    request.preserve_fds = u32::try_from(told["preserve"].as_u64().unwrap_or(0)).unwrap();
    request.intercept = if told["intercept"] == true { Intercept::Binds } else { Intercept::No };
    request.starter = if told["starter"] == "anybody" { Starter::Anybody } else { Starter::Creator };
    let mut created = runtime::create(&root, request)?;
    say("created");
    if told["starter"] == "anybody" {
        return Ok(());
    }
    created.start(&root, &id)?;
    if let Some(listener) = created.listener.take() {
        await_report(listener);
    }
    if let Some(init) = created.init.open()? {
        init.wait_end(std::time::Duration::from_secs(60))?;
        init.reap()?;
    }
    runtime::stop(&root, &id, Stop::Kill)?;
    runtime::remove(&root, &id, Stop::Kill)
}

/// A call is reported, and nobody answers it: it fails with the end of the listener.
fn await_report(listener: impl AsFd) {
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    let mut polled = [PollFd::new(&listener, PollFlags::IN)];
    poll(&mut polled, Some(&limit)).unwrap();
    say(if polled[0].revents().contains(PollFlags::IN) { "reported" } else { "ended without a report" });
}

#[test]
fn a_child_makes_its_container() {
    let Ok(told) = env::var(VARIABLE) else { return };
    if let Err(error) = make(&serde_json::from_str(&told).unwrap()) {
        say(&format!("error {:?} {error}", error.kind()));
    }
    process::exit(0);
}

fn spawn(world: &World, bundle: &Directory, mut told: Value) -> Running {
    told["root"] = json!(world.root());
    told["bundle"] = json!(bundle.path());
    told["id"] = json!(world.id("a"));
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["a_child_makes_its_container", "--exact", "--nocapture"])
        .env(VARIABLE, told.to_string())
        .env_remove("LISTEN_FDS");
    world.spawn(command)
}

/// The numbers after a word of the child's.
fn told(output: &str, word: &str) -> Vec<u64> {
    output
        .split_whitespace()
        .collect::<Vec<_>>()
        .windows(2)
        .filter(|pair| pair[0].trim_start_matches("@@@") == word)
        .map(|pair| pair[1].parse().unwrap())
        .collect()
}

const SERVER: &str = "
import os, socket
print('pid', os.getpid() == int(os.environ['LISTEN_PID']), os.environ['LISTEN_FDS'], os.environ['LISTEN_FDNAMES'])
print('open', sorted(map(int, os.listdir('/proc/self/fd'))))
for fd in range(3, 3 + int(os.environ['LISTEN_FDS'])): print('found', os.fstat(fd).st_ino, flush=True)
connection, _ = socket.socket(fileno=3).accept()
connection.sendall(b'hello')
";

#[test]
fn a_program_finds_its_sockets_from_descriptor_three_on_and_nothing_else() {
    let world = World::new("sockets");
    let bundle = world.python(SERVER, |spec| spec["process"]["env"] = json!(["LISTEN_FDS=9", "LISTEN_PID=9"]));
    let mut running = spawn(&world, &bundle, json!({"names": ["web", "admin"]}));
    running.wait_for("found");
    let port = u16::try_from(told(&running.so_far(), "port")[0]).unwrap();
    let mut answer = String::new();
    TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
    let output = running.finish();
    let text = output.success().stdout();
    assert!(text.contains("pid True 2 web:admin\n"), "{text}");
    // The directory that is being listed is open itself.
    assert!(text.contains("open [0, 1, 2, 3, 4, 5]\n"), "{text}");
    assert_eq!(told(text, "found"), told(text, "inode"));
}

#[test]
fn more_sockets_than_there_are_low_numbers_arrive_in_their_order() {
    let world = World::new("manysockets");
    let bundle = world.python(&SERVER.replace("connection", "#"), |_| ());
    let names: Vec<_> = (0..80).map(|number| format!("n{number}")).collect();
    let output = spawn(&world, &bundle, json!({"names": names})).finish();
    let text = output.success().stdout();
    assert_eq!(told(text, "found").len(), 80, "{text}");
    assert_eq!(told(text, "found"), told(text, "inode"));
}

#[test]
fn sockets_wait_with_a_container_that_somebody_else_starts() {
    let world = World::new("startsockets");
    let bundle = world.python(&SERVER.replace("connection", "#"), |_| ());
    let mut running = spawn(&world, &bundle, json!({"names": ["web"], "starter": "anybody"}));
    running.wait_for("created");
    let id = world.id("a");
    eventually("the maker is gone", || running.child.try_wait().unwrap().is_some());
    world.regen(&["start", &id]).success();
    eventually("it has ended", || world.status(&id) == "stopped");
    let text = running.so_far();
    assert_eq!(told(&text, "found"), told(&text, "inode"));
    assert_eq!(told(&text, "found").len(), 1, "{text}");
    world.regen(&["delete", &id]).success();
}

#[test]
fn what_cannot_be_given_together_is_refused() {
    let world = World::new("refusedsockets");
    let bundle = world.shell("true");
    let refused = |world: &World, bundle: &Directory, told: Value, words: &str| {
        let output = spawn(world, bundle, told).finish();
        assert!(output.success().stdout().contains(words), "{}", output.stdout());
    };
    refused(&world, &bundle, json!({"names": ["a:b"]}), "error Invalid");
    refused(&world, &bundle, json!({"names": ["a"], "preserve": 1}), "error Unsupported");
    let notifying = world.bundle(|spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nobody",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    });
    refused(&world, &notifying, json!({"intercept": true}), "listener of its own (SCMP_ACT_NOTIFY)");
    let hooked = world.bundle(|spec| spec["hooks"] = json!({"startContainer": [{"path": "/bin/true"}]}));
    refused(&world, &hooked, json!({"intercept": true}), "startContainer hook");
}

/// A program without libraries that binds, as a user who is not allowed to load filters.
fn binder(spec: &mut Value) {
    spec["process"]["args"] = json!(["sh", "-c", "mkdir /tmp/x; echo mkdir $?; exec nc -l -p 8080"]);
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
}

/// What the program says, once a call of it was reported and failed because nobody answers.
#[track_caller]
fn reported(world: &World, bundle: &Directory) -> String {
    let output = spawn(world, bundle, json!({"intercept": true})).finish();
    assert!(output.success().stdout().contains("@@@reported\n"), "{}{}", output.stdout(), output.stderr());
    assert!(output.stderr().contains("bind: Function not implemented"), "{}", output.stderr());
    output.stdout().to_owned()
}

#[test]
fn a_bind_is_reported_to_whoever_made_the_container() {
    let world = World::new("intercept");
    reported(&world, &world.bundle(binder));
}

#[test]
fn a_bind_in_a_user_namespace_under_a_filter_of_the_containers_own_is_reported_too() {
    let world = World::new("interceptuser");
    let chown = Command::new("chown").args(["-hR", "200000:200000"]).arg(world.rootfs()).status().unwrap();
    assert!(chown.success());
    let bundle = world.bundle(|spec| {
        binder(spec);
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for kind in ["uidMappings", "gidMappings"] {
            spec["linux"][kind] = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
        }
    });
    assert!(reported(&world, &bundle).contains("mkdir 1\n"));
}

#[test]
fn rings_that_would_bind_without_a_call_are_not_there() {
    let world = World::new("interceptring");
    let script = "
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(425, 1, None)
print('ring', ctypes.get_errno())
socket.socket().connect_ex(('127.0.0.1', 1))
";
    let mut errors = Vec::new();
    for intercept in [true, false] {
        let output = spawn(&world, &world.python(script, |_| ()), json!({"intercept": intercept})).finish();
        errors.push(told(output.success().stdout(), "ring"));
        assert!(!output.stdout().contains("@@@reported"), "a connection is no bind: {}", output.stdout());
    }
    assert_eq!(errors[0], [38]);
    assert_ne!(errors[0], errors[1]);
}
