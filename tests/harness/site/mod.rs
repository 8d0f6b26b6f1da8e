//! Several hosts on one machine. Each has namespaces of its own (network, mounts, host name, IPC), cgroups of its own, and
//! a root and a store of its own; wires lead from each to a switch. Nothing of the machine's own network is touched.
//!
//! ```no_run
//! let site = Site::new("cluster", 3);
//! site.begin_etcd();
//! site.start(0, &["--cluster", &site.url()]);
//! site.cut(0, Cut::Silence);
//! site.heal();
//! ```
//!
//! Processes of all hosts have pids of the machine, so that a test can see and kill them. Dropping a site ends its hosts as
//! their power switch would; what they should have removed before is then found by the world's look for leaks.

mod member;
mod network;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Output, Running, World, eventually};
use member::Member;
use network::Switch;

pub use network::Cut;

/// The hosts, and what they share.
#[derive(Debug)]
pub struct Site {
    hosts: Vec<Host>,
    switch: Switch,
    world: World,
}

/// One of them.
#[derive(Debug)]
pub struct Host {
    /// Its name, also that of its node.
    pub name: String,
    /// Where the others reach it.
    pub address: String,
    directory: PathBuf,
    /// Has its namespaces.
    keeper: Child,
    /// Its cgroups, as the machine sees them.
    cgroup: String,
    daemon: Mutex<Option<Running>>,
    member: Member,
}

impl Site {
    /// So many hosts, which reach each other and nobody else.
    pub fn new(name: &str, count: usize) -> Self {
        let world = World::new(name);
        let switch = Switch::new(&world);
        let hosts: Vec<_> = (0..count).map(|index| Host::new(&world, index)).collect();
        for host in &hosts {
            switch.connect(&world, host);
        }
        Self { hosts, switch, world }
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// What they share: bundles and root file systems.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// One of them.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// The program with the global flags of a host, in that host, not yet run.
    pub fn command(&self, index: usize, arguments: &[&str]) -> Command {
        let host = &self.hosts[index];
        let mut command = Command::new(super::REGEN);
        command.arg("--root").arg(host.root()).arg("--store").arg(host.store());
        if host.configuration().exists() {
            command.arg("--config").arg(host.configuration());
        }
        command.args(arguments);
        host.enter(&command)
    }

    /// Runs the program in a host.
    pub fn regen(&self, index: usize, arguments: &[&str]) -> Output {
        self.world.finish(self.command(index, arguments))
    }

    /// Runs the program in a host, which has to succeed and to print JSON.
    #[track_caller]
    pub fn json(&self, index: usize, arguments: &[&str]) -> Value {
        serde_json::from_str(self.regen(index, arguments).success().stdout()).unwrap()
    }

    /// Runs a script in a host, which has to succeed.
    #[track_caller]
    pub fn shell(&self, index: usize, script: &str) -> String {
        self.hosts[index].shell(&self.world, script).success().stdout().to_owned()
    }

    /// Starts the daemon of a host, and waits until it answers.
    #[track_caller]
    pub fn start(&self, index: usize, options: &[&str]) {
        let host = &self.hosts[index];
        let mut daemon = host.daemon();
        assert!(daemon.is_none(), "there is one");
        let mut running = self.world.spawn(self.command(index, &[&["serve"], options].concat()));
        eventually("the daemon answers", || {
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the daemon of {} ended with {status}: {}", host.name, running.complaints());
            }
            self.regen(index, &["call", "run.regen.Control.GetStatus"]).code == 0
        });
        *daemon = Some(running);
    }

    /// Starts a daemon that is to end by itself with an error.
    pub fn start_in_vain(&self, index: usize, options: &[&str]) -> Output {
        self.regen(index, &[&["serve"], options].concat())
    }

    /// Whether the daemon of a host was started and not ended.
    pub fn has_daemon(&self, index: usize) -> bool {
        self.hosts[index].daemon().is_some()
    }

