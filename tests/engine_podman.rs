//! The real podman with regen as its runtime: what a container in a ring is worth to people who never type `regen run`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Output, REGEN, World, eventually};
use serde_json::Value;

/// podman with a storage, a configuration and a cgroup of its own.
struct Podman<'a> {
    world: &'a World,
    /// Also the name of its cgroup, by which the world finds what is left.
    parent: String,
}

impl<'a> Podman<'a> {
    fn new(world: &'a World) -> Self {
        let podman = Self { world, parent: world.id("pods") };
        let runtime = podman.path("regen");
        let store = world.store();
        // podman gives its runtime flags for root and log, but none for the store.
        let script = format!("#!/bin/sh\nexec {REGEN} --store {} \"$@\"\n", store.display());
        fs::write(&runtime, script).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        // Limits that any machine grants, and locks that are files of this test.
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n\
             [engine.runtimes]\nregen = [\"{}\"]\n",
            runtime.display()
        );
        fs::write(podman.path("containers.conf"), settings).unwrap();
        let image = podman.path("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(world.rootfs()).arg("-cf").arg(&image).arg(".");
        world.finish(tar).success();
        podman.call(&["import", "--quiet", image.to_str().unwrap(), "box:1"]).success();
        podman
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.base().join(name)
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        command.arg("--root").arg(self.path("podman")).arg("--runroot").arg(self.path("r"));
        command.arg("--tmpdir").arg(self.path("t")).args(["--runtime", "regen"]).args(arguments);
        self.world.finish(command)
    }

    /// `podman run` with these options, and this command in the image.
    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        let parent = format!("/{}", self.parent);
        let fixed = ["run", "--network", "none", "--cgroup-parent", &parent];
        self.call(&[&fixed, options, &["box:1"], command].concat())
    }

    fn log(&self, ring: &str) -> Vec<Value> {
        let output = self.world.regen(&["ring", "log", ring, "--json"]);
        serde_json::from_str(output.success().stdout()).unwrap()
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // What podman keeps until the next boot: its storage's mount, and the cgroups above its containers. Its monitors
        // of containers that have failed take a moment to end.
        let _ = self.call(&["rm", "--all", "--force", "--time", "0"]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.take_down() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Podman<'_> {
    /// Whether nothing is left; if something is, the world tells what.
    fn take_down(&self) -> bool {
        let below = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let parents: Vec<_> =
            below.chain(["/sys/fs/cgroup".into()]).map(|hierarchy| hierarchy.join(&self.parent)).collect();
        for parent in &parents {
            let _ = fs::remove_dir(parent.join("conmon"));
            let _ = fs::remove_dir(parent);
        }
        let mount = nix::mount::umount(&self.path("podman/overlay"));
        mount != Err(nix::errno::Errno::EBUSY) && !parents.iter().any(|parent| parent.exists())
    }
}

const ALICE: [&str; 3] = ["--rm", "--annotation", "run.regen.ring=alice"];

#[test]
fn a_ring_outlives_the_containers_of_podman() {
    let world = World::new("pm");
    let podman = Podman::new(&world);
    podman.run(&ALICE, &["sh", "-c", "echo hi > /etc/motd; rm /bin/ls"]).success();
    let read = podman.run(&ALICE, &["sh", "-c", "cat /etc/motd; test ! -e /bin/ls"]);
    assert_eq!(read.success().stdout(), "hi\n");
    podman.run(&["--rm"], &["test", "-e", "/etc/motd"]).code(1);
    // The second run changed nothing: what podman itself puts into a container is no change.
    assert_eq!(podman.log("alice").len(), 1);
    let diff = world.regen(&["ring", "diff", "alice@base", "alice@latest"]);
    let lines: Vec<_> = diff.success().stdout().lines().collect();
    assert!(lines.contains(&"A /etc/motd") && lines.contains(&"D /bin/ls"), "{lines:?}");
}

#[test]
fn a_container_of_podman_can_be_entered_stopped_and_put_back() {
    let world = World::new("pb");
    let podman = Podman::new(&world);
    podman.run(&ALICE, &["sh", "-c", "echo good > /root/state"]).success();
    let name = world.id("box");
    let script = "trap 'exit 0' TERM; echo bad > /root/state; while :; do sleep 0.05; done";
    let ring = ["--annotation", "run.regen.ring=alice", "--detach", "--name", &name];
    podman.run(&ring, &["sh", "-c", script]).success();
    let state = || podman.call(&["exec", &name, "cat", "/root/state"]).success().stdout().to_owned();
    eventually("the program ran", || state() == "bad\n");
    podman.run(&ALICE, &["true"]).code(126);
    podman.call(&["stop", "--time", "30", &name]).success();
    podman.call(&["rm", &name]).success();
    world.regen(&["ring", "rollback", "alice", "--to", "@-1"]).success();
    assert_eq!(podman.run(&ALICE, &["cat", "/root/state"]).success().stdout(), "good\n");
}

#[test]
fn podman_tells_its_user_why_regen_refused() {
    let world = World::new("pe");
    let podman = Podman::new(&world);
    podman.run(&ALICE, &["nonesuch"]).code(127);
    podman.run(&ALICE, &["/etc/passwd"]).code(126);
    let refused = podman.run(&["--rm", "--annotation", "run.regen.rign=alice"], &["true"]);
    assert!(refused.code(126).stderr().contains("run.regen.rign"), "{refused:?}");
    assert_eq!(world.ring_json(&["ls"]), serde_json::json!([]), "a container that could not be made leaves no ring");
}
