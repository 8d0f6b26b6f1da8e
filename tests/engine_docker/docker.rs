//! A daemon that touches nothing of one that the machine may have: no bridge, no packet filter, no directory in common.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Output, REGEN, Running, World, eventually};

/// Debian's client, whatever else is in the path.
const CLIENT: &str = "/usr/bin/docker";

/// The image that each of them has: busybox.
pub const IMAGE: &str = "box:1";

/// A daemon and its client.
pub struct Docker<'a> {
    world: &'a World,
    daemon: Option<Running>,
    /// The name of the cgroup of its containers, by which the world finds what is left.
    parent: String,
}

impl<'a> Docker<'a> {
    /// A daemon that answers, with an image, and a runtime `regen` that has these further entries, each made by
    /// `regen install` with these arguments.
    pub fn new(world: &'a World, entries: &[&[&str]]) -> Self {
        let docker = Self { world, daemon: None, parent: world.id("docker") };
        let settings = docker.settings();
        let path = |name: &str| docker.path(name).to_str().unwrap().to_owned();
        fs::create_dir_all(settings.parent().unwrap()).unwrap();
        let own = json!({
            "bridge": "none", "iptables": false, "ip-forward": false, "userland-proxy": false,
            "data-root": path("data"), "exec-root": path("exec"), "pidfile": path("pid"),
            "hosts": [format!("unix://{}", path("sock"))], "cgroup-parent": format!("/{}", docker.parent),
            "shutdown-timeout": 1, "deprecated-key-path": path("key.json"), "storage-driver": "overlay2",
            // Limits that any machine grants.
            "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 1024}},
        });
        fs::write(&settings, own.to_string()).unwrap();
        for entry in [&[][..]].iter().chain(entries) {
            docker.install(entry).success();
        }
        docker.started()
    }

    fn started(mut self) -> Self {
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(self.settings()).current_dir(self.world.base());
        self.daemon = Some(self.world.spawn(command));
        let log = || self.daemon.as_ref().map(Running::complaints).unwrap_or_default();
        eventually("the daemon answers", || {
            assert!(!log().contains("failed to start daemon"), "{}", log());
            self.call(&["version"]).code == 0
        });
        let image = self.path("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(self.world.rootfs()).arg("-cf").arg(&image).arg(".");
        self.world.finish(tar).success();
        self.call(&["import", image.to_str().unwrap(), IMAGE]).success();
        self
    }

    /// A file of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.base().join(name)
    }

    fn settings(&self) -> PathBuf {
        self.path("machine/etc/docker/daemon.json")
    }

    /// `regen install --engine docker` for this daemon.
    pub fn install(&self, arguments: &[&str]) -> Output {
        let machine = self.path("machine");
        let binary = machine.join(REGEN.trim_start_matches('/'));
        if !binary.exists() {
            fs::create_dir_all(binary.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(REGEN, &binary).unwrap();
        }
        let mut command = Command::new(REGEN);
        command.arg("--store").arg(self.world.store()).args(["install", "--engine", "docker", "--root-dir"]);
        command.arg(machine).args(arguments);
        self.world.finish(command)
    }

    /// Runs the client to its end.
    pub fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(CLIENT);
        command.env("DOCKER_CONFIG", self.path("client"));
        command.arg("--host").arg(format!("unix://{}", self.path("sock").display())).args(arguments);
        self.world.finish(command)
    }

    /// `docker run` on a runtime with these options, and this command in the image.
    pub fn run(&self, runtime: &str, options: &[&str], command: &[&str]) -> Output {
        self.call(&[&["run", "--network", "none", "--runtime", runtime], options, &[IMAGE], command].concat())
    }

    /// Starts `sh -c SCRIPT` in the background and waits until it has printed `up`; gives the container's name.
    pub fn start(&self, runtime: &str, options: &[&str], script: &str) -> String {
        let name = self.world.id("box");
        self.run(runtime, &[&["--detach", "--name", &name], options].concat(), &["sh", "-c", script]).success();
        eventually("the program is up", || self.call(&["logs", &name]).stdout().contains("up\n"));
        name
    }

    /// One field of `docker inspect`, by a Go template.
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.call(&["inspect", "--format", template, name]).success().stdout().trim().to_owned()
    }

    /// What the daemon leaves when it ends: its network namespace's mount, and the cgroup above its containers.
    fn take_down(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let points: Vec<_> = points.filter(|point| point.starts_with(self.world.base())).collect();
        for point in points.iter().rev() {
            let _ = nix::mount::umount(point);
        }
        let below = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let parents: Vec<_> =
            below.chain(["/sys/fs/cgroup".into()]).map(|hierarchy| hierarchy.join(&self.parent)).collect();
        parents.iter().for_each(|parent| drop(fs::remove_dir(parent)));
        points.is_empty() && !parents.iter().any(|parent| parent.exists())
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        let containers = self.call(&["ps", "--all", "--quiet"]);
        for id in containers.stdout().split_whitespace() {
            let _ = self.call(&["rm", "--force", id]);
        }
        if let Some(daemon) = self.daemon.take() {
            let _ = kill(Pid::from_raw(daemon.pid()), Signal::SIGTERM);
            let _ = daemon.finish();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.take_down() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
