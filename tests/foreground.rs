//! `run` and `exec` in the foreground: statuses, signals, terminals, and that they always come back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use harness::{World, cgroup_of, count_members, eventually};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::json;

#[test]
fn the_status_is_the_programs_or_128_and_the_signal() {
    let world = World::new("status");
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
        let bundle = world.shell(script);
        world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]).code(code);
    }
    for (signal, code) in [(Signal::SIGKILL, 137), (Signal::SIGSEGV, 139)] {
        let bundle = world.bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", "echo up; exec sleep 1000"]);
            // Process 1 of a pid namespace would not be ended by a signal that it has no handler for.
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
        });
        let id = world.id("b");
        let mut running = world.spawn(world.command(&["run", "--bundle", bundle.text(), &id]));
        running.wait_for("up");
        world.regen(&["kill", &id, signal.as_str()]).success();
        running.finish().code(code);
    }
}

#[test]
fn a_missing_program_ends_with_127_and_one_that_cannot_run_with_126() {
    let world = World::new("missing");
    let run = |program: &str| {
        let bundle = world.bundle(|spec| spec["process"]["args"] = json!([program]));
        world.regen(&["run", "--bundle", bundle.text(), &world.id("a")])
    };
    run("nope").fails_with(127, "executable file not found in");
    run("/bin/nope").fails_with(127, "no such file or directory");
    run("/etc/passwd").fails_with(126, "permission denied");
    run("/etc").fails_with(126, "permission denied");
    let garbage = world.rootfs().join("bin/garbage");
    fs::write(&garbage, [0_u8; 64]).unwrap();
    std::process::Command::new("chmod").arg("755").arg(&garbage).status().unwrap();
    run("garbage").fails_with(126, "exec format error");
}

#[test]
fn signals_reach_the_program_and_are_noted() {
    let world = World::new("forward");
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGUSR2, "USR2"), (Signal::SIGHUP, "HUP")] {
        let script = format!("trap 'echo got {name}; exit 9' {name}; echo up; while :; do sleep 0.01; done");
        let bundle = world.shell(&script);
        let mut running = world.spawn(world.command(&["run", "--bundle", bundle.text(), &world.id(name)]));
        running.wait_for("up");
        running.signal(signal);
        let output = running.finish();
        assert!(output.code(9).stdout().contains(&format!("got {name}")));
    }
}

#[test]
fn a_signal_during_the_creation_does_not_kill_the_runtime() {
    let world = World::new("early");
    let bundle = world.bundle(|spec| {
        let script = "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done";
        spec["process"]["args"] = json!(["sh", "-c", script]);
        let wait = format!("echo > {0}/hook; while [ ! -e {0}/go ]; do sleep 0.01; done", world.base().display());
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", wait]}]});
    });
    let mut running = world.spawn(world.command(&["run", "--bundle", bundle.text(), &world.id("a")]));
    eventually("the hook runs", || world.base().join("hook").exists());
    // Sent on once there is somebody to send it to; as process 1 it ignores what it has no handler for yet.
    running.signal(Signal::SIGTERM);
    running.signal(Signal::SIGUSR1);
    fs::write(world.base().join("go"), "").unwrap();
    running.wait_for("up");
    running.signal(Signal::SIGTERM);
    running.finish().code(5);
}

#[test]
fn short_programs_never_hang_it() {
    let world = World::new("short");
    let bundle = world.bundle(|_| ());
    for _ in 0..60 {
        world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]).success();
    }
}

#[test]
fn standard_streams_are_the_callers_own() {
    let world = World::new("streams");
    let bundle = world.shell("cat; echo err >&2");
    let output = world.regen_with_input(&["run", "--bundle", bundle.text(), &world.id("a")], b"through\n");
    assert_eq!(output.success().stdout(), "through\n");
    assert_eq!(output.stderr(), "err\n");
}

#[test]
fn the_container_is_deleted_unless_kept() {
    let world = World::new("keep");
    let bundle = world.shell("exit 3");
    let id = world.id("a");
    world.regen(&["run", "--keep", "--bundle", bundle.text(), &id]).code(3);
    assert_eq!(world.status(&id), "stopped");
    world.regen(&["delete", &id]).success();
}

#[test]
fn a_container_that_is_deleted_elsewhere_ends_the_run() {
    let world = World::new("elsewhere");
    let bundle = world.shell("echo up; exec sleep 1000");
    let id = world.id("a");
    let mut running = world.spawn(world.command(&["run", "--bundle", bundle.text(), &id]));
    running.wait_for("up");
    world.delete(&id);
    running.finish().code(137);
}

/// A command on a terminal of its own, as a person has it.
struct Session {
    master: File,
    slave: OwnedFd,
    child: std::process::Child,
    seen: String,
}

