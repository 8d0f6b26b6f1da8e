//! podman and regen as an ordinary user whom systemd gave a cgroup of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Output, World};

#[test]
fn an_ordinary_users_podman_runs_containers_on_regen() {
    let world = World::new("rootless");
    let user = User::new("a");
    let runtime = world.base().join("regen");
    fs::copy(crate::harness::REGEN, &runtime).unwrap();
    let path = |name: &str| user.home.join(name).to_str().unwrap().to_owned();
    let script = format!(
        "set -e; umask 077; mkdir -p $HOME/rootfs; cp -a {rootfs}/. $HOME/rootfs/; cd $HOME
         podman='podman --root {root} --runroot {runroot} --tmpdir {tmp} --cgroup-manager cgroupfs --runtime {runtime}'
         tar -C rootfs -c . | $podman import --quiet - box:1 > /dev/null
         $podman run --rm --network none box:1 sh -c 'id -u; cat /proc/self/uid_map'
         $podman run --name a --network none box:1 sh -c 'exit 7' || echo status $?
         $podman rm --all > /dev/null
         $podman system migrate; rm -rf rootfs; $podman unshare rm -rf {root} {runroot} {tmp}",
        rootfs = world.rootfs().display(),
        root = path("root"),
        runroot = path("run"),
        tmp = path("tmp"),
        runtime = runtime.display(),
    );
    let output = user.shell(&world, &script);
    let lines: Vec<&str> = output.success().stdout().lines().map(str::trim).collect();
    assert_eq!(lines[0], "0", "{output:?}");
    assert_eq!(lines[1].split_ascii_whitespace().collect::<Vec<_>>(), ["0", &user.uid(), "1"], "{output:?}");
    assert!(lines.contains(&"status 7"), "{output:?}");
}

#[test]
fn snapshots_of_an_ordinary_users_container_are_made_by_themselves() {
    let world = World::new("rootsnap");
    let user = User::new("b");
    let runtime = world.base().join("regen");
    fs::copy(crate::harness::REGEN, &runtime).unwrap();
    let script = format!(
        "set -e; cd $HOME; mkdir rootfs; cp -a {rootfs}/. rootfs/
         own=/sys/fs/cgroup$(cut -d : -f 3 /proc/self/cgroup); mkdir $own/shell; echo 0 > $own/shell/cgroup.procs
         eventually() {{ until eval \"$1\"; do sleep 0.1; done; }}
         regen={runtime}; snapshots='$regen ring log web 2> /dev/null | grep -c snapshot'
         $regen run -d --rootfs rootfs --ring web --snapshot-every 1s a -- \
             sh -c 'echo one > /tmp/f; exec sleep 1000' > /dev/null
         eventually \"[ \\$($snapshots) = 1 ]\"
         $regen exec a sh -c 'echo two >> /tmp/f'
         eventually \"[ \\$($snapshots) = 2 ]\"
         $regen delete --force a
         eventually '! pgrep -u $(id -u) -f \" [s]napshots \" > /dev/null'
         $regen ring pack; eval \"$snapshots\"
         $regen run --rootfs rootfs --ring web a -- cat /tmp/f",
        rootfs = world.rootfs().display(),
        runtime = runtime.display(),
    );
    assert_eq!(user.shell(&world, &script).success().stdout(), "2\none\ntwo\n");
}

/// An ordinary user with a range of ids.
struct User {
    name: String,
    home: PathBuf,
}

impl User {
    fn new(name: &str) -> Self {
        let name = format!("vm{}{name}", std::process::id());
        let status = Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", &name]).status().unwrap();
        assert!(status.success());
        Self { home: Path::new("/home").join(&name), name }
    }

    /// Runs a script as the user, in a cgroup of their own.
    fn shell(&self, world: &World, script: &str) -> Output {
        let home = self.home.display();
        let mut command = Command::new("systemd-run");
        command.args(["--quiet", "--pipe", "--wait", "--collect", "--property", "Delegate=yes"]);
        command.args(["--uid", &self.name, "--setenv", &format!("HOME={home}")]);
        command.args(["--setenv", &format!("XDG_RUNTIME_DIR={home}/xdg"), "sh", "-c"]);
        command.arg(format!("mkdir -m 700 -p $XDG_RUNTIME_DIR; {script}"));
        world.finish(command)
    }

    fn uid(&self) -> String {
        let output = Command::new("id").args(["-u", &self.name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("userdel").args(["--remove", "--force", &self.name]).output();
    }
}
