//! What a ring promises when nobody behaves: no delete comes, somebody holds on, starts crash, the power fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use harness::{Output, World, cgroup_of, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Kills a process that is not our child, and waits until it is dead, reaped or not.
fn kill_now(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let stat = format!("/proc/{pid}/stat");
    eventually("it dies", || {
        fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
    });
}

/// A container that writes a file and then waits; gives its id and the pid of its first process.
fn writer(world: &World, ring: &str, text: &str) -> (String, i32) {
    let id = world.detach_in(ring, &format!("echo {text} > /tmp/f; exec sleep 1000"));
    let pid = world.pid(&id);
    eventually("it wrote", || fs::read_to_string(inside(pid, "tmp/f")).is_ok_and(|read| read == format!("{text}\n")));
    (id, pid)
}

fn inside(pid: i32, path: &str) -> String {
    format!("/proc/{pid}/root/{path}")
}

/// Ends a container's first process and waits until that is known.
fn end(world: &World, id: &str) {
    world.regen(&["kill", id, "KILL"]).success();
    eventually("it stops", || world.status(id) == "stopped");
}

/// The next run is refused with these words, and nothing was sealed.
#[track_caller]
fn assert_pending(world: &World, words: &str) {
    let output = world.run_in("alice", "true");
    output.fails_with(1, words);
    assert!(output.stderr().contains("is not final"), "{}", output.stderr());
    assert_eq!(world.seqs("alice"), [0u64; 0]);
    world.ring(&["rollback", "alice", "--to", "@base"]).fails_with(1, words);
}

/// The next run is given what the one before left, as a recovered entry.
#[track_caller]
fn assert_recovered(world: &World, text: &str) {
    assert_eq!(world.run_in("alice", "cat /tmp/f").success().stdout(), text);
    let log = world.log("alice");
    assert_eq!(log.len(), 1);
    assert_eq!((&log[0]["reason"], &log[0]["exit_code"]), (&json!("recovered"), &Value::Null));
}

/// The pid that a message names, with this command.
#[track_caller]
fn named(text: &str, command: &str) -> i32 {
    let before = text.split(&format!(" ('{command}')")).next().unwrap();
    before.rsplit("process ").next().unwrap().parse().unwrap_or_else(|_| panic!("no '{command}' in {text}"))
}

#[test]
fn a_ring_whose_container_ended_without_a_delete_is_sealed_by_the_next_run() {
    let world = World::new("nodelete");
    let (first, pid) = writer(&world, "alice", "one");
    kill_now(pid);
    eventually("it stops", || world.status(&first) == "stopped");
    let (second, _) = writer(&world, "alice", "two");
    let log = world.log("alice");
    assert_eq!((log.len(), &log[0]["reason"]), (1, &json!("recovered")));
    // The late deletes find that there is nothing left to save.
    world.regen(&["delete", &first]).success();
    assert_eq!(world.status(&second), "running");
    world.delete(&second);
    assert_eq!(world.run_in("alice", "cat /tmp/f").success().stdout(), "two\n");
    assert_eq!(world.seqs("alice"), [2, 1]);
}

#[test]
fn a_state_root_that_was_emptied_as_by_a_reboot_loses_nothing() {
    let world = World::new("reboot");
    let (id, pid) = writer(&world, "alice", "one");
    kill_now(pid);
    eventually("it stops", || world.status(&id) == "stopped");
    fs::remove_dir_all(world.root()).unwrap();
    fs::create_dir(world.root()).unwrap();
    assert_recovered(&world, "one\n");
    let late = world.regen(&["delete", "--force", &id]);
    assert_eq!((late.success().stdout(), late.stderr()), ("", ""));
    world.regen(&["delete", &id]).fails_with(1, "does not exist");
    assert_eq!(world.seqs("alice"), [1]);
}

