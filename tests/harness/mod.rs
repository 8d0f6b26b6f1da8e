//! What every test of the real binary shares: a world of its own, and proof that nothing of it is left.
//!
//! ```no_run
//! let world = World::new("lifecycle");
//! let bundle = world.bundle(|spec| spec["process"]["args"] = json!(["echo", "hi"]));
//! let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
//! assert_eq!(output.success().stdout(), "hi\n");
//! // dropping the world fails the test if a mount, cgroup, process, loop device or state is left
//! ```

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod certificate;
pub mod daemon;
pub mod enclosure;
pub mod etcd;
pub mod image;
pub mod image_registry;
pub mod keeper;
mod leaks;
pub mod load;
pub mod middleware;
pub mod port;
pub mod registry;
pub mod ring;
pub mod site;
pub mod template;
pub mod user;
pub mod visitor;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The program under test.
pub const REGEN: &str = env!("CARGO_BIN_EXE_regen");

/// No command takes longer, on a slow machine with everything else running; one that does is killed and told of. An
/// emulated machine gives another number of seconds.
fn limit() -> Duration {
    let seconds = std::env::var("REGEN_OCI_TEST_LIMIT").map_or(60, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// A state root, a store, a root file system and bundles, all under one directory that goes with it.
#[derive(Debug)]
pub struct World {
    base: PathBuf,
    prefix: String,
    counter: AtomicU32,
}

impl World {
    /// A fresh world. `name` shows in the names of everything that it makes.
    pub fn new(name: &str) -> Self {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("rt{}-{}-{name}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let base = std::env::temp_dir().join(format!("regen-test-{prefix}"));
        for directory in ["run", "out", "bundles"] {
            fs::create_dir_all(base.join(directory)).unwrap();
        }
        let world = Self { base, prefix, counter: AtomicU32::new(0) };
        make_rootfs(&world.rootfs());
        world
    }

    /// The directory that everything is under.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// `--root`
    pub fn root(&self) -> PathBuf {
        self.base.join("run")
    }

    /// `--store`; made by whoever needs it.
    pub fn store(&self) -> PathBuf {
        self.base.join("store")
    }

    /// A root file system with busybox, shared by the bundles of this world.
    pub fn rootfs(&self) -> PathBuf {
        self.base.join("rootfs")
    }

    /// A container's id, and with it the name of its cgroup, that no other test has.
    pub fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The directory of a container under the state root.
    pub fn state_directory(&self, id: &str) -> PathBuf {
        self.root().join(id)
    }

    /// A bundle over the shared root file system, with its specification changed.
    pub fn bundle(&self, change: impl FnOnce(&mut Value)) -> Directory {
        let directory = self.base.join("bundles").join(self.count().to_string());
        fs::create_dir_all(&directory).unwrap();
        let mut spec = spec(&self.rootfs());
        change(&mut spec);
        fs::write(directory.join("config.json"), spec.to_string()).unwrap();
        Directory(directory)
    }

    /// A bundle whose program is `sh -c SCRIPT`.
    pub fn shell(&self, script: &str) -> Directory {
        self.bundle(|spec| spec["process"]["args"] = json!(["sh", "-c", script]))
    }

    /// The program with the global flags of this world and these arguments, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(REGEN);
        command.arg("--root").arg(self.root()).arg("--store").arg(self.store()).args(arguments);
        command.current_dir(&self.base);
        command
    }

    /// Runs the program to its end.
    pub fn regen(&self, arguments: &[&str]) -> Output {
        self.finish(self.command(arguments))
    }

    /// Runs the program to its end with this on standard input.
    pub fn regen_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let path = self.base.join("out").join(format!("{}.in", self.count()));
        fs::write(&path, input).unwrap();
        let mut command = self.command(arguments);
        command.stdin(File::open(path).unwrap());
        self.spawn(command).finish()
    }

    /// Runs a command to its end, without input.
    pub fn finish(&self, mut command: Command) -> Output {
        command.stdin(Stdio::null());
        self.spawn(command).finish()
    }

    /// Starts a command. Its output goes to files: a detached container that still holds a pipe keeps nobody waiting.
    pub fn spawn(&self, mut command: Command) -> Running {
        let number = self.count();
        let open = |kind: &str| {
            let path = self.base.join("out").join(format!("{number}.{kind}"));
            (File::create(&path).unwrap(), path)
        };
        let ((stdout, stdout_path), (stderr, stderr_path)) = (open("out"), open("err"));
        // A group of its own: what a terminal or a test sends to the test's group is not for it.
        command.stdout(stdout).stderr(stderr).process_group(0);
        let text = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("{text}: {error}"));
        Running { child, text, stdout: stdout_path, stderr: stderr_path }
    }

    /// `state`, parsed.
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(self.regen(&["state", id]).success().stdout()).unwrap()
    }

    /// The status of a container.
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    /// The pid of a container's first process.
    pub fn pid(&self, id: &str) -> i32 {
        i32::try_from(self.state(id)["pid"].as_i64().unwrap()).unwrap()
    }

    /// Starts a container in the background that does nothing, for as long as the test wants.
    pub fn sleeper(&self, name: &str) -> String {
        let bundle = self.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
        let id = self.id(name);
        self.regen(&["run", "--detach", "--bundle", bundle.text(), &id]).success();
        id
    }

    /// Deletes a container, whatever it does.
    pub fn delete(&self, id: &str) {
        self.regen(&["delete", "--force", id]).success();
    }

    /// What is left of mounts, cgroups, processes, states and half-written files, once what is ending has ended.
    pub fn leaks(&self) -> Vec<String> {
        leaks::find_lasting(&self.base, &self.prefix)
    }

    fn count(&self) -> u32 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }
}

