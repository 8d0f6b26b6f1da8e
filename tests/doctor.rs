//! `regen doctor` in worlds that lack something: each finding in a good state and in a bad one, and that the command
//! it gives mends it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use harness::enclosure::Enclosure;
use harness::{Output, World, eventually};
use serde_json::Value;

/// The findings of one call.
struct Findings(Vec<Value>);

impl Findings {
    #[track_caller]
    fn of(output: &Output) -> Self {
        let all: Value = serde_json::from_str(output.stdout()).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let all = all.as_array().unwrap().clone();
        let failed = all.iter().any(|finding| finding["status"] == "fail");
        output.code(i32::from(failed));
        Self(all)
    }

    fn about(&self, subject: &str) -> Vec<&Value> {
        self.0.iter().filter(|finding| finding["subject"] == subject).collect()
    }

    /// There is one about this subject with this status, whose text or command contains these words.
    #[track_caller]
    fn expect(&self, subject: &str, status: &str, words: &str) -> &Self {
        let found = self.about(subject);
        let fits = |finding: &&&Value| finding["status"] == status && finding.to_string().contains(words);
        assert!(found.iter().any(|finding| fits(&finding)), "no {status} of {subject} with {words:?}: {found:#?}");
        self
    }
}

#[track_caller]
fn doctor(world: &World) -> Findings {
    Findings::of(&world.regen(&["doctor", "--json"]))
}

#[track_caller]
fn doctor_in(enclosure: &Enclosure<'_>) -> Findings {
    Findings::of(&enclosure.regen(&["doctor", "--json"]))
}

#[test]
fn a_machine_that_runs_the_tests_is_fit_and_every_line_says_how_fit() {
    let world = World::new("fit");
    // How full its disk is does not matter here.
    let file = world.base().join("config.toml");
    fs::write(&file, "[store]\nmin-free = 0\n").unwrap();
    let look = |json: &[&str]| world.regen(&[&["--config", file.to_str().unwrap(), "doctor"], json].concat());
    let findings = Findings::of(&look(&["--json"]));
    for subject in
        ["kernel", "overlay", "seccomp", "pidfd_getfd", "user namespaces", "cgroups", "templates", "configuration"]
    {
        findings.expect(subject, "ok", "");
    }
    for subject in ["store", "free space", "inodes", "containers", "mounts", "store content", "rings"] {
        findings.expect(subject, "ok", "");
    }
    findings.expect("store", "ok", "is not there yet");
    assert!(!world.store().exists(), "looking made something");
    for finding in &findings.0 {
        assert_eq!(finding["mend"].is_null(), finding["status"] == "ok", "{finding}");
    }
    let output = look(&[]);
    for line in output.success().stdout().lines() {
        assert!(["ok ", "warn ", "fail "].iter().any(|word| line.starts_with(word)), "{line}");
    }
    assert_eq!(output.stdout().lines().count(), findings.0.len());
}

#[test]
fn a_kernel_that_lacks_something_is_told_of() {
    let world = World::new("kernel");
    for (name, text) in
        [("release", "5.4.0-old\n"), ("middling", "6.1.0-18\n"), ("actions", "kill errno\n"), ("none", "0\n")]
    {
        fs::write(world.base().join(name), text).unwrap();
    }
    let enclosure = Enclosure::new(
        &world,
        "mount --bind release /proc/sys/kernel/osrelease
         mount --bind actions /proc/sys/kernel/seccomp/actions_avail
         mount --bind none /proc/sys/user/max_user_namespaces
         umount -R -l /sys/fs/cgroup",
    );
    doctor_in(&enclosure)
        .expect("kernel", "fail", "the oldest kernel")
        .expect("seccomp", "warn", "notification is not")
        .expect("user namespaces", "warn", "sysctl -w user.max_user_namespaces")
        .expect("cgroups", "fail", "mount -t cgroup2");
    enclosure.shell("mount --bind middling /proc/sys/kernel/osrelease; mount -t tmpfs t /proc/sys/kernel/seccomp");
    doctor_in(&enclosure).expect("kernel", "warn", "60 layers").expect("seccomp", "fail", "CONFIG_SECCOMP");
}