#[test]
fn a_holder_of_another_boot_is_dead_whoever_has_its_pid_now() {
    let world = World::new("boot");
    let (id, pid) = writer(&world, "alice", "one");
    kill_now(pid);
    // The pid of a process that lives, as it may be after a reboot.
    let run = fs::read_dir(world.store().join("runs")).unwrap().next().unwrap().unwrap().path().join("run.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start_time: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    record["holders"] = json!([{"pid": std::process::id(), "start_time": start_time, "boot_id": "another boot"}]);
    fs::write(&run, record.to_string()).unwrap();
    assert_recovered(&world, "one\n");
    world.delete(&id);
}

#[test]
fn a_container_whose_runtime_and_supervisor_were_killed_is_found_by_the_next_command() {
    for command in ["run", "recover", "rollback", "rm"] {
        let world = World::new(&format!("sigkill-{command}"));
        let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
        let script = "echo one > /tmp/f; echo ready; exec sleep 1000";
        let start = ["run", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "sh", "-c", script];
        let mut supervisor = world.spawn(world.command(&start));
        supervisor.wait_for("ready");
        let pid = world.pid(&id);
        supervisor.signal(Signal::SIGKILL);
        supervisor.finish().code(1009);
        world.run_in("alice", "true").fails_with(1, &format!("in use by container '{id}' (process {pid}"));
        kill_now(pid);
        match command {
            "recover" => assert!(world.ring(&["recover"]).success().stdout().contains("root/alice: adopted entry @1")),
            "rollback" => drop(world.ring(&["rollback", "alice", "--to", "@latest"]).success()),
            "rm" => drop(world.ring(&["rm", "alice"]).success()),
            _ => {}
        }
        if command == "rm" {
            world.ring(&["log", "alice"]).fails_with(1, "no such ring");
        } else {
            assert_recovered(&world, "one\n");
        }
        world.delete(&id);
    }
}

/// A bundle of a ring's container that shares the host's pids: its processes outlive its first one.
fn survivor(world: &World) -> harness::Directory {
    world.bundle(|spec| {
        let script = "setsid sh -c 'exec sleep 1000' & echo one > /tmp/f; until test -e /tmp/f; do :; done; sleep 0.1";
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["annotations"] = json!({"run.regen.ring": "alice"});
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|space| space["type"] != "pid");
    })
}

#[track_caller]
fn assert_warns_of_sleep(output: &Output) -> i32 {
    output.success();
    assert_eq!(output.stderr().lines().count(), 1, "{}", output.stderr());
    assert!(output.stderr().starts_with("regen: warning: ") && output.stderr().contains("is not final"));
    named(output.stderr(), "sleep")
}

#[test]
fn a_process_that_outlives_its_container_keeps_the_state_pending_until_it_ends() {
    let world = World::new("survivor");
    // In the foreground, and the way engines do it.
    let output = world.regen(&["run", "--bundle", survivor(&world).text(), &world.fresh_id()]);
    let pid = assert_warns_of_sleep(&output);
    assert_pending(&world, &format!("process {pid} ('sleep')"));
    kill_now(pid);
    assert_recovered(&world, "one\n");
    world.ring(&["rm", "alice"]).success();

    let id = world.fresh_id();
    world.regen(&["run", "-d", "--bundle", survivor(&world).text(), &id]).success();
    eventually("it stops", || world.status(&id) == "stopped");
    let pid = assert_warns_of_sleep(&world.regen(&["delete", &id]));
    let again = world.regen(&["delete", "--force", &id]);
    assert_eq!((again.success().stdout(), again.stderr()), ("", ""), "engines do it again");
    assert_pending(&world, &format!("process {pid} ('sleep')"));
    kill_now(pid);
    assert_recovered(&world, "one\n");
}

#[test]
fn a_forced_delete_kills_what_outlives_its_container_and_seals() {
    let world = World::new("forced");
    let id = world.fresh_id();
    world.regen(&["run", "-d", "--bundle", survivor(&world).text(), &id]).success();
    eventually("it stops", || world.status(&id) == "stopped");
    let output = world.regen(&["delete", "--force", &id]);
    assert_eq!(output.success().stderr(), "");
    assert_eq!(world.seqs("alice"), [1]);
    assert_eq!(world.run_in("alice", "cat /tmp/f").success().stdout(), "one\n");
}

