//! Templates of mode 'snapshot' where there can be none: what is said, and that nothing was begun. That there can be is shown by
//! `tests/vm`: Debian's criu works on Debian's own kernel only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use harness::daemon::Daemon;
use harness::enclosure::Enclosure;
use harness::{Output, Running, World, eventually};
use nix::sys::signal::Signal;
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
    daemon.end(Signal::SIGTERM);
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

/// A daemon on a machine with a criu that fits, as far as it says, and strace at it and all that it starts: this happens to
/// whoever attaches the root file system of a container, of which there is a run by then and nothing else.
fn fault<'a>(world: &'a World, what: &str) -> (Daemon<'a>, Enclosure<'a>, Running) {
    let script = world.base().join("criu");
    fs::write(&script, "#!/bin/sh\necho Version: 3.17.1\n").unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let enclosure = Enclosure::new(world, "mount --bind criu \"$(command -v criu)\"");
    let mut daemon = world.daemon();
    daemon.end(Signal::SIGTERM);
    daemon.start_as(enclosure.command(&world.command(&["serve"])));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-e", "trace=move_mount", "-e", &format!("inject=move_mount:{what}"), "-p"]);
    let tracer = world.spawn({
        strace.arg(daemon.pid().to_string());
        strace
    });
    eventually("strace is there", || tracer.complaints().contains(" attached"));
    (daemon, enclosure, tracer)
}

#[test]
fn a_template_that_is_removed_while_its_container_is_made_leaves_nothing() {
    let world = World::new("snapstop");
    let (_daemon, _enclosure, tracer) = fault(&world, "delay_enter=5s");
    let rootfs = world.rootfs();
    let creating = world.spawn(world.command(&create(rootfs.to_str().unwrap(), &[])));
    let runs = || fs::read_dir(world.store().join("runs")).is_ok_and(|mut runs| runs.next().is_some());
    eventually("its container has a run", runs);
    world.regen(&["template", "rm", "t"]).success();
    creating.finish().code(1);
    eventually("a worker has taken the run away", || !runs());
    tracer.signal(Signal::SIGINT);
    tracer.finish();
}

#[test]
fn who_takes_a_snapshot_and_is_killed_leaves_nothing() {
    let world = World::new("snapkill");
    let (_daemon, _enclosure, tracer) = fault(&world, "signal=SIGKILL:when=1");
    let output = world.regen(&create(world.rootfs().to_str().unwrap(), &[]));
    refused(&world, &output, "who took it was killed");
    let runs = || fs::read_dir(world.store().join("runs")).is_ok_and(|mut runs| runs.next().is_some());
    eventually("a worker has taken the run away", || !runs());
    tracer.signal(Signal::SIGINT);
    tracer.finish();
}
