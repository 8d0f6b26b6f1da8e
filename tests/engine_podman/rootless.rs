//! podman of an ordinary user, who is made for the test and goes with it.
//!
//! podman makes a user namespace and calls its runtime as root of that: cgroups are not to be had here, and of the file
//! systems only what the user may write.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::user::{Person, Subordinates};
use crate::harness::{Output, World, eventually};
use crate::podman::IMAGE;

/// A user's podman.
struct Rootless<'a> {
    world: &'a World,
    person: Person<'a>,
}

impl<'a> Rootless<'a> {
    fn new(world: &'a World) -> Self {
        let person = Person::new(world, Subordinates::Some);
        let binary = person.path("bin/regen");
        let mut install = Command::new(&binary);
        install.args(["install", "--engine", "podman", "--print", "--binary"]).arg(&binary);
        let printed = world.finish(install).success().stdout().to_owned();
        let head = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n";
        let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n";
        fs::write(person.path("user.conf"), limits.to_owned() + &printed.replacen("[engine]\n", head, 1)).unwrap();
        let image = person.path("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(world.rootfs()).arg("-cf").arg(&image).arg(".");
        world.finish(tar).success();
        let rootless = Self { world, person };
        rootless.podman(&["import", "--quiet", image.to_str().unwrap(), IMAGE]).success();
        rootless
    }

    fn path(&self, name: &str) -> PathBuf {
        self.person.path(name)
    }

    /// Runs a program as the user.
    fn call(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.person.command(program, arguments);
        command.env("CONTAINERS_CONF", self.path("user.conf"));
        self.world.finish(command)
    }

    fn podman(&self, arguments: &[&str]) -> Output {
        self.call("podman", &[&["--storage-driver", "overlay", "--runtime", "regen"], arguments].concat())
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.podman(&[&["run", "--network", "none"], options, &[IMAGE], command].concat())
    }
}

impl Drop for Rootless<'_> {
    fn drop(&mut self) {
        let _ = self.podman(&["rm", "--all", "--force", "--time", "0"]);
        // The files of subordinate ids are removed best by whom they belong to.
        let _ = self.podman(&["unshare", "sh", "-c", "rm -rf .local/share/containers"]);
        // A process that podman leaves behind to keep its namespaces open.
        let pause = fs::read_to_string(self.path("xdg/libpod/tmp/pause.pid")).unwrap_or_default();
        if let Ok(pid) = pause.trim().parse() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

const ALICE: [&str; 3] = ["--rm", "--annotation", "run.regen.ring=alice"];

#[test]
fn a_container_of_an_ordinary_users_podman_lives_through_its_verbs() {
    let world = World::new("ul");
    let podman = Rootless::new(&world);
    let output = podman.run(&["--rm"], &["sh", "-c", "id -u; cat /proc/self/uid_map; echo x > /root/f; exit 3"]);
    let words: Vec<_> = output.code(3).stdout().split_whitespace().collect();
    assert_eq!(words[..4], ["0", "0", &podman.person.user.uid.to_string(), "1"], "{output:?}");
    podman.run(&["--rm"], &["nonesuch"]).code(127);
    let script = "trap 'exit 7' TERM; trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done";
    podman.run(&["--detach", "--name", "box"], &["sh", "-c", script]).success();
    eventually("the program is up", || podman.podman(&["logs", "box"]).stdout().contains("up\n"));
    assert_eq!(podman.podman(&["exec", "box", "sh", "-c", "echo in; exit 4"]).code(4).stdout(), "in\n");
    assert_eq!(podman.podman(&["exec", "--user", "1000", "box", "id", "-u"]).success().stdout(), "1000\n");
    podman.podman(&["kill", "--signal", "USR1", "box"]).success();
    eventually("the signal came", || podman.podman(&["logs", "box"]).stdout().ends_with("usr1\n"));
    podman.podman(&["restart", "--time", "30", "box"]).success();
    eventually("it is up again", || podman.podman(&["logs", "box"]).stdout().matches("up\n").count() == 2);
    podman.podman(&["stop", "--time", "30", "box"]).success();
    let state = podman.podman(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "box"]);
    assert_eq!(state.success().stdout(), "exited 7\n");
    podman.podman(&["rm", "box"]).success();
    // The user's own number inside, which maps the container's ids once more.
    let output = podman.run(&["--rm", "--userns", "keep-id"], &["id", "-u"]);
    assert_eq!(output.success().stdout(), format!("{}\n", podman.person.user.uid));
}

#[test]
fn a_ring_of_an_ordinary_user_is_in_their_own_store() {
    let world = World::new("ur");
    let podman = Rootless::new(&world);
    let script = "echo hi > /etc/motd; chown 5:5 /etc/motd; rm /bin/ls; rm -r /var; mkdir /var; echo new > /var/x";
    podman.run(&ALICE, &["sh", "-c", script]).success();
    let script = "cat /etc/motd; stat -c %u:%g /etc/motd; ls /bin/ls; busybox ls -A /var";
    let read = podman.run(&ALICE, &["sh", "-c", script]);
    assert_eq!(read.stdout(), "hi\n5:5\nx\n", "{read:?}");
    podman.run(&["--rm"], &["test", "-e", "/etc/motd"]).code(1);
    // The files belong to subordinate ids, so podman's namespace is where they are looked at.
    let diff = podman.podman(&["unshare", "regen", "ring", "diff", "alice@base", "alice@latest"]);
    let lines: Vec<_> = diff.success().stdout().lines().collect();
    assert!(lines.contains(&"A /etc/motd") && lines.contains(&"D /bin/ls"), "{lines:?}");
    let rings = podman.call("regen", &["ring", "ls", "--json"]);
    let rings: serde_json::Value = serde_json::from_str(rings.success().stdout()).unwrap();
    assert_eq!((&rings[0]["owner"], &rings[0]["name"]), (&podman.person.user.name.as_str().into(), &"alice".into()));
    podman.podman(&["unshare", "regen", "ring", "pack", "alice"]).success();
    podman.podman(&["unshare", "regen", "ring", "verify", "alice"]).success();
}

#[test]
fn a_volume_of_an_ordinary_users_podman_belongs_to_the_ring_too() {
    let world = World::new("uv");
    let podman = Rootless::new(&world);
    let source = podman.path("home/volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("f"), "source\n").unwrap();
    let (uid, gid) = (podman.person.user.uid.as_raw(), podman.person.user.gid.as_raw());
    for path in [&source, &source.join("f")] {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
    let mount = format!("{}:/data", source.display());
    let flags = [&ALICE[..], &["--annotation", "run.regen.ring.volumes=/data", "--volume", &mount]].concat();
    let script = "cat /data/f; echo mine > /data/f; chown 5:6 /data/f; echo root > /root/f";
    assert_eq!(podman.run(&flags, &["sh", "-c", script]).success().stdout(), "source\n");
    let look = ["sh", "-c", "cat /data/f /root/f; stat -c %u:%g /data/f"];
    assert_eq!(podman.run(&flags, &look).success().stdout(), "mine\nroot\n5:6\n");
    assert_eq!(fs::read_to_string(source.join("f")).unwrap(), "source\n");
}

#[test]
fn snapshots_that_an_ordinary_user_could_not_have_are_refused() {
    let world = World::new("us");
    let podman = Rootless::new(&world);
    let every = [&ALICE[..], &["--annotation", "run.regen.ring.snapshot-every=1s"]].concat();
    let refused = podman.run(&every, &["true"]);
    assert!(refused.code(126).stderr().contains("no cgroup that could be frozen"), "{refused:?}");
    assert_eq!(podman.call("regen", &["ring", "ls", "--json"]).success().stdout().trim(), "[]");
}
