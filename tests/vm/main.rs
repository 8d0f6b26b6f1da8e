//! What only another machine can show: systemd, nothing but cgroup v2, a kernel that criu works on. hack/vm-test boots
//! that machine and is all that builds and runs this.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cgroup;
mod checkpoint;
#[path = "../harness/mod.rs"]
mod harness;
mod memory;
mod ring;
mod rootless;
mod snapshot;
mod unit;

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{World, cgroup_of};

#[test]
fn the_machine_has_systemd_and_only_cgroup_v2() {
    let world = World::new("machine");
    assert!(Path::new("/run/systemd/system").is_dir());
    assert!(fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap().contains("memory"));
    let mut uname = Command::new("uname");
    uname.arg("-r");
    assert!(world.finish(uname).success().stdout().starts_with("6.1."));
    let id = world.sleeper("a");
    assert!(cgroup_of(world.pid(&id)).join("cgroup.procs").exists());
    world.delete(&id);
}
