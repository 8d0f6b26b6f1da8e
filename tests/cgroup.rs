//! Cgroups on the real kernel: this machine's own hierarchies, and version 2 in a mount namespace of a test's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::LinuxResources;
use regen::cgroup::{Cgroup, Creation, Entrance, Manager, Refusal, Request, plan};
use regen::error::{Kind, Result};
use regen::ids::ContainerId;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);

/// A container's cgroup that goes with the test.
struct Place(Cgroup);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.kill_all(LIMIT);
        self.0.remove(LIMIT).unwrap();
    }
}

fn planned(name: &str) -> Cgroup {
    let id: ContainerId = format!("rt{}-cgroup-{name}", std::process::id()).parse().unwrap();
    plan(Request { id: &id, path: None, manager: Manager::Cgroupfs }).unwrap()
}

fn made(cgroup: &mut Cgroup, resources: Value) -> Result<Entrance> {
    let resources: LinuxResources = serde_json::from_value(resources).unwrap();
    match cgroup.create(Some(&resources), Refusal::Fails)? {
        Creation::Made(entrance) => Ok(entrance),
        Creation::Refused(error) => Err(error),
    }
}

fn place(name: &str, resources: Value) -> (Place, Entrance) {
    let mut cgroup = planned(name);
    let entrance = made(&mut cgroup, resources).unwrap();
    (Place(cgroup), entrance)
}

/// Starts a shell inside.
fn shell(place: &Place, entrance: Entrance, script: &str) -> Child {
    let procs = place.0.unified().map(|directory| directory.join("cgroup.procs"));
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::null());
    let enter = move || match &procs {
        Some(procs) => fs::write(procs, "0"),
        None => entrance.enter().map_err(std::io::Error::other),
    };
    // SAFETY: what runs between fork and exec writes to files; if it allocates while another thread holds the
    // allocator's lock, glibc has made that lock usable in the child.
    unsafe { command.pre_exec(enter) };
    command.spawn().unwrap()
}

fn read(place: &Place, controller: &str, file: &str) -> String {
    fs::read_to_string(place.0.directory(controller).unwrap().join(file)).unwrap().trim().to_owned()
}

/// Runs a test where version 2 alone is mounted.
fn on_version_2(test: impl FnOnce() + Send + 'static) {
    let alone = std::thread::spawn(move || {
        // A thread may leave the others' mount namespace; what it starts sees what it sees.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        // Where version 2 is alone anyway it cannot be mounted over itself.
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none).unwrap();
        }
        test();
    });
    if let Err(panic) = alone.join() {
        std::panic::resume_unwind(panic);
    }
}

fn is_version_1() -> bool {
    Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists()
}

