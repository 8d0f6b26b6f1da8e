//! Daemons come and go.

use std::fs::{self, Permissions};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::caller::{Caller, status};
use crate::daemon::Daemon;
use crate::harness::user::{Person, Subordinates};
use crate::harness::{REGEN, World, eventually};
use crate::stream::unread;

#[test]
fn a_root_has_one_daemon_and_the_second_is_told_which() {
    let world = World::new("second");
    let daemon = Daemon::start(&world);
    let words = format!("process {} is the daemon of this root", daemon.pid());
    world.regen(&["serve"]).fails_with(1, &words);
    assert_eq!(daemon.status()["pid"], daemon.pid());
    // Another root has its own, with a store of its own.
    let other = world.base().join("other");
    let serve = |store: &Path| {
        let mut command = Command::new(REGEN);
        command.arg("--root").arg(&other).arg("--store").arg(store).arg("serve");
        command
    };
    let shared = world.finish(serve(&world.store()));
    shared.fails_with(1, "registry.db': another process has it open: end the other 'regen serve'");
    assert!(!other.join("run.regen.Control").exists(), "nobody listens there");
    let second = Daemon::start_as(&world, serve(&world.base().join("other-store")), &other);
    assert_ne!(second.pid(), daemon.pid());
}

#[test]
fn a_daemon_that_is_told_to_end_takes_its_socket_along_and_makes_room_for_the_next() {
    let world = World::new("end");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let daemon = Daemon::start(&world);
        // Callers who say nothing, or half of something, hold nothing up.
        let (mut idle, mut half) = (daemon.connect(), daemon.connect());
        idle.call(&status());
        std::io::Write::write_all(&mut half.stream, b"{\"method\"").unwrap();
        daemon.end(signal).success();
        assert_eq!((idle.receive(), half.receive()), (None, None));
        assert!(!world.root().join("run.regen.Control").exists());
        world
            .regen(&["call", "run.regen.Control.GetStatus"])
            .fails_with(1, "run.regen.Control': nobody listens: start 'regen serve'");
    }
}

#[test]
fn the_socket_of_a_killed_daemon_is_replaced() {
    let world = World::new("stale");
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.end(Signal::SIGKILL).code, 1009);
    assert!(world.root().join("run.regen.Control").exists());
    world.regen(&["call", "run.regen.Control.GetStatus"]).fails_with(1, "nobody listens: start 'regen serve'");
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.status()["pid"], daemon.pid());
}

#[test]
fn a_root_may_lie_deeper_than_a_sockets_address_can_say() {
    let world = World::new("deep");
    let root = world.base().join("x".repeat(120)).join("y".repeat(120));
    let mut command = Command::new(REGEN);
    command.arg("--root").arg(&root).arg("--store").arg(world.store()).arg("serve");
    let mut running = world.spawn(command);
    let mut call = Command::new(REGEN);
    call.arg("--root").arg(&root).args(["call", "run.regen.Control.GetStatus"]);
    eventually("the daemon listens", || root.join("run.regen.Control").exists());
    assert!(world.finish(call).success().stdout().contains(&running.pid().to_string()));
    running.signal(Signal::SIGTERM);
    assert!(running.child.wait().unwrap().success());
}

/// Says that it is over, also when a test fails: its threads would go on for good.
#[derive(Debug)]
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_new_binary_takes_over_without_a_call_refused_or_a_connection_lost() {
    let world = World::new("hup");
    let (link, next) = (world.base().join("regen"), world.base().join("regen-next"));
    symlink(REGEN, &link).unwrap();
    fs::copy(REGEN, &next).unwrap();
    let mut command = Command::new(&link);
    command.arg("--root").arg(world.root()).arg("--store").arg(world.store()).arg("serve");
    let daemon = Daemon::start_as(&world, command, &world.root());
    let descriptors = daemon.descriptors_at_rest();
    let executed = || fs::metadata(format!("/proc/{}/exe", daemon.pid())).unwrap().ino();
    let first = executed();
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut idle = daemon.connect();
    let mut started = vec![idle.call(&status())["started"].clone()];
    std::thread::scope(|scope| {
        let end = Finally(&stop);
        // A connection for each call, and one for all.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(daemon.status()["pid"], daemon.pid());
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let mut caller = daemon.connect();
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(caller.call(&status())["pid"], daemon.pid());
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..5 {
            if round == 1 {
                fs::remove_file(&link).unwrap();
                symlink(&next, &link).unwrap();
            }
            daemon.signal(Signal::SIGHUP);
            // The very connection that was there before the first of them.
            eventually("another program answers", || {
                let now = idle.call(&status())["started"].clone();
                let new = !started.contains(&now);
                started.extend(new.then_some(now));
                new
            });
            let so_far = calls.load(Ordering::Relaxed);
            eventually("calls are answered", || calls.load(Ordering::Relaxed) > so_far + 2);
        }
        drop(end);
    });
    assert!(calls.load(Ordering::Relaxed) > 10);
    assert_ne!(executed(), first, "the old binary runs");
    drop(idle);
    daemon.is_at_rest_with(descriptors);
}