impl Session {
    fn new(world: &World, arguments: &[&str], size: (u16, u16)) -> Self {
        let size = nix::pty::Winsize { ws_row: size.0, ws_col: size.1, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut command = world.command(arguments);
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        let child = command.spawn().unwrap();
        Self { master: File::from(master), slave, child, seen: String::new() }
    }

    fn wait_for(&mut self, text: &str) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !self.seen.contains(text) {
            let mut polled = [nix::poll::PollFd::new(self.master.as_fd(), nix::poll::PollFlags::POLLIN)];
            let ready = nix::poll::poll(&mut polled, 100_u16).unwrap();
            assert!(std::time::Instant::now() < deadline, "waited for {text:?} in {:?}", self.seen);
            if ready > 0 {
                let mut buffer = [0; 4096];
                let count = self.master.read(&mut buffer).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        }
    }

    fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    fn finish(mut self) -> (i32, String) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if std::time::Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("it hangs, after {:?}", self.seen);
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        assert!(!self.is_raw(), "the terminal was not restored");
        (status.code().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_is_real_has_the_callers_size_and_follows_it() {
    let world = World::new("tty");
    let bundle = world.bundle(|spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["args"] = json!(["sh"]);
    });
    let id = world.id("a");
    let mut session = Session::new(&world, &["run", "--bundle", bundle.text(), &id], (31, 97));
    session.type_text("tty; stty size; echo rea''dy\n");
    session.wait_for("ready");
    assert!(session.seen.contains("/dev/pts/0"), "{:?}", session.seen);
    assert!(session.seen.contains("31 97"), "{:?}", session.seen);
    assert!(session.is_raw());
    rustix::termios::tcsetwinsize(
        &session.master,
        rustix::termios::Winsize { ws_row: 11, ws_col: 22, ws_xpixel: 0, ws_ypixel: 0 },
    )
    .unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(session.child.id()).unwrap()), Signal::SIGWINCH)
        .unwrap();
    session.type_text("sleep 0.2; stty size\n");
    session.wait_for("11 22");
    // Control-C is a byte for the program inside, not a signal for the runtime.
    let cgroup = cgroup_of(world.pid(&id));
    let members = || count_members(&cgroup);
    eventually("the shell is alone", || members() == 1);
    session.type_text("sleep 1000\n");
    // Not the shell's copy that is to become it: that one may not have the terminal yet.
    let sleeps = || {
        let pids = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        pids.lines().any(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n"))
    };
    eventually("the sleep runs", sleeps);
    session.type_text("\x03");
    eventually("the sleep is interrupted", || members() == 1);
    session.type_text("echo al''ive; exit 6\n");
    session.wait_for("alive");
    assert_eq!(session.finish().0, 6);
}

#[test]
fn the_last_words_on_a_terminal_are_not_lost() {
    let world = World::new("lastwords");
    let bundle = world.bundle(|spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["args"] = json!(["sh", "-c", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"]);
    });
    for _ in 0..3 {
        let output = world.regen_with_input(&["run", "--bundle", bundle.text(), &world.id("a")], b"");
        assert!(output.success().stdout().ends_with("line 1999\r\n"), "{}", output.stdout().len());
        assert_eq!(output.stdout().lines().count(), 2000);
    }
}

#[test]
fn piped_input_reaches_a_terminal_and_ends_it() {
    let world = World::new("pipedtty");
    let bundle = world.shell("cat > /tmp/got; echo done");
    let output = world.regen_with_input(&["run", "--tty", "--bundle", bundle.text(), &world.id("a")], b"one\ntwo\n");
    assert!(output.success().stdout().contains("done"));
    assert_eq!(fs::read_to_string(world.rootfs().join("tmp/got")).unwrap(), "one\ntwo\n");
}

#[test]
fn an_exec_has_a_terminal_and_forwards_signals_too() {
    let world = World::new("exectty");
    let id = world.sleeper("a");
    let mut session = Session::new(&world, &["exec", "-t", &id, "sh"], (20, 60));
    session.type_text("tty && stty size && exit 4\n");
    session.wait_for("20 60");
    assert!(session.seen.contains("/dev/pts/"), "{:?}", session.seen);
    assert_eq!(session.finish().0, 4);
    let script = "trap 'exit 8' TERM; echo up; while :; do sleep 0.01; done";
    let mut running = world.spawn(world.command(&["exec", &id, "sh", "-c", script]));
    running.wait_for("up");
    running.signal(Signal::SIGTERM);
    running.finish().code(8);
    world.delete(&id);
}

#[test]
fn a_terminal_is_restored_when_the_run_fails() {
    let world = World::new("ttyfail");
    let bundle = world.bundle(|spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["args"] = json!(["nope"]);
    });
    let mut session = Session::new(&world, &["run", "--bundle", bundle.text(), &world.id("a")], (20, 60));
    session.wait_for("not found");
    assert_eq!(session.finish().0, 127);
}

#[test]
fn a_console_socket_gets_the_terminal_of_a_detached_container() {
    use std::os::unix::net::UnixListener;
    let world = World::new("console");
    let bundle = world.bundle(|spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["args"] = json!(["sh", "-c", "echo hello; exec sleep 1000"]);
    });
    let path = world.base().join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let id = world.id("a");
    let console = path.to_str().unwrap();
    world.regen(&["run", "-d", "--console-socket", console, "--bundle", bundle.text(), &id]).success();
    let (stream, _) = listener.accept().unwrap();
    let mut terminal = receive(&stream);
    let mut seen = String::new();
    while !seen.contains("hello") {
        let mut buffer = [0; 256];
        let count = terminal.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    world.regen(&["run", "-d", "--bundle", bundle.text(), &world.id("b")]).fails_with(1, "console-socket");
    world.delete(&id);
}

fn receive(stream: &std::os::unix::net::UnixStream) -> File {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut bytes = [0_u8; 256];
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut parts, &mut control, RecvFlags::empty()).unwrap();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return File::from(descriptors.next().unwrap());
        }
    }
    panic!("no descriptor came");
}
