//! Doors that a runtime may leave open, each with a test that goes through it if it is not closed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use harness::{World, eventually, process_status};
use serde_json::{Value, json};

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_image_with_symlinks_for_directories_touches_nothing_on_the_host() {
    let world = World::new("symlinks");
    let host = world.base().join("host");
    fs::create_dir_all(host.join("pts")).unwrap();
    fs::write(host.join("ptmx"), "the host's").unwrap();
    let before = names(&host);
    for link in ["dev", "dev/pts", "dev/shm", "proc", "sys"] {
        for target in [host.clone(), Path::new("..").join("..").join("host"), "/nowhere".into()] {
            let rootfs = world.base().join("image");
            let path = rootfs.join(link);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::create_dir_all(rootfs.join("bin")).unwrap();
            fs::copy("/bin/busybox", rootfs.join("bin/true")).unwrap();
            symlink(&target, &path).unwrap();
            for mounts in [true, false] {
                let bundle = world.bundle(|spec| {
                    spec["root"]["path"] = rootfs.to_str().unwrap().into();
                    if !mounts {
                        spec["mounts"] = json!([]);
                    }
                });
                let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
                // What is covered by a mount of the container's own leads nowhere.
                if output.code != 0 || mounts && !link.contains('/') {
                    output.fails_with(1, "symlink");
                }
                assert_eq!(names(&host), before, "{link} -> {}", target.display());
                assert!(names(&host.join("pts")).is_empty());
                assert_eq!(fs::read_to_string(host.join("ptmx")).unwrap(), "the host's");
            }
            fs::remove_dir_all(&rootfs).unwrap();
        }
    }
}

/// A filter that makes mkdir fail, and nothing else.
fn filtered(world: &World, no_new_privileges: Value) -> String {
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        match no_new_privileges {
            Value::Null => drop(spec["process"].as_object_mut().unwrap().remove("noNewPrivileges")),
            value => spec["process"]["noNewPrivileges"] = value,
        }
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        });
    });
    let id = world.id("a");
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    id
}

#[test]
fn an_exec_runs_under_the_containers_filter_with_its_privileges_only() {
    let world = World::new("seccomp");
    for no_new_privileges in [json!(true), json!(false), Value::Null] {
        let expected = if no_new_privileges == json!(true) { "1" } else { "0" };
        let id = filtered(&world, no_new_privileges);
        let init = world.pid(&id);
        assert_eq!(process_status(init, "Seccomp"), "2");
        assert_eq!(process_status(init, "NoNewPrivs"), expected);
        world.regen(&["exec", &id, "mkdir", "/tmp/made"]).code(1);
        world.regen(&["exec", "--user", "1000", &id, "mkdir", "/tmp/made"]).code(1);
        assert!(!world.rootfs().join("tmp/made").exists());
        let status = world.regen(&["exec", &id, "cat", "/proc/self/status"]).success().stdout().to_owned();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        assert_eq!(field("Seccomp"), "2");
        assert_eq!(field("NoNewPrivs"), expected);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), process_status(init, set), "{set}");
        }
        let status =
            world.regen(&["exec", "--no-new-privs", &id, "cat", "/proc/self/status"]).success().stdout().to_owned();
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
        let output = world.regen(&["exec", "--cap", "CAP_SYS_ADMIN", &id, "cat", "/proc/self/status"]);
        let bounding = output.success().stdout().lines().find(|line| line.starts_with("CapBnd")).unwrap().to_owned();
        let bits = u64::from_str_radix(bounding.split_whitespace().last().unwrap(), 16).unwrap();
        assert_ne!(bits & 1 << 21, 0, "a capability that was asked for was dropped");
        assert_eq!(bits & 1 << 8, 0, "a capability that was only lent was kept");
        world.delete(&id);
    }
}

