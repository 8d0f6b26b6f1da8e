//! Pause, resume, ps, update and events through the real binary, and beside runc where it is there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{World, eventually};
use serde_json::{Value, json};

fn is_version_1() -> bool {
    Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists()
}

/// What a file of a container's cgroup says: `CONTROLLER/FILE` on version 1, `FILE` on version 2.
fn read(id: &str, name: &str) -> String {
    let (controller, file) = name.split_once('/').unwrap_or(("", name));
    let path = Path::new("/sys/fs/cgroup").join(controller).join(id).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

/// Looks at `FILE=VALUE` words for the version that is here.
fn check(id: &str, version_1: &[&str], version_2: &[&str]) {
    for expected in if is_version_1() { version_1 } else { version_2 } {
        let (file, value) = expected.split_once('=').unwrap();
        assert_eq!(read(id, file), value, "{file}");
    }
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let world = World::new("pause");
    let bundle = world.shell("while :; do echo >> /tmp/counter; sleep 0.001; done");
    let id = world.id("a");
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    let counter = world.rootfs().join("tmp/counter");
    let count = || fs::metadata(&counter).map_or(0, |metadata| metadata.len());
    eventually("it counts", || count() > 3);
    world.regen(&["resume", &id]).fails_with(1, "container not paused");
    world.regen(&["pause", &id]).success();
    let before = count();
    assert_eq!(world.status(&id), "paused");
    assert!(world.regen(&["list"]).success().stdout().contains("paused"));
    world.regen(&["pause", &id]).fails_with(1, "container not running");
    world.regen(&["start", &id]).fails_with(1, "already running");
    world.regen(&["delete", &id]).fails_with(1, "not stopped: paused");
    world.regen(&["exec", &id, "true"]).fails_with(1, "paused");
    assert_eq!(count(), before, "it went on");
    world.regen(&["resume", &id]).success();
    assert_eq!(world.status(&id), "running");
    eventually("it goes on", || count() > before);
    world.delete(&id);
}

#[test]
fn a_paused_container_can_be_killed_and_deleted() {
    let world = World::new("pausekill");
    let (a, b) = (world.sleeper("a"), world.sleeper("b"));
    world.regen(&["pause", &a]).success();
    world.regen(&["kill", &a, "KILL"]).success();
    eventually("it stops", || world.status(&a) == "stopped");
    world.regen(&["pause", &a]).fails_with(1, "container not running");
    world.regen(&["delete", &a]).success();
    world.regen(&["pause", &b]).success();
    world.delete(&b);
    world.regen(&["pause", &b]).fails_with(1, "does not exist");
}

#[test]
fn a_container_that_waits_for_its_start_can_be_paused_too() {
    let world = World::new("pausecreated");
    let id = world.id("a");
    world.regen(&["create", "--bundle", world.shell("sleep 1000").text(), &id]).success();
    world.regen(&["pause", &id]).success();
    assert_eq!(world.status(&id), "paused");
    world.regen(&["resume", &id]).success();
    assert_eq!(world.status(&id), "created");
    world.regen(&["start", &id]).success();
    world.delete(&id);
}

#[test]
fn ps_shows_the_containers_processes_and_no_others() {
    let world = World::new("ps");
    let bundle = world.shell("sleep 1000 & exec sleep 1001");
    let id = world.id("a");
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    let pids = || -> Vec<i32> {
        serde_json::from_str(world.regen(&["ps", "--format", "json", &id]).success().stdout()).unwrap()
    };
    eventually("both run", || pids().len() == 2);
    assert!(pids().contains(&world.pid(&id)));
    let table = world.regen(&["ps", &id]).success().stdout().to_owned();
    assert!(table.starts_with("UID") && table.lines().count() == 3 && table.contains("sleep 1001"), "{table}");
    let table = world.regen(&["ps", &id, "-o", "pid,comm"]).success().stdout().to_owned();
    assert_eq!(table.lines().count(), 3, "{table}");
    world.regen(&["ps", &id, "-o", "comm"]).fails_with(1, "couldn't find PID field in ps output");
    assert_eq!(world.regen(&["ps", &id, "--", "-f", "-e"]).success().stdout().lines().count(), 3);
    world.regen(&["kill", &id, "KILL"]).success();
    eventually("it stops", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
    world.regen(&["ps", &id]).fails_with(1, "does not exist");
}

#[test]
fn every_flag_of_update_reaches_its_file() {
    let world = World::new("update");
    let id = world.sleeper("a");
    let update = |flags: &[&str]| {
        world.regen(&[&["update"], flags, &[&id]].concat()).success();
    };
    update(&["--memory", "64M", "--memory-reservation", "32m", "--pids-limit", "21"]);
    check(
        &id,
        &["memory/memory.limit_in_bytes=67108864", "memory/memory.soft_limit_in_bytes=33554432", "pids/pids.max=21"],
        &["memory.max=67108864", "memory.low=33554432", "pids.max=21"],
    );
    update(&["--cpu-share", "333", "--cpu-period", "50000", "--cpu-quota", "40000", "--cpu-burst", "1000"]);
    check(
        &id,
        &[
            "cpu/cpu.shares=333",
            "cpu/cpu.cfs_period_us=50000",
            "cpu/cpu.cfs_quota_us=40000",
            "cpu/cpu.cfs_burst_us=1000",
        ],
        &["cpu.weight=13", "cpu.max=40000 50000", "cpu.max.burst=1000"],
    );
    update(&["--cpuset-cpus", "0", "--cpuset-mems", "0", "--kernel-memory", "1G"]);
    check(&id, &["cpuset/cpuset.cpus=0"], &["cpuset.cpus=0"]);
    update(&["--cpu-burst", "0"]);
    update(&["--cpu-quota", "-1", "--pids-limit", "-1"]);
    check(
        &id,
        &["cpu/cpu.cfs_quota_us=-1", "pids/pids.max=max", "memory/memory.limit_in_bytes=67108864"],
        &["cpu.max=max 50000", "pids.max=max", "memory.max=67108864"],
    );
    update(&["--cpu-idle", "1"]);
    check(&id, &["cpu/cpu.idle=1"], &["cpu.idle=1"]);
    world.regen(&["update", "--l3-cache-schema", "L3:0=f", &id]).fails_with(1, "not supported");
    world.regen(&["update", "--memory", "abc", &id]).fails_with(2, "invalid size: 'abc'");
    world.delete(&id);
}

#[test]
fn limits_come_from_a_file_or_standard_input_and_are_remembered() {
    let world = World::new("updatefile");
    let id = world.sleeper("a");
    let limits = json!({"memory": {"limit": 96 << 20}, "pids": {"limit": 0}, "devices": [{"allow": true}]}).to_string();
    world.regen_with_input(&["update", "--resources", "-", &id], limits.as_bytes()).success();
    check(&id, &["memory/memory.limit_in_bytes=100663296"], &["memory.max=100663296"]);
    let path = world.base().join("limits.json");
    fs::write(&path, json!({"cpu": {"period": 30000}}).to_string()).unwrap();
    world.regen(&["update", "-r", path.to_str().unwrap(), &id]).success();
    // Each half of the pair was given alone.
    world.regen(&["update", "--cpu-quota", "15000", &id]).success();
    check(&id, &["cpu/cpu.cfs_period_us=30000", "cpu/cpu.cfs_quota_us=15000"], &["cpu.max=15000 30000"]);
    let kept: Value =
        serde_json::from_slice(&fs::read(world.state_directory(&id).join("resources.json")).unwrap()).unwrap();
    assert_eq!(kept["cpu"], json!({"period": 30000, "quota": 15000}));
    assert_eq!(kept["memory"]["limit"], 96 << 20);
    assert_eq!(kept["devices"], json!([{"allow": false, "access": "rwm"}]), "device rules are not changed");
    fs::write(&path, "{").unwrap();
    world.regen(&["update", "-r", path.to_str().unwrap(), &id]).fails_with(1, "read limits");
    world.delete(&id);
}

#[test]
fn a_limit_that_fails_changes_nothing_that_is_remembered() {
    let world = World::new("updatefail");
    let id = world.sleeper("a");
    world.regen(&["update", "--pids-limit", "30", "--cpuset-cpus", "4000-4001", &id]).fails_with(1, "cpuset.cpus");
    assert!(!world.state_directory(&id).join("resources.json").exists());
    world.regen(&["kill", &id, "KILL"]).success();
    eventually("it stops", || world.status(&id) == "stopped");
    world.regen(&["update", "--pids-limit", "30", &id]).fails_with(1, "container not running");
    world.regen(&["events", "--stats", &id]).fails_with(1, "is not running");
    world.regen(&["delete", &id]).success();
}

#[test]
fn the_numbers_have_runcs_fields() {
    let world = World::new("stats");
    let id = world.sleeper("a");
    let ours: Value = serde_json::from_str(world.regen(&["events", "--stats", &id]).success().stdout()).unwrap();
    assert_eq!((&ours["type"], &ours["id"]), (&json!("stats"), &json!(id)));
    assert_eq!(ours["data"]["pids"]["current"], 1);
    world.delete(&id);
    let Some(theirs) = runcs_numbers(&world) else { return };
    let (ours, theirs) = (fields("", &ours["data"]), fields("", &theirs["data"]));
    let missing: Vec<_> = theirs.iter().filter(|field| !ours.contains(field)).collect();
    assert!(missing.is_empty(), "runc has {missing:?}");
}

/// What runc says of a container like ours; none where there is no runc.
fn runcs_numbers(world: &World) -> Option<Value> {
    let root = world.base().join("runc");
    let runc = |arguments: &[&str]| {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&root).args(arguments);
        world.finish(command)
    };
    Command::new("runc").arg("--version").output().ok()?;
    let bundle = world.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    let id = world.id("runc");
    runc(&["run", "--detach", "--bundle", bundle.text(), &id]).success();
    let text = runc(&["events", "--stats", &id]).success().stdout().to_owned();
    runc(&["delete", "--force", &id]).success();
    serde_json::from_str(&text).ok()
}

/// The names of all fields, but not of those that depend on what the container did.
fn fields(prefix: &str, value: &Value) -> Vec<String> {
    let Value::Object(map) = value else { return vec![prefix.to_owned()] };
    let changing = ["raw", "usage", "max", "cache", "hugetlb", "ioServiceBytesRecursive", "ioServicedRecursive"];
    let named = map.iter().flat_map(|(name, value)| fields(&format!("{prefix}/{name}"), value));
    named.filter(|name| !changing.iter().any(|word| name.ends_with(&format!("/{word}")))).collect()
}

#[test]
fn events_come_until_the_container_stops() {
    let world = World::new("events");
    let id = world.sleeper("a");
    let mut events = world.spawn(world.command(&["events", "--interval", "20ms", &id]));
    events.wait_for("\n{");
    world.regen(&["kill", &id, "KILL"]).success();
    let output = events.finish();
    output.success();
    for line in output.stdout().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["type"], "stats");
        assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{line}");
    }
    world.regen(&["delete", &id]).success();
    world.regen(&["events", "--interval", "0s", &id]).fails_with(2, "must be greater than 0");
}

