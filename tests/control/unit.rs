//! The units for systemd.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{REGEN, World};

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hack/systemd");

#[test]
fn systemd_has_nothing_against_the_units() {
    let world = World::new("units");
    let directory = world.base().join("units");
    fs::create_dir(&directory).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify");
    for name in ["regen.service", "regen.socket"] {
        let unit = fs::read_to_string(Path::new(UNITS).join(name)).unwrap();
        // It has to be there.
        let unit = unit.replace("/usr/local/bin/regen", REGEN);
        fs::write(directory.join(name), unit).unwrap();
        verify.arg(directory.join(name));
    }
    let output = world.finish(verify);
    assert_eq!((output.success().stdout(), output.stderr()), ("", ""));
}

#[test]
fn the_group_of_the_socket_is_made_by_sysusers() {
    let world = World::new("sysusers");
    let root = world.base().join("machine");
    fs::create_dir_all(root.join("etc")).unwrap();
    let mut make = Command::new("systemd-sysusers");
    make.arg("--root").arg(&root).arg(Path::new(UNITS).join("regen.sysusers"));
    world.finish(make).success();
    let groups = fs::read_to_string(root.join("etc/group")).unwrap();
    assert!(groups.lines().any(|line| line.starts_with("regen:")), "{groups}");
    let socket = fs::read_to_string(Path::new(UNITS).join("regen.socket")).unwrap();
    assert!(socket.contains("\nSocketGroup=regen\n"), "{socket}");
}