#[test]
fn a_process_goes_into_every_hierarchy_and_the_limits_are_there_before() {
    let resources =
        json!({"pids": {"limit": 7}, "memory": {"limit": 64 << 20}, "cpu": {"shares": 256, "quota": 20000}});
    let (place, entrance) = place("enter", resources);
    if is_version_1() {
        assert_eq!(read(&place, "memory", "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(read(&place, "cpu", "cpu.shares"), "256");
        assert_eq!(read(&place, "cpu", "cpu.cfs_quota_us"), "20000");
        assert!(place.0.directory("name=systemd").is_none_or(Path::is_dir));
    } else {
        assert_eq!(read(&place, "memory", "memory.max"), (64 << 20).to_string());
        assert_eq!(read(&place, "cpu", "cpu.max"), "20000 100000");
    }
    assert_eq!(read(&place, "pids", "pids.max"), "7");
    let mut child = shell(&place, entrance, "exec sleep 1000");
    for directory in place.0.paths() {
        let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), child.id().to_string(), "{}", directory.display());
    }
    assert_eq!(place.0.processes().unwrap(), [i32::try_from(child.id()).unwrap()]);
    place.0.kill_all(LIMIT).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let mut cgroup = planned("failed");
    let paths: Vec<PathBuf> = cgroup.directories.iter().map(|directory| directory.path.clone()).collect();
    let error = made(&mut cgroup, json!({"cpu": {"cpus": "9999"}})).unwrap_err();
    assert!(error.to_string().contains("cpuset.cpus"), "{error}");
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn a_cgroup_that_is_in_use_is_nobody_elses() {
    let (place, entrance) = place("busy", json!({}));
    let mut child = shell(&place, entrance, "exec sleep 1000");
    let mut second = Cgroup { directories: place.0.directories.clone(), ..place.0.clone() };
    let error = made(&mut second, json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("container's cgroup is not empty"), "{error}");
    assert!(place.0.paths().len() == place.0.directories.len(), "the refusal took directories away");
    place.0.kill_all(LIMIT).unwrap();
    child.wait().unwrap();
}

#[test]
fn limits_move_past_each_other_in_both_directions() {
    let (place, _entrance) = place("order", json!({"cpu": {"quota": 10000, "period": 20000}}));
    if !is_version_1() || !place.0.directory("memory").unwrap().join("memory.memsw.limit_in_bytes").exists() {
        return;
    }
    for (limit, swap) in [(64_i64 << 20, 128_i64 << 20), (256 << 20, 512 << 20), (32 << 20, 48 << 20)] {
        let resources = serde_json::from_value(json!({"memory": {"limit": limit, "swap": swap}})).unwrap();
        place.0.apply(&resources).unwrap();
        assert_eq!(read(&place, "memory", "memory.limit_in_bytes"), limit.to_string());
        assert_eq!(read(&place, "memory", "memory.memsw.limit_in_bytes"), swap.to_string());
    }
    let resources = serde_json::from_value(json!({"memory": {"limit": 1_i64 << 30, "swap": 1_i64 << 29}})).unwrap();
    assert!(place.0.apply(&resources).is_err());
}

#[test]
fn a_limit_without_a_place_is_refused_in_runcs_words() {
    let mut cgroup = planned("nowhere");
    cgroup.directories.clear();
    let resources = serde_json::from_value(json!({"pids": {"limit": 5}})).unwrap();
    let error = cgroup.apply(&resources).unwrap_err();
    assert!(error.to_string().contains("cannot set pids limit: container could not join or create cgroup"), "{error}");
    cgroup.apply(&LinuxResources::default()).unwrap();
}

#[test]
fn device_rules_hold_on_this_machines_hierarchies() {
    check_device_rules("devices");
}

#[test]
fn device_rules_hold_on_version_2() {
    on_version_2(|| check_device_rules("devices2"));
}

/// /dev/kmsg is 1:11, which no rule of a container's own list allows; /dev/null is 1:3.
fn check_device_rules(name: &str) {
    let open = |resources: Value, path: &str| {
        let (place, entrance) = place(name, resources);
        let mut child = shell(&place, entrance, &format!("exec 3<{path}"));
        child.wait().unwrap().success()
    };
    assert!(open(json!({"devices": [{"allow": true}]}), "/dev/kmsg"));
    assert!(!open(json!({}), "/dev/kmsg"));
    assert!(open(json!({}), "/dev/null"));
    let rule = |access: &str| json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": access});
    assert!(open(json!({"devices": [{"allow": false}, rule("r")]}), "/dev/kmsg"));
    assert!(!open(json!({"devices": [{"allow": false}, rule("w")]}), "/dev/kmsg"));
}

#[test]
fn version_2_is_one_directory_that_a_process_can_be_born_in() {
    on_version_2(|| {
        let (place, entrance) = place("born", json!({"unified": {"cgroup.max.depth": "5"}}));
        assert_eq!(place.0.directories.len(), 1);
        assert!(entrance.clone_into().is_some());
        assert_eq!(read(&place, "cgroup", "cgroup.max.depth"), "5");
        let mut child = shell(&place, entrance, "exec sleep 1000");
        assert_eq!(place.0.processes().unwrap(), [i32::try_from(child.id()).unwrap()]);
        place.0.kill_all(LIMIT).unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn a_controller_that_version_2_does_not_offer_is_named() {
    on_version_2(|| {
        let offered = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
        let Some(missing) = ["memory", "pids", "rdma"].into_iter().find(|one| !offered.contains(one)) else { return };
        let mut cgroup = planned("missing");
        let error = made(&mut cgroup, json!({"unified": {format!("{missing}.max"): "5"}})).unwrap_err();
        assert!(error.to_string().contains(&format!("enable controller {missing}")), "{error}");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(!cgroup.directories.iter().any(|directory| directory.path.exists()));
    });
}

/// A frozen process makes no progress: its counter stands still.
fn check_freezing(name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let counter = directory.path().join("counter");
    let (place, entrance) = place(name, json!({}));
    let script = format!("while :; do echo >> {}; sleep 0.001; done", counter.display());
    let mut child = shell(&place, entrance, &script);
    let count = || fs::metadata(&counter).map_or(0, |metadata| metadata.len());
    harness::eventually("it counts", || count() > 3);
    assert!(!place.0.is_frozen());
    place.0.freeze(PATIENCE).unwrap();
    assert!(place.0.is_frozen());
    let before = count();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(count(), before, "it went on");
    place.0.thaw().unwrap();
    harness::eventually("it goes on", || count() > before);
    place.0.freeze(PATIENCE).unwrap();
    place.0.kill_all(LIMIT).unwrap();
    child.wait().unwrap();
}

#[test]
fn freezing_stops_processes_where_they_are_on_this_machines_hierarchies() {
    check_freezing("freeze");
}

#[test]
fn freezing_stops_processes_where_they_are_on_version_2() {
    on_version_2(|| check_freezing("freeze2"));
}

#[test]
fn numbers_tell_what_a_container_used() {
    let (place, entrance) = place("numbers", json!({"pids": {"limit": 9}, "memory": {"limit": 100 << 20}}));
    let mut child = shell(&place, entrance, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000");
    let stats = || place.0.stats().unwrap();
    harness::eventually("it has used time", || stats().cpu.usage.total > 1_000_000);
    let now = stats();
    assert_eq!((now.pids.current, now.pids.limit), (1, 9));
    assert_eq!(now.memory.usage.limit, 100 << 20);
    assert!(now.memory.usage.usage > 0 && now.memory.raw.contains_key("pgfault"), "{now:?}");
    place.0.kill_all(LIMIT).unwrap();
    child.wait().unwrap();
}

#[test]
fn numbers_of_version_2_count_processes_without_a_controller() {
    on_version_2(|| {
        let (place, entrance) = place("numbers2", json!({}));
        let mut child = shell(&place, entrance, "exec sleep 1000");
        assert_eq!(place.0.stats().unwrap().pids.current, 1);
        harness::eventually("it has used time", || place.0.stats().unwrap().cpu.usage.total > 0);
        place.0.kill_all(LIMIT).unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn a_container_without_cgroups_says_so() {
    let mut cgroup = planned("without");
    cgroup.directories.clear();
    for error in [cgroup.freeze(PATIENCE).unwrap_err(), cgroup.stats().unwrap_err()] {
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("no cgroup"), "{error}");
    }
    cgroup.thaw().unwrap();
    assert!(cgroup.processes().unwrap().is_empty());
}

#[test]
fn cgroups_below_a_containers_own_are_found_and_none_beside_it() {
    let (place, _entrance) = place("below", json!({}));
    for directory in place.0.paths() {
        fs::create_dir(directory.join("sub")).unwrap();
    }
    let below = place.0.below("/sub").unwrap();
    assert!(below.paths().iter().all(|path| path.ends_with("sub")));
    assert!(below.open().is_ok());
    if is_version_1() {
        let one = place.0.below("pids:sub").unwrap();
        assert_eq!(one.paths().iter().filter(|path| path.ends_with("sub")).count(), 1);
    }
    assert_eq!(place.0.below("../x").unwrap_err().kind(), Kind::Invalid);
    assert_eq!(place.0.below("nope").unwrap_err().kind(), Kind::NotFound);
}

/// An ordinary user, for whom the hierarchies are read-only.
#[test]
fn without_the_right_to_make_cgroups_a_container_without_limits_goes_without() {
    let alone = std::thread::spawn(|| {
        // This thread's own identity alone: the system call, not the C library, which would change all threads.
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut cgroup = planned("rootless");
        let limit: LinuxResources = serde_json::from_value(json!({"pids": {"limit": 5}})).unwrap();
        let error = cgroup.clone().create(Some(&limit), Refusal::Skips).unwrap_err();
        assert!(error.to_string().contains("container could not join or create cgroup"), "{error}");
        assert!(cgroup.clone().create(None, Refusal::Fails).is_err());
        let creation = cgroup.create(None, Refusal::Skips).unwrap();
        assert!(matches!(creation, Creation::Refused(_)), "{creation:?}");
        assert!(cgroup.directories.is_empty());
    });
    if let Err(panic) = alone.join() {
        std::panic::resume_unwind(panic);
    }
}

/// One property of a unit.
fn property(unit: &str, name: &str) -> String {
    let output = Command::new("systemctl").args(["show", "--value", "-p", name, unit]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn systemd_makes_a_scope_with_limits_that_outlive_its_reload() {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let name = format!("rt{}-scope", std::process::id());
    let id: ContainerId = name.parse().unwrap();
    let path = format!("regentest.slice:regen:{name}");
    let request = Request { id: &id, path: Some(Path::new(&path)), manager: Manager::Systemd };
    let mut place = Place(plan(request).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let (go, result) = (directory.path().join("go"), directory.path().join("result"));
    let script = format!(
        "while ! [ -e {0} ]; do sleep 0.05; done; (exec 3</dev/kmsg) && echo open >{1} || echo denied >{1}; \
         (exec 3</dev/null) && echo open >>{1}; exec sleep 1000",
        go.display(),
        result.display()
    );
    let mut child = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let resources =
        json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 12}, "cpu": {"quota": 50000, "period": 100_000}});
    let resources: LinuxResources = serde_json::from_value(resources).unwrap();
    assert!(place.0.create(Some(&resources), Refusal::Fails).is_ok_and(|made| matches!(made, Creation::Made(_))));
    place.0.admit(pid, Some(&resources)).unwrap();
    assert!(place.0.processes().unwrap().contains(&pid), "{:?}", place.0);

    let unit = format!("regen-{name}.scope");
    assert_eq!(property(&unit, "ActiveState"), "active");
    assert_eq!((property(&unit, "Slice"), property(&unit, "Delegate")), ("regentest.slice".into(), "yes".into()));
    assert_eq!((property(&unit, "TasksMax"), property(&unit, "DevicePolicy")), ("12".into(), "strict".into()));
    let change: LinuxResources = serde_json::from_value(json!({"pids": {"limit": 15}})).unwrap();
    place.0.apply(&change).unwrap();
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    assert_eq!(property(&unit, "TasksMax"), "15");
    assert_eq!(read(&place, "pids", "pids.max"), "15");
    fs::write(go, "").unwrap();
    let said = || fs::read_to_string(&result).unwrap_or_default();
    harness::eventually("the devices were tried", || said() == "denied\nopen\n" || said().starts_with("open"));
    assert_eq!(said(), "denied\nopen\n");

    place.0.kill_all(LIMIT).unwrap();
    child.wait().unwrap();
    place.0.remove(LIMIT).unwrap();
    harness::eventually("the scope is forgotten", || property(&unit, "LoadState") == "not-found");
}

#[test]
fn one_more_process_goes_beside_the_first_where_the_container_has_split_its_cgroup() {
    on_version_2(|| {
        let (place, entrance) = place("split", json!({}));
        let mut child = shell(&place, entrance, "exec sleep 1000");
        let pid = i32::try_from(child.id()).unwrap();
        let directory = place.0.unified().unwrap().to_owned();
        let aim = |entrance: &Entrance| {
            use std::os::fd::AsRawFd;
            fs::read_link(format!("/proc/self/fd/{}", entrance.clone_into().unwrap().as_raw_fd())).unwrap()
        };
        assert_eq!(aim(&place.0.open_beside(pid).unwrap()), directory);
        // As a systemd in a container does.
        let inner = directory.join("init.scope");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), pid.to_string()).unwrap();
        let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap();
        let controller = offered.split_whitespace().next().unwrap();
        fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        assert_eq!(aim(&place.0.open_beside(pid).unwrap()), inner);
        place.0.kill_all(LIMIT).unwrap();
        child.wait().unwrap();
    });
}