#[test]
fn a_process_without_a_list_of_capabilities_has_none() {
    let world = World::new("nocaps");
    let bundle = world.bundle(|spec| {
        spec["process"].as_object_mut().unwrap().remove("capabilities");
        spec["process"]["args"] = json!(["grep", "Cap", "/proc/self/status"]);
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    for line in output.success().stdout().lines() {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
}

#[test]
fn device_rules_are_enforced() {
    let world = World::new("devices");
    // No driver has these majors, so what is allowed fails in another way than what is not.
    let script = "mknod /tmp/a c 60 1; mknod /tmp/b c 60 2; cat /tmp/a; cat /tmp/b; head -c 1 /dev/zero | wc -c";
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", format!("({script}) 2>&1")]);
        spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 60, "minor": 2, "access": "rw"},
        ]);
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    let lines: Vec<&str> = output.success().stdout().lines().collect();
    assert!(lines[0].contains("Operation not permitted"), "{lines:?}");
    assert!(lines[1].contains("No such device or address"), "{lines:?}");
    assert_eq!(lines[2].trim(), "1");
}

#[test]
fn a_reused_pid_is_never_signalled() {
    let world = World::new("reused");
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = stranger.id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let other_boot = "00000000-0000-0000-0000-000000000000";
    for (start, boot) in [(start + 1, boot.trim()), (start, other_boot)] {
        let id = world.sleeper("a");
        let own = world.pid(&id);
        let path = world.state_directory(&id).join("init");
        fs::remove_file(&path).unwrap();
        symlink(format!("{pid}.{start}.{boot}"), path).unwrap();
        assert_eq!(world.status(&id), "stopped");
        world.regen(&["kill", &id, "KILL"]).fails_with(1, "container not running");
        world.regen(&["exec", &id, "true"]).fails_with(1, "container not running");
        world.delete(&id);
        assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
        eventually("the container's own process is gone", || !Path::new(&format!("/proc/{own}")).exists());
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_torn_state_is_named_and_forced_away() {
    let world = World::new("torn");
    type Tear = fn(&Path);
    let tears: [(&str, Tear); 6] = [
        ("record.json", |path| fs::write(path, "{\"format\":1,\"id\":\"x").unwrap()),
        ("record.json", |path| fs::write(path, "").unwrap()),
        ("record.json", |path| fs::remove_file(path).unwrap()),
        ("record.json", |path| fs::write(path, "{\"format\":99}").unwrap()),
        ("init", |path| fs::remove_file(path).and_then(|()| fs::write(path, "")).unwrap()),
        ("init", |path| fs::remove_file(path).and_then(|()| symlink("1.2", path)).unwrap()),
    ];
    for (file, tear) in tears {
        let id = world.sleeper("a");
        let pid = world.pid(&id);
        tear(&world.state_directory(&id).join(file));
        world.regen(&["state", &id]).fails_with(1, file);
        world.regen(&["state", &id]).fails_with(1, "regen delete --force");
        world.regen(&["delete", &id]).fails_with(1, file);
        assert_eq!(world.regen(&["list", "-q"]).success().stdout(), format!("{id}\n"));
        world.regen(&["list"]).success();
        world.regen(&["list", "--json"]).success();
        world.delete(&id);
        eventually("its process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    }
}

#[test]
fn of_many_creators_of_one_id_exactly_one_wins() {
    let world = World::new("race");
    let id = world.id("a");
    let bundle = world.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    for _ in 0..3 {
        let arguments = ["create", "--bundle", bundle.text(), &id];
        let running: Vec<_> = (0..16).map(|_| world.spawn(world.command(&arguments))).collect();
        let outputs: Vec<_> = running.into_iter().map(harness::Running::finish).collect();
        assert_eq!(outputs.iter().filter(|output| output.code == 0).count(), 1);
        for output in outputs.iter().filter(|output| output.code != 0) {
            output.fails_with(1, "");
            assert!(output.stderr().contains("exists") || output.stderr().contains("not empty"), "{}", output.stderr());
        }
        assert_eq!(world.status(&id), "created");
        world.regen(&["start", &id]).success();
        world.regen(&["exec", &id, "true"]).success();
        world.delete(&id);
    }
}

#[test]
fn a_second_container_does_not_move_into_the_cgroup_of_the_first() {
    let world = World::new("shared");
    let first = world.sleeper("a");
    let bundle = world.bundle(|spec| spec["linux"]["cgroupsPath"] = format!("/{first}").into());
    world.regen(&["run", "--bundle", bundle.text(), &world.id("b")]).fails_with(1, "not empty");
    assert_eq!(world.status(&first), "running");
    world.delete(&first);
}

#[test]
fn the_runtimes_binary_cannot_be_written_through_a_container_process() {
    let world = World::new("exe");
    // A copy that nobody else executes: a busy file refuses writing for another reason.
    let own = world.base().join("own-regen");
    fs::copy(harness::REGEN, &own).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&own);
        command.arg("--root").arg(world.root()).args(arguments);
        command
    };
    let bundle = world.bundle(|spec| spec["process"]["args"] = json!(["true"]));
    let id = world.id("a");
    world.finish(command(&["create", "--bundle", bundle.text(), &id])).success();
    // What waits in the container is our program still: an attacker there takes hold of its file...
    let pid = world.pid(&id);
    let held = File::open(format!("/proc/{pid}/exe")).unwrap();
    world.finish(command(&["start", &id])).success();
    eventually("it ends", || world.status(&id) == "stopped");
    world.finish(command(&["delete", &id])).success();
    // ...and opens it for writing once nobody executes it any more.
    let error = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EROFS as i32), "{error}");
    drop(held);
    OpenOptions::new().write(true).open(&own).expect("the administrator may still replace it");
}

