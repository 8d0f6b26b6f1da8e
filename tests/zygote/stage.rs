//! Templates and containers for their copies, held by the test itself.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use oci_spec::runtime::Spec;
use regen::error::Result;
use regen::ids::ContainerId;
use regen::program::Persona;
use regen::runtime::{StateRoot, state};
use regen::sys::fs::open_path;
use regen::sys::process::Process;
use regen::sys::signal::with_mask;
use regen::template::proxy::{Control, End, Guest, Held, Origin, Sandbox, plan};
use serde_json::{Value, json};

use crate::harness::{World, eventually};

/// No step takes longer, on a slow machine with everything else running.
pub const LIMIT: Duration = Duration::from_secs(30);

const ALONE: &str = "REGEN_OCI_TEST_ALONE";

/// Runs a test in a process of its own: what it does belongs to a thread, and it clones. `name` is that of the test with
/// its modules.
pub fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var(ALONE).as_deref() == Ok(name) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--test-threads=1", "--nocapture"]).env(ALONE, name);
    // In all of its threads: a signal that one of them does not wait for is lost.
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    with_mask(&mut command, set);
    let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{name} in a process of its own:\n{text}");
}

/// Its output, once it has ended; one that hangs is killed.
fn finish(child: Child) -> Output {
    let handle = Process::open(i32::try_from(child.id()).unwrap()).unwrap().unwrap();
    let guard = std::thread::spawn(move || {
        if !handle.wait_end(LIMIT * 3).unwrap() {
            handle.signal(regen::sys::signal::Signal::KILL).unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    guard.join().unwrap();
    output
}

/// A world with the programs of these tests in its root file system.
pub struct Stage {
    pub world: World,
}

/// A container with a first process, and where that says how its child ended.
pub struct Room {
    pub id: String,
    pub sandbox: Sandbox,
    pub persona: Result<Persona>,
    pub spec: Spec,
    status: PathBuf,
    pub directory: File,
}

impl Stage {
    pub fn new(name: &str) -> Self {
        let stage = Self { world: World::new(name) };
        stage.build("zygote", include_str!("zygote.c"));
        stage.build("reaper", include_str!("reaper.c"));
        stage
    }

    fn build(&self, name: &str, source: &str) {
        let file = self.world.base().join(name).with_extension("c");
        fs::write(&file, source).unwrap();
        let mut command = Command::new("gcc");
        command.args(["-static", "-O1", "-pthread", "-w", "-o"]).arg(self.world.rootfs().join(name)).arg(&file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A container in which a reaper runs, with its specification changed.
    pub fn room(&self, name: &str, change: impl FnOnce(&mut Value)) -> Room {
        let id = self.world.id(name);
        let mut process = Value::Null;
        let bundle = self.world.bundle(|spec| {
            change(spec);
            process = spec.clone();
            // The first process is another one than the copy, and needs its own rights only to write its file.
            spec["process"] = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": ["/reaper", format!("/status-{name}")], "env": ["PATH=/bin"],
                "capabilities": {"bounding": ["CAP_DAC_OVERRIDE"], "permitted": ["CAP_DAC_OVERRIDE"],
                    "effective": ["CAP_DAC_OVERRIDE"]}});
            spec["linux"].as_object_mut().unwrap().remove("seccomp");
        });
        self.world.regen(&["create", "--bundle", bundle.text(), &id]).success();
        self.world.regen(&["start", &id]).success();
        let found = state(&StateRoot::new(self.world.root()), &id.parse::<ContainerId>().unwrap()).unwrap();
        let init = Process::open(found.pid).unwrap().unwrap();
        let spec: Spec = serde_json::from_value(process).unwrap();
        let cwd = spec.process().as_ref().unwrap().cwd().strip_prefix("/").unwrap().to_owned();
        Room {
            persona: plan(&spec),
            directory: open_path(&PathBuf::from(format!("/proc/{}/root/", found.pid)).join(cwd)).unwrap(),
            sandbox: Sandbox::new(init, &found.cgroup).unwrap(),
            status: self.world.rootfs().join(format!("status-{name}")),
            spec,
            id,
        }
    }

    /// A loaded template, and its container.
    pub fn template(&self, words: &[&str], change: impl FnOnce(&mut Value)) -> (Held, Room) {
        let (mut held, room) = self.unready(words, change);
        let first = hear(&mut held);
        assert!(first.starts_with("ready 1 "), "{first}");
        (held, room)
    }

    /// One that may still be loading.
    pub fn unready(&self, words: &[&str], change: impl FnOnce(&mut Value)) -> (Held, Room) {
        let room = self.room("template", |spec| {
            spec["process"]["args"] = json!(words);
            change(spec);
        });
        let log = File::create(self.world.base().join("template.log")).unwrap();
        let null = File::open("/dev/null").unwrap();
        let origin = Origin {
            sandbox: &room.sandbox,
            process: room.spec.process().as_ref().unwrap(),
            linux: room.spec.linux().as_ref(),
            stdio: [null.as_fd(), log.as_fd(), log.as_fd()],
        };
        let held = Held::take(&origin).unwrap_or_else(|error| {
            self.world.delete(&room.id);
            panic!("{error}");
        });
        (held, room)
    }

    pub fn close(&self, held: Held, room: Room) {
        held.close().unwrap();
        self.world.delete(&room.id);
    }
}

impl Room {
    /// What the first process says of how its child ended.
    pub fn status(&self) -> i32 {
        let text = || fs::read_to_string(&self.status).unwrap_or_default();
        eventually("the copy's end is told to its container's first process", || text().ends_with('\n'));
        text().trim().parse().unwrap()
    }

    pub fn persona(&self) -> &Persona {
        self.persona.as_ref().unwrap()
    }

    /// A place for a copy in here.
    pub fn prepare(&self, held: &mut Held) -> Result<Guest> {
        held.prepare(&self.sandbox, self.persona(), self.directory.as_fd())
    }
}

/// Attends to a template until it ends.
#[track_caller]
pub fn attend_to_end(held: &mut Held) -> End {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(end) = held.attend().unwrap() {
            return end;
        }
        assert!(Instant::now() < deadline, "the template never ends");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a template says next.
#[track_caller]
pub fn hear(held: &mut Held) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        assert_eq!(held.attend().unwrap(), None, "the template ends");
        assert!(Instant::now() < deadline, "the template says nothing");
        let mut ends = [PollFd::new(held.channel().as_fd(), PollFlags::POLLIN)];
        if poll(&mut ends, PollTimeout::from(2_u8)).unwrap() == 1 {
            let said = held.channel().receive().unwrap().expect("the template's end of its socket is open");
            return String::from_utf8(said.bytes).unwrap();
        }
    }
}

/// Gives a place its descriptors: empty input, an output that is read here, a job.
pub fn furnish(held: &mut Held, guest: &mut Guest) -> Result<PipeReader> {
    let (reader, writer) = std::io::pipe().unwrap();
    let (null, job) = (File::open("/dev/null").unwrap(), regen::sys::fs::memory_file("job", b"job").unwrap());
    let writer = OwnedFd::from(writer);
    held.furnish(guest, &[null.as_fd(), writer.as_fd(), writer.as_fd(), job.as_fd()])?;
    Ok(reader)
}

/// Asks for a fork, and makes a copy of it.
pub fn fork(held: &mut Held, guest: Guest) -> Result<Process> {
    assert!(held.channel().send(b"fork 1", &[]).unwrap());
    held.fork(guest, Control::None, LIMIT)
}

/// A copy in a container, to the end of its output.
#[track_caller]
pub fn copy(held: &mut Held, room: &Room) -> HashMap<String, String> {
    let mut guest = room.prepare(held).unwrap();
    let mut reader = furnish(held, &mut guest).unwrap();
    let copy = fork(held, guest).unwrap();
    assert_eq!(hear(held), format!("forked 1 {}", copy.pid()));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    fields(&text)
}

/// `name: value`, a line each.
pub fn fields(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}
