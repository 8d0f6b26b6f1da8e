//! CVE-2021-30465: a neighbour that shares a volume exchanges a directory on the way to a mount for a symlink, between the
//! runtime's look and its mount.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::harness::World;
use crate::{Exchange, add_mount, assert_refused_or_prints, assert_untouched, host_directory, run, shell_in};

/// Mounts a volume, and something in a directory of that volume which is exchanged all the time for a symlink that leads
/// to the host's directory, seen from the host.
fn race(name: &str, link: impl Fn(&World) -> String, inner: impl Fn(&World) -> Value) {
    let world = World::new(name);
    let host = host_directory(&world);
    let volume = world.base().join("volume");
    fs::create_dir_all(volume.join("door")).unwrap();
    symlink(link(&world), volume.join("swap")).unwrap();
    let inner = inner(&world);
    // The host's root would show its directory under its own name, and nothing else does.
    let script =
        format!("if [ -e {0}/secret ]; then echo escaped; fi; cat /v/*/secret 2>/dev/null; echo over", host.display());
    let bundle = shell_in(&world, &world.rootfs(), &script, |spec| {
        let source = volume.to_str().unwrap();
        add_mount(spec, json!({"destination": "/v", "type": "bind", "source": source, "options": ["rbind", "rw"]}));
        add_mount(spec, inner);
    });
    let exchange = Exchange::start(volume.join("door"), volume.join("swap"));
    let mut ran = 0;
    for _ in 0..40 {
        let output = run(&world, &bundle);
        assert_refused_or_prints(&output, "over\n");
        ran += u32::from(output.code == 0);
        assert_untouched(&host);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(world.base().to_str().unwrap()), "a mount came out on the host");
    }
    assert!(exchange.finish() > 100, "there was no race");
    assert!(ran > 0, "no container was ever made, so nothing was tried");
}

#[test]
fn a_tmpfs_behind_a_door_that_turns_stays_inside() {
    race(
        "30465-tmpfs",
        |world| world.base().join("host").display().to_string(),
        |_| json!({"destination": "/v/door/inner", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}),
    );
}

#[test]
fn a_bind_mount_behind_a_door_that_turns_stays_inside() {
    race(
        "30465-bind",
        |world| world.base().join("host").display().to_string(),
        |world| {
            let source = world.base().join("other");
            fs::create_dir(&source).unwrap();
            json!({"destination": "/v/door/a/b", "type": "bind", "source": source, "options": ["rbind", "rw"]})
        },
    );
}

#[test]
fn a_file_behind_a_door_that_turns_stays_inside() {
    race(
        "30465-file",
        |world| format!("../../../../../../../../..{}", world.base().join("host").display()),
        |world| {
            let source = world.base().join("file");
            fs::write(&source, "").unwrap();
            json!({"destination": "/v/door/file", "type": "bind", "source": source, "options": ["bind", "ro"]})
        },
    );
}

#[test]
fn a_door_that_turns_to_the_root_of_the_host_leads_to_the_root_of_the_image() {
    race(
        "30465-root",
        |_| "/".to_owned(),
        |world| {
            let destination = format!("/v/door{}/host/inner", world.base().display());
            json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]})
        },
    );
}