    /// Ends the daemon of a host by a signal, and waits for that.
    #[track_caller]
    pub fn end(&self, index: usize, signal: Signal) -> Output {
        let running = self.hosts[index].daemon().take().expect("there is one");
        running.signal(signal);
        running.finish()
    }

    /// The process of the daemon of a host.
    pub fn pid(&self, index: usize) -> i32 {
        self.hosts[index].daemon.lock().unwrap().as_ref().expect("there is one").pid()
    }

    /// The daemon of a host does nothing for a while (`SIGSTOP`), or goes on (`SIGCONT`).
    pub fn signal(&self, index: usize, signal: Signal) {
        self.hosts[index].daemon().as_ref().expect("there is one").signal(signal);
    }

    /// What the daemon of a host has logged.
    pub fn log(&self, index: usize) -> String {
        self.hosts[index].daemon().as_ref().map(Running::complaints).unwrap_or_default()
    }

    /// Cuts a host off from all others.
    pub fn cut(&self, index: usize, way: Cut) {
        self.shell(index, &network::cut(way, None));
    }

    /// Cuts two hosts off from each other.
    pub fn cut_between(&self, one: usize, other: usize, way: Cut) {
        for (here, there) in [(one, other), (other, one)] {
            self.shell(here, &network::cut(way, Some(&[self.hosts[there].address.clone()])));
        }
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        for index in 0..self.len() {
            self.hosts[index].shell(&self.world, network::HEAL).success();
        }
    }
}

impl Host {
    fn new(world: &World, index: usize) -> Self {
        let name = format!("n{index}");
        let directory = world.base().join("hosts").join(&name);
        fs::create_dir_all(directory.join("run")).unwrap();
        let cgroup = world.id(&name);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/harness/site/host.sh");
        let place = fs::read_link("/proc/self/ns/mnt").unwrap();
        let mut command = Command::new("sh");
        command.arg(script).args([&name, &cgroup]).arg(place).current_dir(&directory).stdin(Stdio::null());
        let mut running = world.spawn(command);
        running.wait_for("ready");
        Self {
            address: network::address(index),
            name,
            directory,
            keeper: running.child,
            cgroup,
            daemon: Mutex::default(),
            member: Member::default(),
        }
    }

    /// `--root`
    pub fn root(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// `--store`
    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// `--config`, if a test wrote one.
    pub fn configuration(&self) -> PathBuf {
        self.directory.join("config.toml")
    }

    /// A command as it is called in this host: in its cgroups, its namespaces and its directory. Its pid stays the same.
    pub fn enter(&self, command: &Command) -> Command {
        let script = "for group in /sys/fs/cgroup/*/\"$1\"; do echo $$ >\"$group/cgroup.procs\"; done
            host=$2; shift 2; exec nsenter --target \"$host\" --mount --net --uts --ipc --cgroup -- \"$@\"";
        let mut outer = Command::new("sh");
        outer.args(["-ec", script, "sh", &self.cgroup, &self.keeper.id().to_string()]);
        outer.arg(command.get_program()).args(command.get_args()).current_dir(&self.directory);
        outer
    }

    /// Also after a test has failed at it.
    fn daemon(&self) -> MutexGuard<'_, Option<Running>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shell(&self, world: &World, script: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        world.finish(self.enter(&command))
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        hierarchies.map(|hierarchy| hierarchy.path().join(&self.cgroup)).filter(|group| group.is_dir()).collect()
    }

    fn power_off(&mut self) {
        let running = self.daemon().take();
        if let Some(running) = running {
            if std::thread::panicking() {
                let _ =
                    writeln!(std::io::stderr(), "the log of the daemon of {}:\n{}", self.name, running.complaints());
            }
            running.signal(Signal::SIGKILL);
            running.finish();
        }
        self.member.end();
        // Both fail only if it has ended.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.power_off();
        }
        self.switch.end();
        for group in self.hosts.iter().flat_map(Host::cgroups) {
            // One that still has something in it is found as a leak.
            let _ = fs::remove_dir(group);
        }
    }
}
