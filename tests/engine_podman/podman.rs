//! podman, as root, beside one that the machine may have.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, openpty};
use serde_json::Value;

use crate::harness::{Output, REGEN, World, eventually};

/// podman with a storage, a configuration and a cgroup of its own.
pub struct Podman<'a> {
    world: &'a World,
    /// Also the name of its cgroup, by which the world finds what is left.
    parent: String,
}

/// The image that each of them has: busybox.
pub const IMAGE: &str = "box:1";

impl<'a> Podman<'a> {
    /// Configured, with its image, and nothing running.
    pub fn new(world: &'a World) -> Self {
        let podman = Self { world, parent: world.id("pods") };
        let runtime = podman.path("regen");
        let store = world.store();
        // podman gives its runtime flags for root and log, but none for the store.
        let script = format!("#!/bin/sh\nexec {REGEN} --store {} \"$@\"\n", store.display());
        fs::write(&runtime, script).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(podman.path("containers.conf"), settings(world, &runtime)).unwrap();
        let image = podman.path("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(world.rootfs()).arg("-cf").arg(&image).arg(".");
        world.finish(tar).success();
        podman.call(&["import", "--quiet", image.to_str().unwrap(), IMAGE]).success();
        podman
    }

    /// A file of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.base().join(name)
    }

    /// podman with its global flags, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        // Where its monitor leaves a file of a container that took too much memory.
        command.current_dir(self.world.base());
        command.arg("--root").arg(self.path("podman")).arg("--runroot").arg(self.path("r"));
        command.arg("--tmpdir").arg(self.path("t")).args(["--runtime", "regen"]).args(arguments);
        command
    }

    /// Runs podman to its end.
    pub fn call(&self, arguments: &[&str]) -> Output {
        self.world.finish(self.command(arguments))
    }

    /// `podman run` with these options, and this command in the image.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.call(&self.run_arguments(options, command).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The arguments of [`Self::run`].
    pub fn run_arguments(&self, options: &[&str], command: &[&str]) -> Vec<String> {
        let parent = format!("/{}", self.parent);
        let fixed = ["run", "--network", "none", "--cgroup-parent", &parent];
        [&fixed, options, &[IMAGE], command].concat().into_iter().map(str::to_owned).collect()
    }

    /// Starts `sh -c SCRIPT` in the background and waits until it has printed `up`; gives the container's name.
    pub fn start(&self, options: &[&str], script: &str) -> String {
        let name = self.world.id("box");
        self.run(&[&["--detach", "--name", &name], options].concat(), &["sh", "-c", script]).success();
        eventually("the program is up", || self.call(&["logs", &name]).stdout().contains("up\n"));
        name
    }

    /// The name of the cgroup under which all of its containers are.
    pub fn parent(&self) -> String {
        format!("/{}", self.parent)
    }

    /// One field of `podman inspect`, by a Go template.
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.call(&["inspect", "--format", template, name]).success().stdout().trim().to_owned()
    }

    /// Runs podman at a terminal; what came out of it, and its exit status.
    pub fn at_terminal(&self, arguments: &[&str]) -> (String, i32) {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut command = self.command(arguments);
        let ends = [slave.try_clone().unwrap(), slave.try_clone().unwrap(), slave];
        let [input, output, errors] = ends.map(File::from);
        command.stdin(input).stdout(output).stderr(errors);
        let mut child = command.spawn().unwrap();
        // The ends that the command still has are ours too.
        drop(command);
        let mut text = Vec::new();
        // A terminal that nobody else has open any more ends in an error.
        let _ = File::from(master).read_to_end(&mut text);
        let status = child.wait().unwrap();
        (String::from_utf8_lossy(&text).into_owned(), status.code().unwrap())
    }

    /// `ring log`, parsed.
    pub fn log(&self, ring: &str) -> Vec<Value> {
        let output = self.world.regen(&["ring", "log", ring, "--json"]);
        serde_json::from_str(output.success().stdout()).unwrap()
    }

    /// Whether nothing is left; if something is, the world tells what.
    fn take_down(&self) -> bool {
        let below = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let parents: Vec<_> =
            below.chain(["/sys/fs/cgroup".into()]).map(|hierarchy| hierarchy.join(&self.parent)).collect();
        for parent in &parents {
            // Pods of podman have a cgroup that it leaves, now and then.
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(parent);
        }
        let mount = nix::mount::umount(&self.path("podman/overlay"));
        mount != Err(nix::errno::Errno::EBUSY) && !parents.iter().any(|parent| parent.exists())
    }
}

/// What regen says about itself, with limits that any machine grants, and locks that are files of this test.
fn settings(world: &World, runtime: &std::path::Path) -> String {
    let mut install = Command::new(REGEN);
    install.args(["install", "--engine", "podman", "--print", "--binary"]).arg(runtime);
    let printed = world.finish(install);
    let of_regen = printed.success().stdout();
    let head = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n";
    assert!(of_regen.contains("[engine]\n"), "{of_regen}");
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n";
    limits.to_owned() + &of_regen.replacen("[engine]\n", head, 1)
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // What podman keeps until the next boot: its storage's mount, and the cgroups above its containers. Its monitors
        // of containers that have failed take a moment to end.
        let _ = self.call(&["pod", "rm", "--all", "--force", "--time", "0"]);
        let _ = self.call(&["rm", "--all", "--force", "--time", "0"]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.take_down() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
