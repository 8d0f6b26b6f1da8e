//! CVE-2025-52565, and CVE-2026-88264 of another runtime: `/dev/console` is mounted from, or onto, something else than the
//! terminal that was just made.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::harness::{Output, World};
use crate::{Exchange, add_mount, assert_untouched, drop_mounts, host_directory, image, shell_in};

/// The console is a terminal (major number 136, the slaves of devpts), and not the file that was put in its way.
const LOOK: &str = "stat -L -c '%t' /dev/console; cat /etc/other; echo over";

fn run_on_terminal(world: &World, bundle: &crate::Directory) -> Output {
    world.regen_with_input(&["run", "--bundle", bundle.text(), &world.fresh_id()], b"")
}

fn terminal(spec: &mut Value) {
    spec["process"]["terminal"] = true.into();
}

#[track_caller]
fn assert_terminal_or_refused(output: &Output) {
    match output.code {
        0 => assert_eq!(output.stdout().replace('\r', ""), "88\nin its place\nover\n", "{output:?}"),
        _ => drop(output.fails_with(1, "")),
    }
}

#[test]
fn a_console_that_is_a_symlink_in_the_image_makes_nothing_on_the_host() {
    let world = World::new("52565-link");
    let host = host_directory(&world);
    let (new, secret) = (host.join("new"), host.join("secret"));
    for target in [new.to_str().unwrap(), secret.to_str().unwrap(), "/etc/other", "../../host/new"] {
        for mounts in [true, false] {
            let image = image(&world, "image");
            fs::write(image.join("etc/other"), "in its place\n").unwrap();
            symlink(target, image.join("dev/console")).unwrap();
            let bundle = shell_in(&world, &image, LOOK, |spec| {
                terminal(spec);
                drop_mounts(spec, |place| !mounts && place == "/dev");
            });
            assert_terminal_or_refused(&run_on_terminal(&world, &bundle));
            assert_untouched(&host);
            assert_eq!(fs::read_to_string(image.join("etc/other")).unwrap(), "in its place\n");
            fs::remove_dir_all(&image).unwrap();
        }
    }
}

#[test]
fn a_terminal_that_a_volume_replaces_is_not_what_the_console_is_mounted_from() {
    let world = World::new("52565-volume");
    let host = host_directory(&world);
    let image = image(&world, "image");
    fs::write(image.join("etc/other"), "in its place\n").unwrap();
    // Whatever number the terminal gets, its name is taken.
    let volume = world.base().join("volume");
    fs::create_dir(&volume).unwrap();
    for number in 0..64 {
        let target = if number % 2 == 0 { "/etc/other".into() } else { host.join("secret") };
        symlink(target, volume.join(number.to_string())).unwrap();
    }
    let bundle = shell_in(&world, &image, LOOK, |spec| {
        terminal(spec);
        drop_mounts(spec, |place| place == "/dev/pts");
        let source = volume.to_str().unwrap();
        add_mount(
            spec,
            json!({"destination": "/dev/pts", "type": "bind", "source": source, "options": ["rbind", "rw"]}),
        );
    });
    assert_terminal_or_refused(&run_on_terminal(&world, &bundle));
    assert_untouched(&host);
    assert_eq!(fs::read_to_string(image.join("etc/other")).unwrap(), "in its place\n");
}

#[test]
fn a_console_that_changes_places_with_a_symlink_is_a_terminal_or_the_run_is_refused() {
    let world = World::new("52565-race");
    let host = host_directory(&world);
    let image = image(&world, "image");
    fs::write(image.join("etc/other"), "in its place\n").unwrap();
    fs::write(image.join("dev/console"), "").unwrap();
    symlink(host.join("new"), image.join("dev/swap")).unwrap();
    let bundle = shell_in(&world, &image, LOOK, |spec| {
        terminal(spec);
        drop_mounts(spec, |place| place == "/dev");
    });
    let exchange = Exchange::start(image.join("dev/console"), image.join("dev/swap"));
    for _ in 0..20 {
        let output = run_on_terminal(&world, &bundle);
        // What is looked at may be the one or the other name by then: only the host counts.
        assert!(output.code == 0 || output.code == 1, "{output:?}");
        assert_untouched(&host);
    }
    assert!(exchange.finish() > 100, "there was no race");
}
