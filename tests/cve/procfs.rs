//! CVE-2019-16884, CVE-2019-19921, CVE-2025-52881: what the runtime writes below `/proc` (labels, settings) goes to files
//! that the image or a volume put there, or to other files of the kernel's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::ring::picture;
use crate::{add_mount, assert_untouched, create_amid, drop_mounts, host_directory, image, run, shell_in};

/// A directory that looks like /proc to somebody who does not look closely.
fn fake_proc(world: &World) -> PathBuf {
    let fake = world.base().join("fake");
    for directory in
        ["self/attr/apparmor", "self/fd", "thread-self/attr/apparmor", "1/attr", "sys/kernel", "sys/net/ipv4"]
    {
        fs::create_dir_all(fake.join(directory)).unwrap();
    }
    for file in ["exec", "current", "keycreate", "apparmor/exec"] {
        for process in ["self", "thread-self"] {
            fs::write(fake.join(process).join("attr").join(file), "").unwrap();
        }
    }
    fs::write(fake.join("sys/kernel/msgmax"), "").unwrap();
    fake
}

fn set_something(spec: &mut Value) {
    spec["linux"]["sysctl"] = json!({"kernel.msgmax": "4321"});
}

#[test]
fn a_volume_in_the_place_of_proc_is_refused() {
    let world = World::new("16884-volume");
    let fake = fake_proc(&world);
    let before = picture(&fake);
    for kind in ["bind", "tmpfs"] {
        for destination in ["/proc", "/proc/", "//proc/.", "/tmp/../proc"] {
            let bundle = shell_in(&world, &world.rootfs(), "true", |spec| {
                drop_mounts(spec, |place| place == "/proc");
                let source = fake.to_str().unwrap();
                let options = if kind == "bind" { json!(["rbind", "rw"]) } else { json!([]) };
                add_mount(
                    spec,
                    json!({"destination": destination, "type": kind, "source": source, "options": options}),
                );
                set_something(spec);
            });
            run(&world, &bundle).fails_with(1, "proc");
            assert_eq!(picture(&fake), before, "something was written into the volume");
        }
    }
}

#[test]
fn a_mount_over_what_the_runtime_writes_to_is_refused() {
    let world = World::new("52881-over");
    let fake = fake_proc(&world);
    let before = picture(&fake);
    let file = fake.join("self/attr/exec");
    let cases = [
        ("/proc/self/attr", "bind", fake.join("self/attr")),
        ("/proc/self/attr/exec", "bind", file.clone()),
        ("/proc/self/attr/apparmor/exec", "bind", file.clone()),
        ("/proc/thread-self/attr/exec", "bind", file.clone()),
        ("/proc/self", "tmpfs", "tmpfs".into()),
        ("/proc/1/attr", "tmpfs", "tmpfs".into()),
        ("/proc/self/fd", "bind", fake.join("self/fd")),
        ("/proc/sys", "tmpfs", "tmpfs".into()),
        ("/proc/sys/kernel", "bind", fake.join("sys/kernel")),
        ("/proc/sys/kernel/msgmax", "bind", fake.join("sys/kernel/msgmax")),
    ];
    for (destination, kind, source) in cases {
        let bundle = shell_in(&world, &world.rootfs(), "true", |spec| {
            let options = if kind == "bind" { json!(["rbind", "rw"]) } else { json!([]) };
            let source = source.to_str().unwrap();
            add_mount(spec, json!({"destination": destination, "type": kind, "source": source, "options": options}));
            set_something(spec);
        });
        run(&world, &bundle).fails_with(1, "/proc");
        assert_eq!(picture(&fake), before, "{destination}: something was written into the volume");
    }
}

#[test]
fn files_that_are_emulated_for_containers_may_still_be_mounted_over() {
    let world = World::new("52881-lxcfs");
    let uptime = world.base().join("uptime");
    fs::write(&uptime, "emulated\n").unwrap();
    let bundle = shell_in(&world, &world.rootfs(), "cat /proc/uptime; cat /proc/sys/kernel/msgmax", |spec| {
        let source = uptime.to_str().unwrap();
        add_mount(
            spec,
            json!({"destination": "/proc/uptime", "type": "bind", "source": source, "options": ["bind", "ro"]}),
        );
        set_something(spec);
    });
    assert_eq!(run(&world, &bundle).success().stdout(), "emulated\n4321\n");
}

#[test]
fn a_proc_that_is_a_symlink_in_the_image_is_refused() {
    let world = World::new("19921-link");
    let host = host_directory(&world);
    for target in ["/tmp/proc".into(), host.clone(), "tmp".into(), PathBuf::from("/sys/../proc2")] {
        let image = image(&world, "image");
        fs::create_dir_all(image.join("tmp/proc")).unwrap();
        fs::remove_dir(image.join("proc")).unwrap();
        symlink(&target, image.join("proc")).unwrap();
        let bundle = shell_in(&world, &image, "true", set_something);
        run(&world, &bundle).fails_with(1, "symlink");
        assert_untouched(&host);
        fs::remove_dir_all(&image).unwrap();
    }
}

/// The image belongs to a hostile container that is still at work in it.
#[test]
fn a_proc_that_changes_places_with_a_symlink_is_proc_or_refused() {
    let world = World::new("19921-race");
    let host = host_directory(&world);
    let image = image(&world, "image");
    symlink(&host, image.join("swap")).unwrap();
    // It is the kernel's own, wherever it went with its directory, and the setting was made there.
    let script = "cat /proc/sys/kernel/msgmax /swap/sys/kernel/msgmax > /tmp/answer";
    let bundle = shell_in(&world, &image, script, set_something);
    let (mut turns, mut made) = (0, 0);
    for _ in 0..30 {
        let (answer, count) = create_amid(&world, &image, &bundle, ("proc", "swap"));
        if let Some(answer) = answer {
            assert_eq!(answer, "4321\n");
            made += 1;
        }
        turns += count;
        assert_untouched(&host);
    }
    assert!(turns > 100 && made > 0, "there was no race: {turns} turns, {made} containers");
}
