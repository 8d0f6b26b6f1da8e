//! The flags of `exec`, each seen from the process that got it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::{World, eventually};
use serde_json::{Value, json};

/// A line of /proc/self/status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

#[test]
fn each_flag_reaches_the_process() {
    let world = World::new("exec-flags");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["process"]["env"] = json!(["PATH=/bin", "A=1"]);
        spec["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [3]});
        spec["process"]["noNewPrivileges"] = json!(false);
    });
    let id = world.id("a");
    world.regen(&["run", "--detach", "--bundle", bundle.text(), &id]).success();
    let status = |flags: &[&str]| {
        let arguments = [&["exec"], flags, &[&id, "cat", "/proc/self/status"]].concat();
        world.regen(&arguments).success().stdout().to_owned()
    };
    let plain = status(&[]);
    let changed = status(&["--user", "1234:2345", "-g", "7", "-g", "8", "--cap", "CAP_NET_RAW", "--no-new-privs"]);
    assert_eq!(field(&changed, "Uid"), "1234\t1234\t1234\t1234");
    assert_eq!(field(&changed, "Gid"), "2345\t2345\t2345\t2345");
    assert_eq!(field(&changed, "Groups"), "3 7 8");
    let bounding = |status: &str| u64::from_str_radix(&field(status, "CapBnd"), 16).unwrap();
    assert_eq!((bounding(&plain) & 1 << 13, bounding(&changed) & 1 << 13), (0, 1 << 13));
    assert_eq!((field(&plain, "NoNewPrivs"), field(&changed, "NoNewPrivs")), ("0".to_owned(), "1".to_owned()));
    let line = ["exec", "--cwd", "/tmp", "--env", "A=2", "-e", "B=3", &id, "sh", "-c", "echo $PWD $A $B $HOME"];
    assert_eq!(world.regen(&line).success().stdout(), "/tmp 2 3 /root\n");
    assert_eq!(world.regen(&["exec", &id, "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(world.regen(&["exec", &id, "sh", "-c", "kill -9 $$"]).code, 137);
    world.delete(&id);
}

#[test]
fn a_process_file_says_everything() {
    let world = World::new("exec-file");
    let id = world.sleeper("a");
    let run = |change: &dyn Fn(&mut Value), line: &str| {
        let mut process = json!({"user": {"uid": 5, "gid": 6, "umask": 0o077}, "cwd": "/tmp", "env": ["PATH=/bin"],
            "args": ["sh", "-c", line]});
        change(&mut process);
        let file = world.base().join("process.json");
        fs::write(&file, process.to_string()).unwrap();
        world.regen(&["exec", "--process", file.to_str().unwrap(), &id]).success().stdout().to_owned()
    };
    assert_eq!(run(&|_| (), "id -u; id -g; umask; pwd"), "5\n6\n0077\n/tmp\n");
    let limits = |process: &mut Value| {
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        process["oomScoreAdj"] = json!(321);
    };
    assert_eq!(run(&limits, "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj"), "100\n200\n321\n");
    let affinity = |process: &mut Value| process["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    assert_eq!(run(&affinity, "grep Cpus_allowed_list /proc/self/status"), "Cpus_allowed_list:\t0\n");
    let scheduler = |process: &mut Value| process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
    // Fields 19 and 41 of stat: the nice value, and the policy.
    assert_eq!(run(&scheduler, "set -- $(cat /proc/self/stat); shift 18; echo $1; shift 22; echo $1"), "3\n3\n");
    world.delete(&id);
}

#[test]
fn a_process_that_ignores_the_pause_waits_for_its_end() {
    let world = World::new("exec-paused");
    let id = world.sleeper("a");
    world.regen(&["pause", &id]).success();
    let running = world.spawn(world.command(&["exec", "--ignore-paused", &id, "echo", "late"]));
    // The sleeper and the newcomer, which is frozen as soon as it is one of the container's.
    eventually("it is in the container", || {
        let pids: Vec<i32> = serde_json::from_str(world.regen(&["ps", "-f", "json", &id]).success().stdout()).unwrap();
        pids.len() == 2
    });
    assert_eq!(running.so_far(), "");
    world.regen(&["resume", &id]).success();
    assert_eq!(running.finish().success().stdout(), "late\n");
    world.delete(&id);
}

#[test]
fn a_cgroup_below_the_containers_is_joined_if_it_exists() {
    let world = World::new("exec-cgroup");
    let id = world.sleeper("a");
    let pid = world.pid(&id);
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (controller, path) = text
        .lines()
        .filter_map(|line| line.split(':').skip(1).collect::<Vec<_>>().try_into().ok())
        .map(|[controller, path]: [&str; 2]| (controller, path))
        .find(|(controller, path)| *controller == "pids" && path.ends_with(&id))
        .unwrap_or(("", ""));
    if path.is_empty() {
        // Only where version 1 has the controller for itself; version 2 is tried in the virtual machine.
        world.delete(&id);
        return;
    }
    let below = format!("/sys/fs/cgroup/{controller}{path}/below");
    fs::create_dir(&below).unwrap();
    let output = world.regen(&["exec", "--cgroup", "pids:below", &id, "cat", "/proc/self/cgroup"]);
    let joined = output.success().stdout().lines().any(|line| line.ends_with(&format!("{path}/below")));
    assert!(joined, "{}", output.stdout());
    world.delete(&id);
}
