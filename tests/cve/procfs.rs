//! CVE-2019-16884, CVE-2019-19921, CVE-2025-52881: what the runtime writes below `/proc` (labels, settings) goes to files
//! that the image or a volume put there, or to other files of the kernel's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::World;
use crate::{add_mount, assert_untouched, create_amid, host_directory, image, run, shell_in};

fn set_something(spec: &mut Value) {
    spec["linux"]["sysctl"] = json!({"kernel.msgmax": "4321"});
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