/// A process of the host in a container's mount namespace, in the host's pid namespace.
fn visitor(pid: i32, cgroup: Option<&Path>) -> Child {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--mount", "--wd=/", "--", "/bin/sleep", "1000"]).process_group(0);
    let child = command.spawn().unwrap();
    if let Some(cgroup) = cgroup {
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    let comm = format!("/proc/{}/comm", child.id());
    eventually("it is in", || fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n"));
    child
}

#[test]
fn a_process_in_another_pid_namespace_keeps_the_state_pending() {
    let world = World::new("visitor");
    for in_cgroup in [false, true] {
        let (id, pid) = writer(&world, "alice", "one");
        let cgroup = cgroup_of(pid);
        let mut visitor = visitor(pid, in_cgroup.then_some(cgroup.as_path()));
        end(&world, &id);
        let output = world.regen(&["delete", &id]);
        assert!(output.success().stderr().contains(&format!("process {} ('sleep')", visitor.id())));
        assert_pending(&world, &format!("process {} ('sleep')", visitor.id()));
        visitor.kill().unwrap();
        visitor.wait().unwrap();
        assert_recovered(&world, "one\n");
        world.ring(&["rm", "alice"]).success();
    }
}

#[test]
fn an_open_file_keeps_the_state_pending_and_what_is_written_through_it_is_in_the_entry() {
    let world = World::new("fd");
    let (id, pid) = writer(&world, "alice", "one");
    let mut file = OpenOptions::new().append(true).open(inside(pid, "tmp/f")).unwrap();
    let own = format!("process {} (", std::process::id());
    let output = world.regen(&["delete", "--force", &id]);
    assert!(output.success().stderr().contains(&own), "{}", output.stderr());
    assert_pending(&world, &own);
    file.write_all(b"late\n").unwrap();
    drop(file);
    assert_recovered(&world, "one\nlate\n");
}

#[test]
fn a_kept_mount_namespace_keeps_the_state_pending() {
    let world = World::new("mntns");
    let (id, pid) = writer(&world, "alice", "one");
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
    let own = format!("process {} (", std::process::id());
    let output = world.regen(&["delete", "--force", &id]);
    assert!(output.success().stderr().contains(&own), "{}", output.stderr());
    assert_pending(&world, &own);
    drop(namespace);
    assert_recovered(&world, "one\n");
}

#[test]
fn forty_crashing_starts_in_a_row_do_not_push_the_good_state_out() {
    let world = World::new("crashes");
    world.run_with(&["--ring", "alice", "--depth", "3"], "echo good > /tmp/state").success();
    for _ in 0..40 {
        world.run_in("alice", "echo broken > /tmp/state; echo x >> /tmp/log; exit 1").code(1);
    }
    world.pack();
    let log = world.log("alice");
    assert_eq!(world.seqs("alice"), [41, 1], "the crashes are one entry");
    assert_eq!((&log[0]["exit_code"], &log[0]["reason"]), (&json!(1), &json!("exit")));
    assert_eq!(world.run_in("alice", "grep -c x /tmp/log").success().stdout(), "40\n");
    assert!(world.layers_of("alice").len() < 20, "what they left is folded");
    world.ring(&["rollback", "alice", "--to", "@1"]).success();
    assert_eq!(world.run_in("alice", "cat /tmp/state; ls /tmp").success().stdout(), "good\nstate\n");
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
}

#[test]
fn ends_that_nobody_saw_do_not_push_the_good_state_out() {
    let world = World::new("unseen");
    world.run_with(&["--ring", "alice", "--depth", "2"], "echo good > /tmp/state").success();
    for n in 2..=6 {
        let id = world.detach_in("alice", &format!("echo {n} > /tmp/state; exit 1"));
        eventually("it stops", || world.status(&id) == "stopped");
        world.regen(&["delete", &id]).success();
    }
    world.pack();
    assert_eq!(world.seqs("alice"), [6, 1]);
    assert_eq!(world.run_in("alice@1", "cat /tmp/state").success().stdout(), "good\n");
    // A stop on request is a good end, whatever the program made of it.
    let (id, _) = writer(&world, "alice", "stopped");
    end(&world, &id);
    world.regen(&["delete", &id]).success();
    world.pack();
    assert_eq!(world.seqs("alice"), [7, 6]);
}

#[test]
fn an_entry_that_a_power_cut_may_have_torn_is_never_chosen_silently() {
    let world = World::new("torn");
    for n in 1..=2 {
        world.run_in("alice", &format!("echo {n} > /tmp/f")).success();
    }
    world.pack();
    let set = |boot: &str| {
        world.edit_ring_file("alice", "ring.json", |ring| {
            ring["entries"][1]["synced"] = json!(false);
            ring["entries"][1]["boot_id"] = json!(boot);
        });
    };
    set("another boot");
    for target in ["alice", "alice@latest", "alice@-0"] {
        let output = world.run_in(target, "true");
        output.fails_with(1, "files in it may be torn");
        assert!(output.stderr().contains("say 'root/alice@2'") && output.stderr().contains("--to @1"));
    }
    assert!(world.ring(&["log", "alice"]).success().stdout().contains("maybe torn"));
    assert!(world.ring(&["verify", "alice"]).code(1).stdout().contains("entry @2"));
    world.pack();
    assert_eq!(world.ring_json(&["show", "alice@2"])["synced"], false, "flushing it now proves nothing");
    assert_eq!(world.run_in("alice@2", "cat /tmp/f").success().stdout(), "2\n", "named, it is taken as it is");
    assert_eq!(world.run_in("alice@-1", "cat /tmp/f").success().stdout(), "1\n");
    world.ring(&["rollback", "alice", "--to", "@1"]).success();
    assert_eq!(world.run_in("alice", "cat /tmp/f").success().stdout(), "1\n");

    // In this boot the kernel still has what the disk may not.
    set(fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
    assert_eq!(world.run_in("alice@latest", "cat /tmp/f").success().stdout(), "2\n");
    world.pack();
    assert_eq!(world.ring_json(&["show", "alice@2"])["synced"], true);
}

#[test]
fn layers_with_attributes_of_another_class_are_refused() {
    let world = World::new("class");
    world.run_in("alice", "rm /etc/passwd").success();
    world.pack();
    world.edit_ring_file("alice", "ring.json", |ring| ring["entries"][0]["class"] = json!("user"));
    world.run_in("alice", "true").fails_with(1, "spell overlay attributes in another way");
    world.edit_ring_file("alice", "ring.json", |ring| ring["entries"][0]["class"] = json!("trusted"));
    world.run_in("alice", "test ! -e /etc/passwd").success();
}
