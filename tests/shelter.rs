//! Containers whose program is a process that was made elsewhere, and that their first process only looks after.
//!
//! The process comes from the test: see `harness::visitor`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::visitor::{self, children};
use harness::{Directory, World, eventually, process_status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regen::error::Kind;
use regen::runtime::{self, Sheltered, StateRoot};
use regen::sys::channel::Channel;
use regen::sys::fs::open_path;
use regen::sys::process::{ExitStatus, Process};
use regen::sys::tty::{receive_descriptor, set_size};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

fn root(world: &World) -> StateRoot {
    StateRoot::new(world.root())
}

/// A container's first process, which is ours to reap: whatever the test does with it, it leaves none behind.
struct Init(Process);

impl Init {
    fn of(world: &World, id: &str) -> Self {
        Self(Process::open(world.pid(id)).unwrap().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.pid()
    }

    fn reaped(&self) -> Option<ExitStatus> {
        assert!(self.0.wait_end(Duration::from_secs(60)).unwrap(), "it lives on");
        self.0.reap().unwrap()
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.0.signal(regen::sys::signal::Signal::KILL);
        let _ = self.0.reap();
    }
}

/// A container that waits.
fn created(world: &World, bundle: &Directory) -> (String, Init) {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let id = world.id("a");
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    let init = Init::of(world, &id);
    (id, init)
}

fn shelter(world: &World, id: &str) -> Sheltered {
    runtime::shelter(&root(world), &id.parse().unwrap()).unwrap()
}

/// Puts a program into the container, as a child of its first process. Its pid there.
fn enter(sheltered: &Sheltered, program: &[&str]) -> i32 {
    visitor::enter(sheltered.init().pid(), sheltered.stdio(), program)
}

/// Makes a program the container's, and gives what tells of its end.
fn adopt(world: &World, id: &str, program: &[&str]) -> PipeReader {
    let (reader, writer) = std::io::pipe().unwrap();
    let sheltered = shelter(world, id);
    let pid = enter(&sheltered, program);
    sheltered.adopt(pid, Some(writer.as_fd())).unwrap();
    reader
}

fn ended(mut status: PipeReader) -> String {
    let mut text = String::new();
    status.read_to_string(&mut text).unwrap();
    text
}

fn touch(path: &Path) {
    fs::write(path, "").unwrap();
}

#[test]
fn the_end_of_the_program_is_that_of_the_container() {
    let world = World::new("status");
    let bundle = world.shell("echo the bundle\\'s own program ran");
    for (script, line, code) in
        [("exit 0", "exit 0\n", 0), ("exit 7", "exit 7\n", 7), ("kill -9 $$", "signal 9\n", 137)]
    {
        let (id, init) = created(&world, &bundle);
        let script = format!("until [ -e /tmp/go ]; do sleep 0.01; done; {script}");
        let status = adopt(&world, &id, &["sh", "-c", &script]);
        assert_eq!(world.status(&id), "running");
        assert_eq!(world.pid(&id), init.pid());
        world.regen(&["start", &id]).fails_with(1, "already running");
        touch(&world.rootfs().join("tmp/go"));
        assert_eq!(ended(status), line);
        assert_eq!(init.reaped(), Some(ExitStatus::Code(code)));
        assert_eq!(world.status(&id), "stopped");
        world.regen(&["delete", &id]).success();
        fs::remove_file(world.rootfs().join("tmp/go")).unwrap();
    }
}

#[test]
fn the_program_has_the_streams_and_nobody_else_keeps_them_open() {
    let world = World::new("streams");
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let (id, bundle) = (world.id("a"), world.bundle(|spec| spec["process"]["cwd"] = json!("/tmp")));
    let ((input, mut keyboard), (mut screen, output)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    let mut command = world.command(&["create", "--bundle", bundle.text(), &id]);
    command.stdin(input).stdout(output).stderr(Stdio::inherit());
    assert!(command.status().unwrap().success());
    drop(command);
    let init = Init::of(&world, &id);
    let sheltered = shelter(&world, &id);
    let directory = sheltered.directory().try_clone_to_owned().unwrap();
    let pid = enter(&sheltered, &["sh", "-c", "read line; echo got $line; exec >/dev/null 2>&1; read line; exit 3"]);
    sheltered.adopt(pid, None).unwrap();
    keyboard.write_all(b"hello\n").unwrap();
    let mut text = String::new();
    screen.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got hello\n", "and then nobody has it open");
    let expected = fs::metadata(world.rootfs().join("tmp")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(rustix::fs::fstat(&directory).unwrap().st_ino, expected.ino());
    assert_eq!(open_files(init.pid()), ["/", "/", "/"]);
    keyboard.write_all(b"end\n").unwrap();
    assert_eq!(init.reaped(), Some(ExitStatus::Code(3)));
    world.regen(&["delete", &id]).success();
}

fn open_files(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.map(|entry| fs::read_link(entry.unwrap().path()).unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn signals_reach_the_program_whoever_they_are_sent_to() {
    let world = World::new("signals");
    let (id, init) = created(&world, &world.shell("true"));
    let traps = ["TERM", "HUP", "USR1", "WINCH", "CONT", "TSTP", "37"];
    let traps = traps.map(|name| format!("trap 'echo {name} >> /tmp/got' {name};")).concat();
    let script = format!("{traps} echo up > /tmp/up; while :; do sleep 0.01; done");
    let status = adopt(&world, &id, &["sh", "-c", &script]);
    eventually("it is up", || world.rootfs().join("tmp/up").exists());
    let got = || fs::read_to_string(world.rootfs().join("tmp/got")).unwrap_or_default();
    let direct = |signal| kill(Pid::from_raw(init.pid()), signal).unwrap();
    for (signal, name) in
        [(Signal::SIGTERM, "TERM"), (Signal::SIGHUP, "HUP"), (Signal::SIGWINCH, "WINCH"), (Signal::SIGTSTP, "TSTP")]
    {
        direct(signal);
        eventually(name, || got().lines().any(|line| line == name));
    }
    for name in ["USR1", "37"] {
        world.regen(&["kill", &id, name]).success();
        eventually(name, || got().lines().any(|line| line == name));
    }
    let program = children(init.pid())[0];
    world.regen(&["kill", &id, "STOP"]).success();
    eventually("the program stands still", || process_status(program, "State").starts_with('T'));
    eventually("pid 1 does not", || process_status(init.pid(), "State").starts_with('S'));
    world.regen(&["kill", &id, "CONT"]).success();
    eventually("it goes on", || got().lines().any(|line| line == "CONT"));
    world.regen(&["exec", &id, "kill", "-TERM", "1"]).success();
    eventually("from inside too", || got().lines().filter(|line| *line == "TERM").count() == 2);
    world.regen(&["kill", &id, "KILL"]).success();
    assert_eq!(ended(status), "", "what is killed with everything in it says nothing");
    assert_eq!(init.reaped(), Some(ExitStatus::Signal(9)));
    assert_eq!(world.status(&id), "stopped");
    world.regen(&["kill", &id]).fails_with(1, "container not running");
    world.regen(&["delete", &id]).success();
}

#[test]
fn orphans_are_reaped_and_end_with_the_program() {
    let world = World::new("orphans");
    let (id, init) = created(&world, &world.shell("true"));
    let script =
        "for n in 1 2 3 4 5; do sh -c 'sleep 0.05 &'; done; sh -c 'sleep 1000 &'; echo > /tmp/made; sleep 1000";
    let status = adopt(&world, &id, &["sh", "-c", script]);
    eventually("they are made", || world.rootfs().join("tmp/made").exists());
    eventually("only the program and the last one are left", || children(init.pid()).len() == 2);
    let program = children(init.pid())[0];
    kill(Pid::from_raw(program), Signal::SIGTERM).unwrap();
    assert_eq!(ended(status), "signal 15\n");
    assert_eq!(init.reaped(), Some(ExitStatus::Code(143)));
    world.regen(&["delete", &id]).success();
}

#[test]
fn hooks_run_once_whoever_is_the_program() {
    for come in [true, false] {
        let world = World::new("hooks");
        let log = world.base().join("log");
        let bundle = world.bundle(|spec| {
            spec["process"]["args"] = json!(["sleep", "1000"]);
            let hook = |name: &str, path: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} >> {path}")]}]);
            spec["hooks"] = json!({
                "startContainer": hook("inside", "/tmp/log"),
                "poststart": hook("outside", log.to_str().unwrap()),
            });
        });
        let (id, _init) = created(&world, &bundle);
        let sheltered = shelter(&world, &id);
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        assert_eq!((read(&world.rootfs().join("tmp/log")).as_str(), read(&log).as_str()), ("inside\n", ""));
        if come {
            let pid = enter(&sheltered, &["sleep", "1000"]);
            sheltered.adopt(pid, None).unwrap();
        } else {
            sheltered.start().unwrap();
        }
        assert_eq!((read(&world.rootfs().join("tmp/log")).as_str(), read(&log).as_str()), ("inside\n", "outside\n"));
        assert_eq!(world.status(&id), "running");
        world.delete(&id);
    }
}

#[test]
fn a_start_hook_that_fails_ends_the_container_before_anybody_comes() {
    let world = World::new("badhook");
    let bundle = world.bundle(|spec| {
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]});
    });
    let (id, init) = created(&world, &bundle);
    let error = runtime::shelter(&root(&world), &id.parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("startContainer") && error.to_string().contains("exit status 3"), "{error}");
    init.reaped();
    world.regen(&["delete", &id]).success();
}

#[test]
fn the_program_starts_as_ever_if_nobody_came() {
    let world = World::new("cold");
    let (id, init) = created(&world, &world.shell("echo ran > /tmp/ran; exit 5"));
    let sheltered = shelter(&world, &id);
    kill(Pid::from_raw(init.pid()), Signal::SIGWINCH).unwrap();
    sheltered.start().unwrap();
    assert_eq!(init.reaped(), Some(ExitStatus::Code(5)));
    assert!(world.rootfs().join("tmp/ran").exists());
    world.regen(&["delete", &id]).success();
}

fn terminal(world: &World, args: &[&str]) -> (String, Init, OwnedFd) {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let bundle = world.bundle(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["args"] = json!(args);
    });
    let (id, socket) = (world.id("a"), world.base().join("console"));
    let listener = UnixListener::bind(&socket).unwrap();
    world.regen(&["create", "--bundle", bundle.text(), "--console-socket", socket.to_str().unwrap(), &id]).success();
    let near = receive_descriptor(&listener, Duration::from_secs(60)).unwrap();
    let init = Init::of(world, &id);
    (id, init, near)
}

/// Reads until the text is there; a terminal gives no end of file.
fn read_until(terminal: &OwnedFd, text: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 512];
    while !seen.contains(text) {
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "{seen:?}");
        let count = rustix::io::read(terminal, &mut buffer).unwrap_or_else(|error| panic!("{error}: {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

const ON_TERMINAL: &str = "trap 'echo resized; exit 4' WINCH; echo on >/dev/tty; while :; do sleep 0.01; done";

#[test]
fn the_terminal_becomes_the_programs() {
    let world = World::new("tty");
    let (id, init, near) = terminal(&world, &["true"]);
    let sheltered = shelter(&world, &id);
    let pid = enter(&sheltered, &["setsid", "-c", "sh", "-c", ON_TERMINAL]);
    sheltered.adopt(pid, None).unwrap();
    read_until(&near, "on\r\n");
    set_size(near.as_fd(), 10, 20).unwrap();
    read_until(&near, "resized");
    assert_eq!(init.reaped(), Some(ExitStatus::Code(4)));
    world.regen(&["delete", &id]).success();
}

#[test]
fn the_terminal_stays_the_first_process_s_if_nobody_came() {
    let world = World::new("coldtty");
    let (id, init, near) = terminal(&world, &["sh", "-c", ON_TERMINAL]);
    shelter(&world, &id).start().unwrap();
    read_until(&near, "on\r\n");
    set_size(near.as_fd(), 10, 20).unwrap();
    read_until(&near, "resized");
    assert_eq!(init.reaped(), Some(ExitStatus::Code(4)));
    world.regen(&["delete", &id]).success();
}

#[test]
fn every_verb_works_on_it() {
    let world = World::new("verbs");
    let (id, init) = created(&world, &world.shell("true"));
    let _status = adopt(&world, &id, &["sleep", "1000"]);
    assert_eq!(world.regen(&["exec", &id, "hostname"]).success().stdout(), "box\n");
    let pids: Vec<i32> =
        serde_json::from_str(world.regen(&["ps", "--format", "json", &id]).success().stdout()).unwrap();
    assert_eq!(pids, [init.pid(), children(init.pid())[0]]);
    world.regen(&["pause", &id]).success();
    assert_eq!(world.status(&id), "paused");
    world.regen(&["resume", &id]).success();
    assert_eq!(world.status(&id), "running");
    let events = world.regen(&["events", "--stats", &id]).success().stdout().to_owned();
    assert!(events.contains("\"pids\":{\"current\":2"), "{events}");
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), format!("{id}\n"));
    world.regen(&["delete", &id]).fails_with(1, "not stopped");
    world.regen(&["checkpoint", &id]).fails_with(1, "template");
    world.delete(&id);
    assert_eq!(init.reaped(), Some(ExitStatus::Signal(9)));
}

#[test]
fn the_first_process_is_small_hidden_and_says_nothing_of_the_host() {
    let world = World::new("small");
    let (id, init) = created(&world, &world.shell("true"));
    let _status = adopt(&world, &id, &["sleep", "1000"]);
    let kib = |field: &str| -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", init.pid())).unwrap();
        let line = rollup.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // It says that it has taken the program in, and then makes itself small.
    eventually("it is small", || kib("Private_Dirty") + kib("Swap") < 64);
    let shown = fs::read(format!("/proc/{}/cmdline", init.pid())).unwrap();
    assert_eq!(String::from_utf8_lossy(&shown).trim_end_matches('\0'), "regen");
    let environment = fs::read(format!("/proc/{}/environ", init.pid())).unwrap();
    assert!(environment.iter().all(|byte| *byte == 0), "{environment:?}");
    world.regen(&["exec", &id, "sh", "-c", "readlink /proc/1/exe || cat /proc/1/environ"]).code(1);
    world.delete(&id);
}

#[test]
fn a_container_without_a_pid_namespace_of_its_own_starts_as_ever() {
    let world = World::new("nopid");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    });
    let (id, _init) = created(&world, &bundle);
    let error = runtime::shelter(&root(&world), &id.parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(world.status(&id), "created");
    world.regen(&["start", &id]).success();
    world.delete(&id);
}