#[test]
fn a_daemon_goes_on_where_the_new_binary_cannot_be_executed() {
    let world = World::new("hup-broken");
    let binary = world.base().join("regen");
    fs::copy(REGEN, &binary).unwrap();
    let mut command = Command::new(&binary);
    command.arg("--root").arg(world.root()).arg("--store").arg(world.store()).arg("serve");
    let daemon = Daemon::start_as(&world, command, &world.root());
    let mut idle = daemon.connect();
    let before = idle.call(&status());
    fs::remove_file(&binary).unwrap();
    for (content, cause) in [(None, "no such file"), (Some("no program"), "exec format error")] {
        if let Some(content) = content {
            fs::write(&binary, content).unwrap();
            fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
        }
        daemon.signal(Signal::SIGHUP);
        eventually("the failure is logged", || daemon.log().contains(cause));
        assert_eq!(idle.call(&status())["started"], before["started"]);
        assert_eq!(daemon.status()["started"], before["started"]);
    }
    world.regen(&["serve"]).fails_with(1, "is the daemon of this root");
}

#[test]
fn a_supervisor_passes_the_socket_and_hears_how_it_goes() {
    let world = World::new("supervised");
    let socket = world.root().join("run.regen.Control");
    let (listener, news) = (UnixListener::bind(&socket).unwrap(), world.base().join("notify"));
    let supervisor = UnixDatagram::bind(&news).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let hear = || {
        let mut buffer = [0; 256];
        let count = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).lines().next().unwrap().to_owned()
    };
    // What comes before the daemon waits.
    let mut early = Caller::connect(&world.root());
    early.send(&status());
    let mut command = Command::new("sh");
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=regen.socket exec "$@""#;
    command.args(["-c", script, "sh", REGEN, "--root"]).arg(world.root()).arg("--store").arg(world.store());
    command.arg("serve").env("NOTIFY_SOCKET", &news).stdin(Stdio::from(OwnedFd::from(listener)));
    let daemon = Daemon::start_as(&world, command, &world.root());
    assert_eq!(hear(), "READY=1");
    assert_eq!(early.receive().unwrap()["parameters"]["pid"], daemon.pid());
    daemon.signal(Signal::SIGHUP);
    assert_eq!((hear().as_str(), hear().as_str()), ("RELOADING=1", "READY=1"));
    assert_eq!(early.call(&status())["pid"], daemon.pid());
    daemon.end(Signal::SIGTERM).success();
    assert_eq!(hear(), "STOPPING=1");
    assert!(socket.exists(), "the supervisor's socket was taken away");
}

#[test]
fn a_supervisor_keeps_connections_for_the_next_daemon() {
    let world = World::new("kept");
    let news = world.base().join("notify");
    let supervisor = UnixDatagram::bind(&news).unwrap();
    let mut command = world.command(&["serve"]);
    command.env("NOTIFY_SOCKET", &news);
    let daemon = Daemon::start_as(&world, command, &world.root());
    let (mut idle, mut half) = (daemon.connect(), daemon.connect());
    let first = idle.call(&status())["started"].clone();
    std::io::Write::write_all(&mut half.stream, b"{\"method\"").unwrap();
    eventually("the half is read", || unread(&half.stream) == 0);
    daemon.end(Signal::SIGTERM).success();
    supervisor.set_nonblocking(true).unwrap();
    let mut kept = stored(&supervisor);
    assert_eq!(kept.len(), 1, "the idle one");
    assert_eq!(half.receive(), None, "nobody could go on with half a call");
    let mut command = Command::new("sh");
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=connection exec "$@""#;
    command.args(["-c", script, "sh", REGEN, "--root"]).arg(world.root()).arg("--store").arg(world.store());
    command.arg("serve").stdin(Stdio::from(kept.remove(0)));
    let daemon = Daemon::start_as(&world, command, &world.root());
    let status = idle.call(&status());
    assert_eq!(status["pid"], daemon.pid());
    assert_ne!(status["started"], first);
}

