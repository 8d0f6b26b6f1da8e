//! CVE-2024-21626: a descriptor of the host's that the runtime, or whoever called it, left open, and a working directory
//! that leads through it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::harness::{Output, World};
use crate::{host_directory, shell_in, with_leaked_descriptors};

/// Shows where the process is and what it sees from there. The host's directory has a file that no image has.
const LOOK: &str = "pwd -P; for up in . .. ../.. ../../..; do cat $up/secret 2>/dev/null; done; ls -l /proc/self/fd";

#[track_caller]
fn assert_inside(output: &Output, host: &Path) {
    let told = format!("{}{}", output.stdout(), output.stderr());
    assert!(!output.stdout().contains("of the host"), "the host's files are seen: {told}");
    assert!(!output.stdout().contains(host.to_str().unwrap()), "a descriptor of the host's is open: {told}");
}

#[test]
fn no_working_directory_leads_out_through_a_descriptor() {
    let world = World::new("21626-run");
    let host = host_directory(&world);
    symlink("/proc/self/fd/7", world.rootfs().join("link")).unwrap();
    let numbers = (3..20).map(|number| format!("/proc/self/fd/{number}"));
    let others = ["/proc/self/fd/7/..", "/proc/1/fd/7", "/link", "/link/../..", "/proc/self/cwd", "/proc/self/root/.."];
    for cwd in numbers.chain(others.map(str::to_owned)) {
        let bundle = shell_in(&world, &world.rootfs(), LOOK, |spec| spec["process"]["cwd"] = cwd.clone().into());
        let output = with_leaked_descriptors(&world, &host, &["run", "--bundle", bundle.text(), &world.fresh_id()]);
        assert_inside(&output, &host);
    }
}

#[test]
fn nor_does_that_of_an_exec() {
    let world = World::new("21626-exec");
    let host = host_directory(&world);
    symlink("/proc/self/fd/7", world.rootfs().join("link")).unwrap();
    let id = world.sleeper("a");
    for cwd in (3..20).map(|number| format!("/proc/self/fd/{number}")).chain(["/link".into(), "/proc/1/fd/7".into()]) {
        let arguments = ["exec", "--cwd", &cwd, &id, "sh", "-c", LOOK];
        assert_inside(&with_leaked_descriptors(&world, &host, &arguments), &host);
    }
    world.delete(&id);
}

#[test]
fn a_descriptor_that_was_handed_over_on_purpose_is_no_way_out_either() {
    let world = World::new("21626-kept");
    let host = host_directory(&world);
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/3/..", "/proc/self/fd/4"] {
        let bundle = shell_in(&world, &world.rootfs(), LOOK, |spec| spec["process"]["cwd"] = cwd.into());
        let arguments = ["run", "--preserve-fds", "2", "--bundle", bundle.text(), &world.fresh_id()];
        with_leaked_descriptors(&world, &host, &arguments).fails_with(1, "");
    }
    let id = world.sleeper("a");
    let arguments = ["exec", "--preserve-fds", "2", "--cwd", "/proc/self/fd/3", &id, "sh", "-c", LOOK];
    with_leaked_descriptors(&world, &host, &arguments).fails_with(1, "");
    world.delete(&id);
}

#[test]
fn programs_find_no_descriptor_open_but_their_own() {
    let world = World::new("21626-open");
    let host = host_directory(&world);
    let script = "cd /proc/self/fd; echo *";
    let bundle = shell_in(&world, &world.rootfs(), script, |_| ());
    let output = with_leaked_descriptors(&world, &host, &["run", "--bundle", bundle.text(), &world.fresh_id()]);
    // The shell itself keeps one for the directory that it reads.
    let own = output.success().stdout().to_owned();
    assert!(["0 1 2\n", "0 1 2 3\n"].contains(&&*own), "{own}");
    let id = world.sleeper("a");
    let output = with_leaked_descriptors(&world, &host, &["exec", &id, "sh", "-c", script]);
    assert_eq!(output.success().stdout(), own);
    world.delete(&id);
}

/// A container that waits for `start` has its program's privileges already, so a neighbour with the same ones can
/// reach through `/proc/PID/fd` whatever it has open.
#[test]
fn a_container_that_waits_has_nothing_of_the_host_open() {
    let world = World::new("21626-waits");
    let host = host_directory(&world);
    let bundle = world.bundle(|spec| spec["process"]["args"] = json!(["true"]));
    let id = world.id("a");
    with_leaked_descriptors(&world, &host, &["create", "--bundle", bundle.text(), &id]).success();
    let process = Path::new("/proc").join(world.pid(&id).to_string());
    for entry in fs::read_dir(process.join("fd")).unwrap() {
        let link = entry.unwrap();
        let number: u32 = link.file_name().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(link.path()).unwrap();
        let anonymous = !target.is_absolute() || target == Path::new("/dev/null");
        let standard = number <= 2;
        assert!(standard || anonymous || is_inside(&target, &process), "descriptor {number} is {}", target.display());
    }
    world.delete(&id);
}

/// Whether the container could name it itself: its own kernel file systems, or the file that runs, which is read-only.
fn is_inside(target: &Path, process: &Path) -> bool {
    let own = ["/proc", "/dev/pts"].iter().any(|directory| target.starts_with(directory));
    own || fs::read_link(process.join("exe")).is_ok_and(|exe| exe == target && target == Path::new("/"))
}
