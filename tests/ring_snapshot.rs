//! An entry of a container that goes on, and that stands still for no longer than it has to, whoever dies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use harness::{World, cgroup_of, eventually};
use serde_json::{Value, json};

#[test]
fn a_snapshot_is_an_entry_of_a_container_that_goes_on() {
    let world = World::new("snapshot");
    let id = world.writer_in("web", "one");
    world.ring(&["snapshot", "other"]).fails_with(1, "no such ring");
    let entry = world.ring_json(&["snapshot", "web"]);
    assert_eq!((&entry["seq"], &entry["reason"], &entry["next"]), (&json!(1), &json!("snapshot"), &json!(true)));
    world.append(&id, "two");
    assert!(world.ring(&["snapshot", "web"]).success().stdout().starts_with("root/web: @2 "));
    assert_eq!(world.status(&id), "running");
    world.append(&id, "three");
    world.delete(&id);
    let reasons: Vec<_> = world.log("web").iter().map(|entry| entry["reason"].clone()).collect();
    assert_eq!(reasons, ["exit", "snapshot", "snapshot"]);
    for (seq, text) in [(1, "one"), (2, "one two"), (3, "one two three")] {
        assert_eq!(world.lines_found(&format!("web@{seq}")), text);
    }
    world.ring(&["snapshot", "web"]).fails_with(1, "no container runs on it");
    let idle = world.detach_in("web", "exec sleep 1000");
    assert_eq!(world.ring_json(&["snapshot", "web"]), Value::Null);
    world.delete(&idle);
    assert_eq!(world.seqs("web"), [3, 2, 1]);
}

#[test]
fn a_paused_container_is_copied_and_stays_paused() {
    let world = World::new("paused");
    let id = world.writer_in("web", "one");
    world.regen(&["pause", &id]).success();
    world.ring(&["snapshot", "web"]).success();
    assert_eq!(world.status(&id), "paused");
    world.regen(&["resume", &id]).success();
    world.delete(&id);
}

/// Where a container's freezer is, and the word for standing still.
fn freezer(world: &World, id: &str) -> (PathBuf, &'static str) {
    let pid = world.pid(id);
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let legacy = table.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path));
    match legacy {
        Some(path) => (PathBuf::from(format!("/sys/fs/cgroup/freezer{path}/freezer.state")), "FROZEN"),
        None => (cgroup_of(pid).join("cgroup.freeze"), "1"),
    }
}

#[test]
fn a_container_goes_on_by_itself_if_whoever_froze_it_is_killed() {
    let world = World::new("waker");
    let id = world.writer_in("web", "one");
    let (file, _) = freezer(&world, &id);
    let before = world.ring_file("web", "ring.json");
    let command = world.command(&["ring", "snapshot", "web"]);
    // It looks there whether the container is paused, which is two reads, freezes it, and is killed as it looks again.
    let looked_at = if file.ends_with("cgroup.freeze") { file.with_file_name("cgroup.events") } else { file };
    let mut strace = Command::new("strace");
    strace
        .args(["-o", "/dev/null", "-e", "trace=read", "-e", "inject=read:signal=SIGKILL:when=3", "-P"])
        .arg(looked_at);
    strace.arg(command.get_program()).args(command.get_args());
    assert_eq!(world.finish(strace).code, 1009, "it is killed");
    eventually("it goes on", || world.status(&id) == "running");
    eventually("the ring is as before", || world.ring_file("web", "ring.json") == before);
    world.append(&id, "two");
    world.ring(&["snapshot", "web"]).success();
    world.delete(&id);
    assert_eq!(world.lines_found("web@1"), "one two");
}

#[test]
fn the_next_command_lets_a_container_go_on_that_was_frozen_by_the_dead() {
    for verb in [&["ring", "verify"][..], &["ring", "recover"], &["ring", "pin", "web@1"]] {
        let world = World::new(&format!("thaw-{}", verb[1]));
        world.run_in("web", "echo zero > /tmp/f").success();
        let id = world.writer_in("web", "one");
        world.pack();
        let (file, word) = freezer(&world, &id);
        world.edit_ring_file("web", "ring.json", |ring| ring["frozen"] = ring["run"].clone());
        fs::write(&file, word).unwrap();
        eventually("it stands still", || world.status(&id) == "paused");
        world.regen(verb).success();
        eventually("it goes on", || world.status(&id) == "running");
        assert!(world.ring_file("web", "ring.json").get("frozen").is_none());
        world.delete(&id);
        assert_eq!(world.lines_found("web"), "zero one");
    }
}