impl AsRef<Path> for World {
    fn as_ref(&self) -> &Path {
        &self.base
    }
}

impl Drop for World {
    fn drop(&mut self) {
        leaks::wait_for_workers(&self.base, limit());
        let found = leaks::find_lasting(&self.base, &self.prefix);
        if !found.is_empty() {
            leaks::clean(&self.base, &self.prefix);
        }
        let _ = fs::remove_dir_all(&self.base);
        if !found.is_empty() {
            let text = format!("left behind by {}:\n  {}", self.prefix, found.join("\n  "));
            if std::thread::panicking() {
                // A second panic would hide the first one's message.
                let _ = writeln!(std::io::stderr(), "{text}");
            } else {
                panic!("{text}");
            }
        }
    }
}

/// A directory with its path as text, which every path here has.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path, as an argument.
    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

/// A command that was started.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Child,
    text: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// What it has printed so far.
    pub fn so_far(&self) -> String {
        read_text(&self.stdout)
    }

    /// What it has said on standard error so far.
    pub fn complaints(&self) -> String {
        read_text(&self.stderr)
    }

    /// Waits until it has printed this.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + limit();
        while !self.so_far().contains(text) {
            if self.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let (out, err) = (self.so_far(), read_text(&self.stderr));
                let _ = self.child.kill();
                panic!("{}: waited for {text:?}\nstdout: {out}\nstderr: {err}", self.text);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Output {
        let deadline = Instant::now() + limit();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let stack = fs::read_to_string(format!("/proc/{}/wchan", self.child.id())).unwrap_or_default();
                let _ = self.child.kill();
                let _ = self.child.wait();
                let (out, err) = (read_text(&self.stdout), read_text(&self.stderr));
                panic!("{} hangs (in {stack})\nstdout: {out}\nstderr: {err}", self.text);
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let code = status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or(0));
        Output { text: self.text, code, stdout: read_text(&self.stdout), stderr: read_text(&self.stderr) }
    }
}

/// What came of a command.
#[derive(Debug)]
pub struct Output {
    text: String,
    /// The exit status; 1000 and the signal if one ended it.
    pub code: i32,
    stdout: String,
    stderr: String,
}

impl Output {
    /// Its standard output.
    pub fn stdout(&self) -> &str {
        &self.stdout
    }

    /// Its standard error.
    pub fn stderr(&self) -> &str {
        &self.stderr
    }

    /// It ended with 0.
    #[track_caller]
    pub fn success(&self) -> &Self {
        self.code(0)
    }

    /// It ended with this status.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{}\nstdout: {}\nstderr: {}", self.text, self.stdout, self.stderr);
        self
    }

    /// It ended with this status and said so in exactly one line, which contains this.
    #[track_caller]
    pub fn fails_with(&self, code: i32, words: &str) -> &Self {
        self.code(code);
        let lines: Vec<&str> = self.stderr.lines().collect();
        let one = lines.len() == 1 && lines[0].starts_with("regen: ") && lines[0].contains(words);
        assert!(one, "{}\nexpected one line with {words:?}, got: {}", self.text, self.stderr);
        self
    }
}

/// Waits until something is so.
#[track_caller]
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit();
    while !so() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The fields of `/proc/PID/status`.
pub fn process_status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

/// The cgroup of a process: that of its number of processes, or the only one where there is but version 2.
pub fn cgroup_of(pid: i32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let find = |controllers: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.find(|(names, _)| names.split(',').any(|name| name == controllers)).map(|(_, path)| &path[1..])
    };
    match find("pids") {
        Some(path) => Path::new("/sys/fs/cgroup/pids").join(path),
        None => Path::new("/sys/fs/cgroup").join(find("").unwrap()),
    }
}

/// How many processes are in a cgroup.
pub fn count_members(cgroup: &Path) -> usize {
    fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().lines().count()
}

/// A specification as an engine would write it: namespaces of its own, the usual mounts, no terminal.
fn spec(rootfs: &Path) -> Value {
    let capabilities = [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_MKNOD",
    ];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs.to_str().unwrap(), "readonly": false},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    })
}

fn make_rootfs(rootfs: &Path) {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    let applets = APPLETS.get_or_init(|| {
        let output = Command::new("/bin/busybox").arg("--list").output().expect("busybox-static is installed");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    });
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "var"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in applets.iter().filter(|applet| *applet != "busybox") {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let mut passwd = File::create(rootfs.join("etc/passwd")).unwrap();
    passwd.write_all(b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n").unwrap();
}

fn read_text(path: &Path) -> String {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