#[test]
fn an_ordinary_user_is_told_what_the_administrator_has_to_do() {
    let world = World::new("user");
    let own = world.base().join("own-regen");
    fs::copy(harness::REGEN, &own).unwrap();
    let mut command = Command::new(&own);
    command.arg("--root").arg(world.root()).arg("--store").arg(world.store()).args(["doctor", "--json"]);
    command.uid(65_534).gid(65_534);
    Findings::of(&world.finish(command)).expect("user namespaces", "warn", "--add-subuids 100000-165535").expect(
        "overlay",
        "warn",
        "sudo regen doctor",
    );
}

#[test]
fn a_configuration_that_no_other_verb_starts_with_is_a_finding() {
    let world = World::new("config");
    let file = world.base().join("config.toml");
    let doctor = |text: &str| {
        fs::write(&file, text).unwrap();
        Findings::of(&world.regen(&["--config", file.to_str().unwrap(), "doctor", "--json"]))
    };
    doctor("[ring]\ndepth = 3\n").expect("configuration", "ok", "is valid");
    let findings = doctor("[ring]\ndeepness = 3\n");
    findings.expect("configuration", "fail", "deepness").expect("configuration", "fail", file.to_str().unwrap());
    findings.expect("store", "ok", "");
    let findings = Findings::of(&world.regen(&["--config", "/no/such/file", "doctor", "--json"]));
    findings.expect("configuration", "fail", "no such file");
}

#[test]
fn a_store_without_room_or_on_the_wrong_file_system_is_told_of() {
    let world = World::new("store");
    world.run_in("alice", "echo one > /tmp/f").success();
    world.pack();
    doctor(&world).expect("store", "ok", "holds uppers");
    assert_eq!(harness::ring::names(&world.store().join("layers")), world.layers(), "the trial left something");

    fs::create_dir_all(world.base().join("store2")).unwrap();
    let enclosure = Enclosure::new(&world, "mount -t tmpfs -o size=4m,nr_inodes=40 tmpfs store2");
    let look = || {
        let arguments = ["--store", "store2/s", "doctor", "--json"];
        Findings::of(&enclosure.run(&[&[harness::REGEN], &arguments[..]].concat()))
    };
    look().expect("store", "ok", "tmpfs").expect("free space", "ok", "4.0 MiB").expect("inodes", "ok", "of 40");
    enclosure.shell("head -c 3800k /dev/zero > store2/fill");
    look().expect("free space", "warn", "store.min-free");
    enclosure.shell("head -c 4000k /dev/zero > store2/fill");
    look().expect("free space", "fail", "nothing is packed");
    enclosure.shell("rm store2/fill; for n in $(seq 38); do : > store2/$n; done");
    look().expect("inodes", "warn", "ring set");
    enclosure.shell("for n in a b c d e; do touch store2/$n || true; done");
    look().expect("inodes", "fail", "0 of 40");
    enclosure.shell("umount store2; mkdir l u w; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none store2");
    look().expect("store", "fail", "overlay").expect("store", "fail", "--store");
}