/// What a supervisor was told to keep as connections.
fn stored(supervisor: &UnixDatagram) -> Vec<OwnedFd> {
    let mut kept = Vec::new();
    loop {
        let (mut bytes, mut space) = ([0; 256], nix::cmsg_space!([i32; 253]));
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(supervisor.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
        let Ok(message) = message else { return kept };
        let numbers: Vec<i32> = message
            .cmsgs()
            .unwrap()
            .flat_map(|one| match one {
                ControlMessageOwned::ScmRights(numbers) => numbers,
                other => panic!("{other:?}"),
            })
            .collect();
        let count = message.bytes;
        let text = String::from_utf8_lossy(&bytes[..count]);
        assert!(numbers.is_empty() || text == "FDSTORE=1\nFDNAME=connection", "{text}");
        // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
        kept.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
    }
}

#[test]
fn a_daemon_may_have_more_files_open_than_what_it_starts() {
    let world = World::new("files");
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -Sn 100; exec "$@""#, "sh", REGEN, "--root"]).arg(world.root());
    command.arg("--store").arg(world.store()).arg("serve");
    let daemon = Daemon::start_as(&world, command, &world.root());
    let limit = |pid: i32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap()
    };
    let callers: Vec<_> = (0..200).map(|_| daemon.connect()).collect();
    eventually("all are let in", || daemon.status()["connections"] == 201);
    drop(callers);
    // Also after it has executed its file anew.
    let before = daemon.started().unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("another program answers", || daemon.started().is_some_and(|now| now != before));
    assert!(limit(daemon.pid()) > 100);
    let name = world.id("service");
    let rootfs = world.rootfs_text();
    let add = ["service", "add", &name, "--version", "1.0.0", "--listen", "auto", "--ready", "none"];
    world.regen(&[&add[..], &["--rootfs", &rootfs, "--", "sleep", "1000"]].concat()).success();
    let show = world.regen(&["service", "show", &name, "--json"]);
    let show: serde_json::Value = serde_json::from_str(show.success().stdout()).unwrap();
    let pid = |value: &serde_json::Value| i32::try_from(value.as_i64().unwrap()).unwrap();
    let found = (limit(pid(&show["instances"][0]["keeper"])), limit(pid(&show["pid"])));
    world.regen(&["service", "rm", "--force", &name]).success();
    assert_eq!(found, (100, 100), "keeper and container");
}

#[test]
fn a_daemon_at_rest_is_small_and_sleeps() {
    let world = World::new("rest");
    let daemon = Daemon::start(&world);
    let descriptors = daemon.descriptors_at_rest();
    (0..20).for_each(|_| drop(daemon.status()));
    daemon.is_at_rest_with(descriptors);
    // One lets callers in, one watches keepers.
    eventually("only two threads are left", || daemon.number("Threads") == 2);
    let switches = || daemon.switches();
    let before = switches();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(), before, "something woke it");
    // A program that is built for debugging has many times the text, of which chance says how much was read.
    let resident = daemon.number(if cfg!(debug_assertions) { "RssAnon" } else { "VmRSS" });
    assert!(resident <= 12 << 10, "{resident} KiB are resident");
}

#[test]
fn an_ordinary_user_has_a_daemon_of_their_own() {
    let world = World::new("own-daemon");
    let person = Person::new(&world, Subordinates::None);
    let root = person.path("xdg/regen");
    let daemon = Daemon::start_as(&world, person.command("regen", &["serve"]), &root);
    let call = person.command("regen", &["call", "run.regen.Control.GetStatus"]);
    let output = world.finish(call);
    assert!(output.success().stdout().contains(&format!("\"root\": \"{}\"", root.display())), "{}", output.stdout());
    assert_eq!(fs::metadata(&root).unwrap().uid(), person.user.uid.as_raw());
    daemon.end(Signal::SIGTERM).success();
}
