//! The real daemon, for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::caller::{Caller, status};
use crate::harness::{Output, Running, World, eventually, process_status};

/// It ends with the test.
#[derive(Debug)]
pub struct Daemon {
    running: Option<Running>,
    root: PathBuf,
}

impl Daemon {
    /// Starts one for the root of a world, and waits until it answers.
    pub fn start(world: &World) -> Self {
        Self::start_as(world, world.command(&["serve"]), &world.root())
    }

    /// Starts one in a way of its own.
    pub fn start_as(world: &World, command: Command, root: &Path) -> Self {
        let mut daemon = Self { running: Some(world.spawn(command)), root: root.to_owned() };
        eventually("the daemon answers", || {
            let running = daemon.running.as_mut().unwrap();
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", running.complaints());
            }
            fs::exists(root.join("run.regen.Control")).unwrap() && daemon.pid_by_call() == Some(daemon.pid())
        });
        daemon
    }

    /// Who answers, if anybody does.
    fn pid_by_call(&self) -> Option<i32> {
        // A socket that a dead daemon has left refuses.
        let stream = std::os::unix::net::UnixStream::connect(self.root.join("run.regen.Control")).ok()?;
        let pid = Caller::over(stream).attempt(&status())?["pid"].as_i64()?;
        i32::try_from(pid).ok()
    }

    /// When it began; `None` if it is just about to begin anew.
    pub fn started(&self) -> Option<Value> {
        Some(self.connect().attempt(&status())?["started"].clone())
    }

    pub fn pid(&self) -> i32 {
        self.running.as_ref().unwrap().pid()
    }

    pub fn connect(&self) -> Caller {
        Caller::connect(&self.root)
    }

    pub fn status(&self) -> Value {
        self.connect().call(&status())
    }

    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// How many descriptors it has once nobody is connected.
    pub fn descriptors_at_rest(&self) -> usize {
        eventually("nobody is connected", || self.callers() == 0);
        self.descriptors()
    }

    /// How many threads it has for callers.
    fn callers(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map(name).filter(|name| name.trim_end() == "connection").count()
    }

    /// A field of its `/proc/PID/status` that is a number.
    pub fn number(&self, field: &str) -> u64 {
        process_status(self.pid(), field).split(' ').next().unwrap().parse().unwrap()
    }

    /// How often any of its threads has gone to sleep or was put aside.
    pub fn switches(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let texts = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
        let counts = |text: String| -> u64 {
            let lines = text.lines().filter_map(|line| line.split_once("ctxt_switches:"));
            lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
        };
        texts.map(counts).sum()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.running.as_ref().unwrap().complaints()
    }

    pub fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    /// Waits until nobody is connected, and it has as many descriptors as this.
    pub fn is_at_rest_with(&self, descriptors: usize) {
        eventually("the daemon is at rest", || self.callers() == 0 && self.descriptors() == descriptors);
    }

    /// Ends it by a signal.
    pub fn end(mut self, signal: Signal) -> Output {
        self.signal(signal);
        self.running.take().unwrap().finish()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid()), Signal::SIGTERM);
            let output = running.finish();
            if !std::thread::panicking() {
                output.success();
            }
        }
    }
}
