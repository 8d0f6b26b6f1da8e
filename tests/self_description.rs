//! What regen says of itself is so: the features document, and the starter files of `spec`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use harness::{REGEN, World};
use serde_json::{Value, json};

fn features(world: &World) -> Value {
    serde_json::from_str(world.regen(&["features"]).success().stdout()).unwrap()
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_features_have_the_form_of_the_specification() {
    let world = World::new("features-form");
    let features = features(&world);
    let parsed: oci_spec::runtime::Features = serde_json::from_value(features.clone()).unwrap();
    assert_eq!(parsed.oci_version_min(), "1.0.0");
    let seccomp = &features["linux"]["seccomp"];
    for list in ["actions", "operators", "archs", "knownFlags", "supportedFlags"] {
        let words = words(&seccomp[list]);
        assert!(!words.is_empty() && words.is_sorted(), "{list}: {words:?}");
    }
    let (known, supported) = (words(&seccomp["knownFlags"]), words(&seccomp["supportedFlags"]));
    assert!(supported.iter().all(|flag| known.contains(flag)));
    assert!(words(&features["mountOptions"]).is_sorted());
}

#[test]
fn supported_flags_are_taken_and_unsupported_parts_refused() {
    let world = World::new("features-truth");
    let features = features(&world);
    let id = world.id("a");
    let bundle = world.bundle(|spec| {
        let flags = features["linux"]["seccomp"]["supportedFlags"].clone();
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
            "architectures": features["linux"]["seccomp"]["archs"],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
        spec["process"]["args"] = json!(["true"]);
    });
    world.regen(&["run", "--bundle", bundle.text(), &id]).success();
    let parts = [
        ("intelRdt", json!({"closID": "regen"})),
        ("netDevices", json!({"eth0": {"name": "eth1"}})),
        ("memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"})),
    ];
    for (part, value) in parts {
        assert_ne!(features["linux"][part]["enabled"], true, "{part}");
        let bundle = world.bundle(|spec| spec["linux"][part] = value);
        world.regen(&["run", "--bundle", bundle.text(), &id]).fails_with(1, &format!("check linux.{part}"));
    }
}

#[test]
fn capabilities_are_those_of_this_kernel() {
    let world = World::new("features-capabilities");
    let last: usize = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    let features = features(&world);
    let known = words(&features["linux"]["capabilities"]);
    assert_eq!(known.len(), last.min(40) + 1);
    assert!(known.contains(&"CAP_CHOWN"));
}

/// Makes a starter file's program say who it is, over the root file system of the world.
fn prepare(world: &World, directory: &Path) {
    let path = directory.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["sh", "-c", "id -u; cat /proc/self/uid_map; hostname; ls /dev/pts/ptmx"]);
    spec["root"]["path"] = json!(world.rootfs());
    fs::write(&path, spec.to_string()).unwrap();
}

#[test]
fn the_starter_file_of_an_ordinary_user_runs_as_that_user() {
    let world = World::new("spec-rootless");
    // An id that nobody has, without any right.
    const USER: u32 = 54_321;
    let home = world.base().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    // Where the binary lies an ordinary user may not look.
    let binary = world.base().join("regen");
    fs::copy(REGEN, &binary).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]).arg(&binary);
        command.arg("--root").arg(home.join("run")).arg("--store").arg(home.join("store")).args(arguments);
        world.finish({
            command.current_dir(&home);
            command
        })
    };
    run(&["spec", "--rootless"]).success();
    prepare(&world, &home);
    let output = run(&["run", &world.id("a")]);
    let lines: Vec<_> = output.success().stdout().lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["0", &USER.to_string(), "1"]);
    assert_eq!(lines[2..], ["regen", "/dev/pts/ptmx"]);
}

#[test]
fn the_rootless_starter_file_runs_for_root_too() {
    let world = World::new("spec-rootless-root");
    let directory = world.base().join("bundle");
    fs::create_dir(&directory).unwrap();
    let text = directory.to_str().unwrap();
    world.regen(&["spec", "--rootless", "--bundle", text]).success();
    prepare(&world, &directory);
    let output = world.regen(&["run", "--bundle", text, &world.id("a")]);
    assert!(output.success().stdout().starts_with("0\n"));
}
