//! Templates of mode 'snapshot' where there can be none: what is said, and that nothing was begun. That there can be is shown by
//! `tests/vm`: Debian's criu works on Debian's own kernel only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use harness::enclosure::Enclosure;
use harness::{Output, World};
use serde_json::json;

fn create<'a>(rootfs: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["template", "create", "t", "--mode", "snapshot", "--rootfs", rootfs], more, &["--", "sleep", "1000"]].concat()
}

/// One line with its reason and the next step, and nothing else came of it.
#[track_caller]
fn refused(world: &World, output: &Output, words: &str) {
    output.fails_with(1, words);
    assert!(output.stderr().contains("create template 't'"), "{output:?}");
    assert_eq!(world.regen(&["template", "ls", "--json"]).success().stdout().trim(), "[]");
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), "");
    assert!(!world.store().join("templates/root/t").exists());
}

#[test]
fn a_machine_whose_criu_does_not_fit_makes_no_snapshot_and_says_why() {
    let world = World::new("snapunfit");
    let _daemon = world.daemon();
    let fits = Command::new("criu").arg("check").output().is_ok_and(|output| output.status.success());
    if fits {
        let doctor = world.regen(&["doctor"]);
        assert!(doctor.stdout().contains("fits this kernel"), "{doctor:?}");
        return;
    }
    let output = world.regen(&create(world.rootfs().to_str().unwrap(), &[]));
    refused(&world, &output, "needs criu: criu 3.17.1 does not fit this kernel");
    assert!(output.stderr().contains("install the criu that fits this kernel"), "{output:?}");
    let doctor = world.regen(&["doctor"]);
    assert!(doctor.stdout().contains("does not fit this kernel, so there are no snapshots"), "{doctor:?}");
}

#[test]
fn without_criu_no_snapshot_is_made_and_the_package_is_named() {
    let world = World::new("snapnone");
    let enclosure = Enclosure::new(&world, "mount --bind /dev/null \"$(command -v criu)\"");
    let mut daemon = world.daemon();
    daemon.end(nix::sys::signal::Signal::SIGTERM);
    let serve = world.command(&["serve"]);
    daemon.start_as(enclosure.command(&serve));
    let output = world.regen(&create(world.rootfs().to_str().unwrap(), &[]));
    refused(&world, &output, "needs criu: not installed");
    assert!(output.stderr().contains("apt-get install criu"), "{output:?}");
    let doctor = enclosure.regen(&["doctor"]);
    assert!(doctor.stdout().contains("no checkpoint and restore, no snapshots"), "{doctor:?}");
}

#[test]
fn a_ring_is_refused_before_criu_is_asked() {
    let world = World::new("snapring");
    world.run_in("alice", "echo one > /f").success();
    let _daemon = world.daemon();
    let output = world.regen(&create(world.rootfs().to_str().unwrap(), &["--ring", "alice"]));
    refused(&world, &output, "mode 'snapshot' knows no rings");
}

#[test]
fn a_snapshot_of_another_machine_is_not_restored() {
    let world = World::new("snapold");
    let directory = world.store().join("templates/root/t");
    fs::create_dir_all(directory.join("snapshot-1")).unwrap();
    symlink("snapshot-1", directory.join("snapshot")).unwrap();
    let record = json!({"format": 1, "container": "template-t-1", "source": {"rootfs": world.rootfs()}, "base": "dir:/#1",
        "taken": "2026-01-01T00:00:00Z", "machine": {"kernel": "4.19.0", "processor": "0"}});
    fs::write(directory.join("snapshot-1/snapshot.json"), record.to_string()).unwrap();
    let id = world.id("a");
    world.regen(&["clone", "t", &id]).fails_with(1, "it was taken under Linux 4.19.0");
    let function = world.base().to_str().unwrap();
    let invoke = world.regen(&["invoke", "t", "--function", function, "--handler", "m:f"]);
    invoke.fails_with(1, "it was taken under Linux 4.19.0");
    world.regen(&["state", &id]).fails_with(1, "does not exist");
}