/// Programs in the path of an enclosure.
fn install(world: &World, name: &str, script: &str) {
    let path = world.base().join("path").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The findings where only these programs are installed.
#[track_caller]
fn doctor_with_path(world: &World, enclosure: &Enclosure<'_>) -> Findings {
    let path = format!("PATH={}", world.base().join("path").display());
    let (root, store) = (world.root(), world.store());
    let (root, store) = (root.to_str().unwrap(), store.to_str().unwrap());
    let arguments = ["--root", root, "--store", store, "doctor", "--json"];
    Findings::of(&enclosure.run(&[&["env", &path, harness::REGEN], &arguments[..]].concat()))
}

#[test]
fn engines_are_told_apart_by_whether_they_know_of_regen_and_would_find_it() {
    let world = World::new("engines");
    fs::create_dir(world.base().join("etc")).unwrap();
    install(&world, "regen", "exit 0");
    let regen = world.base().join("path/regen").display().to_string();
    // What else the machine has in these places is hidden.
    let enclosure = Enclosure::new(
        &world,
        "mkdir empty; mount --bind etc /etc; for d in /usr/sbin /usr/local/sbin; do mount --bind empty $d; done
         if [ -e /usr/share/containers ]; then mount --bind empty /usr/share/containers; fi",
    );
    let cases = [
        ("podman", "podman", "containers/containers.conf.d/50-regen.conf"),
        ("containerd", "containerd", "containerd/config.toml"),
        ("docker", "dockerd", "docker/daemon.json"),
        ("crio", "crio", "crio/crio.conf.d/50-regen.conf"),
    ];
    for (engine, program, file) in cases {
        let subject = format!("engine {engine}");
        let file = world.base().join("etc").join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        doctor_with_path(&world, &enclosure).expect(&subject, "ok", "not installed");
        install(&world, program, "exit 0");
        let mend = format!("regen install --engine {engine}");
        doctor_with_path(&world, &enclosure).expect(&subject, "warn", &mend);
        // What it says is what mends it.
        enclosure.run(&[harness::REGEN, "install", "--engine", engine, "--binary", &regen]).success();
        doctor_with_path(&world, &enclosure).expect(&subject, "ok", &regen);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace(&regen, "/no/such/regen")).unwrap();
        doctor_with_path(&world, &enclosure).expect(&subject, "fail", "/no/such/regen");
        fs::write(&file, "]{").unwrap();
        doctor_with_path(&world, &enclosure).expect(&subject, "warn", file.file_name().unwrap().to_str().unwrap());
        fs::remove_file(&file).unwrap();
        fs::remove_file(world.base().join("path").join(program)).unwrap();
    }
}

#[test]
fn criu_is_asked_whether_it_fits() {
    let world = World::new("criu");
    install(&world, "other", "");
    let enclosure =
        Enclosure::new(&world, "mkdir empty; for d in /usr/sbin /usr/local/sbin; do mount --bind empty $d; done");
    doctor_with_path(&world, &enclosure).expect("criu", "warn", "apt-get install criu");
    let version = "if [ \"$1\" = --version ]; then echo Version: 3.17.1; exit; fi";
    install(&world, "criu", &format!("{version}; echo Looks good."));
    install(&world, "tar", "");
    doctor_with_path(&world, &enclosure).expect("criu", "warn", "apt-get install iproute2");
    install(&world, "ip", "");
    doctor_with_path(&world, &enclosure).expect("criu", "ok", "criu 3.17.1 fits this kernel");
    install(&world, "criu", &format!("{version}; echo 'Error (vdso): none' >&2; exit 1"));
    doctor_with_path(&world, &enclosure).expect("criu", "warn", "Error (vdso): none");
}

#[test]
fn what_crashes_left_is_told_with_the_command_that_takes_it_away() {
    let world = World::new("left");
    let id = world.sleeper("torn");
    fs::write(world.state_directory(&id).join("record.json"), "{").unwrap();
    let subject = format!("container {id}");
    let mend = format!("regen delete --force {id}");
    doctor(&world).expect(&subject, "warn", &mend);
    world.delete(&id);

    let bundle = world.bundle(|spec| {
        let wait = format!("echo > {0}/hook; while [ ! -e {0}/go ]; do sleep 0.01; done", world.base().display());
        spec["hooks"] = serde_json::json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", wait]}]});
    });
    let id = world.id("half");
    let running = world.spawn(world.command(&["create", "--bundle", bundle.text(), &id]));
    eventually("the hook runs", || world.base().join("hook").exists());
    doctor(&world).expect("containers", "ok", "");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.finish().code(1009);
    doctor(&world).expect(&format!("container {id}"), "warn", "whoever was making it is dead");
    fs::write(world.base().join("go"), "").unwrap();
    world.delete(&id);

    let trash = world.root().join("~gone.1");
    fs::create_dir(&trash).unwrap();
    doctor(&world).expect("containers", "warn", &format!("rm -r '{}'", trash.display()));
    fs::remove_dir(&trash).unwrap();
    doctor(&world).expect("containers", "ok", "");
}