#[test]
fn a_program_that_is_the_runtime_itself_gets_nothing_writable() {
    let world = World::new("selfexe");
    let script = world.rootfs().join("bin/evil");
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    Command::new("chmod").arg("755").arg(&script).status().unwrap();
    let id = world.sleeper("a");
    let output = world.regen(&["exec", &id, "evil"]);
    assert_ne!(output.code, 0);
    // The program as the host has it is the one that the tests go on with.
    world.regen(&["exec", &id, "true"]).success();
    world.delete(&id);
}

#[test]
fn without_privileges_the_binary_is_copied_instead() {
    let world = World::new("memfd");
    let own = world.base().join("own-regen");
    fs::copy(harness::REGEN, &own).unwrap();
    let mut command = Command::new(&own);
    command.args(["--root", "/tmp/no-such-root", "run", "--bundle", "/no/such/bundle", "x"]).uid(65_534).gid(65_534);
    world.finish(command).fails_with(1, "bundle");
}

#[test]
fn a_container_has_a_session_keyring_of_its_own_unless_told_otherwise() {
    let world = World::new("keyring");
    let bundle = world.bundle(|spec| spec["process"]["args"] = json!(["cat", "/proc/keys"]));
    let id = world.id("a");
    let name = format!("_ses.{id}");
    let output = world.regen(&["run", "--bundle", bundle.text(), &id]);
    assert!(output.success().stdout().contains(&name), "{}", output.stdout());
    let other = world.id("b");
    let output = world.regen(&["run", "--no-new-keyring", "--bundle", bundle.text(), &other]);
    assert!(!output.success().stdout().contains(&other), "{}", output.stdout());
}

#[test]
fn a_creator_that_is_killed_leaves_what_can_be_forced_away() {
    let world = World::new("killed");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        let wait = format!("echo > {0}/hook; while [ ! -e {0}/go ]; do sleep 0.01; done", world.base().display());
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", wait]}]});
    });
    let id = world.id("a");
    let running = world.spawn(world.command(&["create", "--bundle", bundle.text(), &id]));
    eventually("the hook runs", || world.base().join("hook").exists());
    assert_eq!(world.status(&id), "creating");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.finish().code(1009);
    fs::write(world.base().join("go"), "").unwrap();
    world.delete(&id);
    world.regen(&["state", &id]).fails_with(1, "does not exist");
}
