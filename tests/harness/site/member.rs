//! An etcd over the hosts of a site: one member in each.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::{Output, eventually};
use super::{Host, Site};

/// A member's place; the child is there while it runs.
#[derive(Debug, Default)]
pub(super) struct Member(Mutex<Option<Child>>);

impl Member {
    fn take(&self) -> Option<Child> {
        self.0.lock().unwrap().take()
    }

    /// As a machine that loses power ends it.
    pub(super) fn end(&self) {
        if let Some(mut child) = self.take() {
            // Both fail only if it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Site {
    /// Begins an etcd with a member in every host, and waits until it answers.
    pub fn begin_etcd(&self) {
        for index in 0..self.len() {
            self.spawn_member(index);
        }
        self.await_member(0);
    }

    /// How regen is told of it.
    pub fn url(&self) -> String {
        let endpoints: Vec<_> = self.hosts.iter().map(|host| format!("{}:2379", host.address)).collect();
        format!("etcd://{}", endpoints.join(","))
    }

    /// Ends the member of a host at once.
    pub fn kill_member(&self, index: usize) {
        self.hosts[index].member.end();
    }

    /// Begins a member that was killed, with the data that it had. Whether it answers depends on the others.
    pub fn restart_member(&self, index: usize) {
        assert!(self.hosts[index].member.0.lock().unwrap().is_none(), "it runs");
        self.spawn_member(index);
    }

    /// A member does nothing for a while, and its connections stay open.
    pub fn pause_member(&self, index: usize) {
        self.signal_member(index, Signal::SIGSTOP);
    }

    /// It goes on.
    pub fn resume_member(&self, index: usize) {
        self.signal_member(index, Signal::SIGCONT);
    }

    /// Waits until a member takes part in the whole.
    #[track_caller]
    pub fn await_member(&self, index: usize) {
        eventually("etcd answers", || self.ctl(index, &["endpoint", "health"]).code == 0);
    }

    /// `etcdctl` in a host, with its own member.
    pub fn ctl(&self, index: usize, arguments: &[&str]) -> Output {
        let host = &self.hosts[index];
        let endpoint = format!("--endpoints=http://{}:2379", host.address);
        let mut command = Command::new("etcdctl");
        command.args(["--command-timeout=2s", "--dial-timeout=2s", &endpoint]).args(arguments);
        let mut command = host.enter(&command);
        command.env("ETCDCTL_API", "3");
        self.world.finish(command)
    }

    fn spawn_member(&self, index: usize) {
        let host = &self.hosts[index];
        let directory = host.directory.join("etcd");
        fs::create_dir_all(&directory).unwrap();
        let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let peers: Vec<_> = self.hosts.iter().map(|host| format!("{}={}", host.name, peer_url(host))).collect();
        let mut command = Command::new("etcd");
        command.args(["--name", &host.name, "--data-dir"]).arg(directory.join("data"));
        let client_url = format!("http://{}:2379", host.address);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url(host), "--initial-advertise-peer-urls", &peer_url(host)]);
        // Its own words for how long a leader may be silent: short, as its disks and wires are.
        command.args(["--heartbeat-interval=100", "--election-timeout=1000"]);
        command.arg(format!("--initial-cluster={}", peers.join(",")));
        let mut command = host.enter(&command);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *host.member.0.lock().unwrap() = Some(command.spawn().unwrap());
    }

    fn signal_member(&self, index: usize, signal: Signal) {
        let member = self.hosts[index].member.0.lock().unwrap();
        let child = member.as_ref().expect("it runs");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }
}

fn peer_url(host: &Host) -> String {
    format!("http://{}:2380", host.address)
}