#[test]
fn a_root_file_system_that_stayed_attached_is_told_of() {
    let world = World::new("mounts");
    let place = world.root().join("@rootfs");
    fs::create_dir_all(&place).unwrap();
    let enclosure = Enclosure::new(&world, &format!("mount -t tmpfs tmpfs {}", place.display()));
    let mend = format!("umount '{}'", place.display());
    doctor_in(&enclosure).expect("mounts", "warn", &mend);
    enclosure.shell(&mend);
    doctor_in(&enclosure).expect("mounts", "ok", "");
}

#[test]
fn what_nobody_comes_back_to_in_the_store_goes_with_recover() {
    let world = World::new("orphans");
    world.run_in("alice", "echo one > /tmp/f").success();
    world.pack();
    doctor(&world).expect("store content", "ok", "");
    fs::create_dir(world.store().join("runs").join("ab".repeat(16))).unwrap();
    fs::create_dir(world.store().join("layers/.tmp-left")).unwrap();
    let findings = doctor(&world);
    findings.expect("store content", "warn", "1 runs whose container is dead and 1 layers");
    findings.expect("store content", "warn", "regen ring recover");
    world.ring(&["recover"]).success();
    doctor(&world).expect("store content", "ok", "");
}

#[test]
fn a_ring_is_shown_with_who_has_it_and_what_the_dead_left_in_it() {
    let world = World::new("holders");
    let id = world.detach_in("alice", "echo one > /tmp/f; sleep 1000");
    let pid = world.pid(&id);
    let findings = doctor(&world);
    findings.expect("ring root/alice", "ok", &format!("in use by container '{id}' (process {pid})"));
    findings.expect("store content", "ok", "");
    eventually("it has written", || world.regen(&["exec", &id, "cat", "/tmp/f"]).stdout() == "one\n");
    world.regen(&["kill", &id, "KILL"]).success();
    eventually("it is dead", || world.status(&id) == "stopped");
    doctor(&world).expect("ring root/alice", "warn", "regen ring recover");
    world.ring(&["recover"]).success();
    world.pack();
    doctor(&world).expect("ring root/alice", "ok", "1 of at most 8 entries, not in use");
    world.delete(&id);
}

#[test]
fn entries_that_are_not_safe_yet_are_told_of_until_they_are() {
    let world = World::new("pending");
    for text in ["one", "two"] {
        world.run_in("alice", &format!("echo {text} > /tmp/f")).success();
        world.pack();
    }
    doctor(&world).expect("ring root/alice", "ok", "2 of at most 8").expect("worker", "ok", "nothing to do");
    world.edit_ring_file("alice", "ring.json", |ring| {
        ring["entries"][1]["manifest"] = Value::Null;
        ring["entries"][1]["synced"] = false.into();
    });
    fs::write(world.store().join("worker.log"), "2026-11-22T15:24:48Z pack: no space left on device\n").unwrap();
    let findings = doctor(&world);
    findings.expect("ring root/alice", "warn", "not packed: @2").expect(
        "ring root/alice",
        "warn",
        "not known to be on disk: @2",
    );
    findings.expect("worker", "warn", "no space left on device").expect("worker", "warn", "regen ring pack");
    world.ring(&["pack", "root/alice"]).success();
    doctor(&world).expect("worker", "ok", "");
    assert_eq!(doctor(&world).about("ring root/alice").len(), 1);

    world.edit_ring_file("alice", "ring.json", |ring| {
        ring["entries"][1]["synced"] = false.into();
        ring["entries"][1]["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    });
    let findings = doctor(&world);
    findings.expect("ring root/alice", "warn", "before they were known to be on disk: @2");
    findings.expect("ring root/alice", "warn", "regen ring rollback root/alice --to @1");

    let file = world.ring_directory("alice").join("ring.json");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, "{").unwrap();
    doctor(&world).expect("ring root/alice", "fail", "put the file back from a backup");
    fs::write(&file, whole).unwrap();
}