#[test]
fn nothing_goes_on_if_whoever_starts_it_dies_before_the_program_is_adopted() {
    let world = World::new("starter");
    for come in [false, true] {
        let (id, init) = created(&world, &world.shell("true"));
        let sheltered = shelter(&world, &id);
        if come {
            enter(&sheltered, &["sleep", "1000"]);
        }
        // What the kernel does for a process that dies.
        drop(sheltered);
        init.reaped();
        assert_eq!(world.status(&id), "stopped");
        world.regen(&["delete", &id]).success();
    }
}

#[test]
fn a_starter_that_dies_between_two_words_leaves_nothing_that_cannot_be_deleted() {
    let world = World::new("words");
    for words in [&[&b"H"[..]][..], &[b"H", b"S"], &[b"H", b"A\x02\0\0\0"], &[b"H", b"garbage"]] {
        let (id, init) = created(&world, &world.shell("sleep 1000"));
        let channel = Channel::connect(open_path(&world.state_directory(&id)).unwrap(), "start").unwrap();
        for word in words {
            channel.send(word, &[]).unwrap();
        }
        drop(channel);
        if words.len() == 1 || words[1] == b"garbage" {
            init.reaped();
        }
        world.delete(&id);
        init.reaped();
    }
}

#[test]
fn a_process_that_is_no_child_of_the_first_one_is_not_adopted() {
    let world = World::new("stranger");
    let (id, init) = created(&world, &world.shell("true"));
    let error = shelter(&world, &id).adopt(4242, None).unwrap_err();
    assert!(error.to_string().contains("no child"), "{error}");
    init.reaped();
    world.delete(&id);
}

#[test]
fn the_program_comes_into_a_renamed_container_too() {
    let world = World::new("renamed");
    let (id, init) = created(&world, &world.shell("true"));
    let new = world.id("b");
    runtime::rename(&root(&world), &id.parse().unwrap(), &new.parse().unwrap()).unwrap();
    let status = adopt(&world, &new, &["sh", "-c", "exit 6"]);
    assert_eq!(ended(status), "exit 6\n");
    assert_eq!(init.reaped(), Some(ExitStatus::Code(6)));
    world.regen(&["delete", &new]).success();
}
