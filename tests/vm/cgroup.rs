//! What systemd and a pure version 2 hierarchy are asked for, and whether the kernel holds to it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{World, cgroup_of, eventually};

fn read(cgroup: &Path, file: &str) -> String {
    fs::read_to_string(cgroup.join(file)).unwrap().trim_end().to_owned()
}

/// What systemd says of a unit.
fn show(world: &World, unit: &str, property: &str) -> String {
    let mut command = Command::new("systemctl");
    command.args(["show", "--value", "--property", property, unit]);
    world.finish(command).success().stdout().trim_end().to_owned()
}

#[test]
fn systemd_makes_a_scope_with_the_limits_and_removes_it() {
    let world = World::new("scope");
    let id = world.id("a");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["cgroupsPath"] = json!(format!("system.slice:regen:{id}"));
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["resources"]["pids"] = json!({"limit": 50});
        spec["linux"]["resources"]["cpu"] = json!({"quota": 50000, "period": 100_000});
    });
    world.regen(&["--systemd-cgroup", "run", "-d", "--bundle", bundle.text(), &id]).success();
    let unit = format!("regen-{id}.scope");
    let cgroup = cgroup_of(world.pid(&id));
    assert!(cgroup.starts_with(Path::new("/sys/fs/cgroup/system.slice").join(&unit)), "{}", cgroup.display());
    assert_eq!(read(&cgroup, "memory.max"), (64 << 20).to_string());
    assert_eq!(read(&cgroup, "pids.max"), "50");
    assert_eq!(read(&cgroup, "cpu.max"), "50000 100000");
    let told = ["ActiveState", "Slice", "MemoryMax", "TasksMax"].map(|property| show(&world, &unit, property));
    assert_eq!(told, ["active", "system.slice", "67108864", "50"]);
    world.regen(&["update", "--memory", "33554432", &id]).success();
    assert_eq!(read(&cgroup, "memory.max"), (32 << 20).to_string());
    // It stays when systemd looks at its units again.
    let mut reload = Command::new("systemctl");
    reload.arg("daemon-reload");
    world.finish(reload).success();
    assert_eq!(read(&cgroup, "memory.max"), (32 << 20).to_string());
    world.delete(&id);
    eventually("the scope is gone", || show(&world, &unit, "ActiveState") == "inactive" && !cgroup.exists());
}

#[test]
fn a_container_is_born_in_its_cgroup() {
    let world = World::new("born");
    let (bundle, id) = (world.shell("cat /proc/self/cgroup"), world.id("a"));
    let log = world.base().join("strace");
    let run = world.command(&["run", "--bundle", bundle.text(), &id]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o"]).arg(&log).args(["-e", "trace=clone3,openat", "--"]);
    strace.arg(run.get_program()).args(run.get_args()).current_dir(world.base());
    world.finish(strace).success();
    let calls = fs::read_to_string(&log).unwrap();
    assert!(calls.contains("CLONE_INTO_CGROUP"), "{calls}");
    let entered = calls.lines().find(|line| line.contains("cgroup.procs") && line.contains("O_WRONLY"));
    assert_eq!(entered, None, "the lock of the whole machine is not needed");
}

#[test]
fn device_rules_are_programs_that_update_and_exec_do_not_lose() {
    let world = World::new("devices");
    let id = world.id("a");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "m"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rm"},
        ]);
    });
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    let exec = |script: &str| world.regen(&["exec", &id, "sh", "-c", script]);
    exec("echo x > /dev/null && mknod /dev/kmsg c 1 11 && mknod /dev/fuse c 10 229").success();
    let denied = |script: &str| {
        let output = exec(script);
        assert_ne!(output.code, 0, "{script}");
        assert!(output.stderr().contains("Operation not permitted"), "{script}: {output:?}");
    };
    let all = || {
        exec("exec 3< /dev/fuse").success();
        denied("exec 3> /dev/fuse");
        denied("exec 3< /dev/kmsg");
    };
    all();
    world.regen(&["update", "--pids-limit", "40", &id]).success();
    all();
    world.delete(&id);
}

#[test]
fn a_limit_of_memory_ends_the_program_and_is_told_of() {
    let world = World::new("oom");
    let id = world.id("a");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo survived"]);
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &id]);
    assert!(output.code != 0 && !output.stdout().contains("survived"), "{output:?}");
}