#[test]
fn a_container_that_runs_out_of_memory_is_told_of() {
    let world = World::new("oom");
    let bundle = world.bundle(|spec| {
        // The shell lives on when what it started is killed.
        let script = "while ! [ -e /tmp/go ]; do sleep 0.01; done; tail /dev/zero; exec sleep 1000";
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    });
    let id = world.id("a");
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    let mut events = world.spawn(world.command(&["events", "--interval", "10ms", &id]));
    events.wait_for("stats");
    fs::write(world.rootfs().join("tmp/go"), "").unwrap();
    events.wait_for(&format!("{{\"type\":\"oom\",\"id\":\"{id}\"}}"));
    world.delete(&id);
    events.finish().success();
}

#[test]
fn a_container_in_a_scope_of_systemd_lives_like_any_other() {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let world = World::new("scope");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["resources"]["pids"] = json!({"limit": 40});
    });
    let id = world.id("a");
    world.regen(&["--systemd-cgroup", "run", "-d", "--bundle", bundle.text(), &id]).success();
    let unit = format!("regen-{id}.scope");
    let property = |name: &str| {
        let output = Command::new("systemctl").args(["show", "--value", "-p", name, &unit]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!((property("ActiveState"), property("TasksMax")), ("active".to_owned(), "40".to_owned()));
    world.regen(&["update", "--pids-limit", "41", &id]).success();
    assert_eq!(property("TasksMax"), "41");
    world.regen(&["pause", &id]).success();
    assert_eq!(world.status(&id), "paused");
    world.regen(&["resume", &id]).success();
    assert_eq!(world.regen(&["exec", &id, "echo", "hi"]).success().stdout(), "hi\n");
    let pids: Vec<i32> = serde_json::from_str(world.regen(&["ps", "-f", "json", &id]).success().stdout()).unwrap();
    assert_eq!(pids, [world.pid(&id)]);
    world.delete(&id);
    eventually("the scope is forgotten", || property("LoadState") == "not-found");
}
