//! What is said and left where processes cannot be saved with a snapshot, or brought back. That they can be is in `tests/vm`:
//! Debian's criu works on Debian's own kernel only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::{World, eventually};
use serde_json::json;

fn memory(world: &World) -> Vec<String> {
    let names = fs::read_dir(world.ring_directory("web").join("memory")).into_iter().flatten();
    names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn without_criu_nothing_is_frozen_and_the_package_is_named() {
    let world = World::new("memnocriu");
    let id = world.writer_in("web", "one");
    let before = world.ring_file("web", "ring.json");
    let mut command = world.command(&["ring", "snapshot", "web", "--with-memory"]);
    command.env("PATH", world.base());
    let output = world.finish(command);
    output.fails_with(1, "install the package criu");
    assert!(output.stderr().starts_with("regen: snapshot ring 'root/web': "), "{output:?}");
    assert_eq!((world.status(&id), world.ring_file("web", "ring.json")), ("running".into(), before));
    assert!(!world.ring_directory("web").join("memory").exists(), "it was asked before anything was begun");
    world.ring(&["snapshot", "web"]).success();
    world.delete(&id);
}

#[test]
fn what_criu_fails_at_leaves_a_container_that_goes_on_and_a_log() {
    let world = World::new("memfails");
    // Its streams are files of the host's, which no criu saves.
    let id = world.writer_in("web", "one");
    let before = world.ring_file("web", "ring.json");
    let output = world.ring(&["snapshot", "web", "--with-memory"]);
    let log = world.ring_directory("web").join("memory.log");
    output.fails_with(1, "run criu: Error (criu/");
    assert!(output.stderr().contains(&format!("its log is '{}'", log.display())), "{output:?}");
    assert!(output.stderr().ends_with("; 'regen doctor' tells whether criu fits this kernel\n"), "{output:?}");
    assert!(fs::read_to_string(log).unwrap().contains("Error (criu/"));
    eventually("it goes on", || world.status(&id) == "running");
    assert_eq!((memory(&world), world.ring_file("web", "ring.json")), (Vec::new(), before));
    world.append(&id, "two");
    world.delete(&id);
    assert_eq!(world.lines_found("web"), "one two");
}

#[test]
fn an_entry_without_processes_is_rolled_back_to_as_ever() {
    let world = World::new("memnone");
    world.run_in("web", "echo one >> /tmp/f").success();
    world.run_in("web", "echo two >> /tmp/f").success();
    for flags in [&[][..], &["--without-memory"]] {
        let output = world.ring(&[&["rollback", "web", "--to", "@1"], flags].concat());
        assert!(output.success().stdout().ends_with("Z\n"), "{output:?}");
        let ring = world.ring_file("web", "ring.json");
        assert!(ring.get("revive").is_none() && ring["incompatible"] == json!([]), "{ring}");
        assert_eq!(world.run_in("web", "cat /tmp/f").success().stdout(), "one\n");
    }
}

#[test]
fn processes_that_cannot_come_back_leave_the_ring_as_it_was() {
    let world = World::new("memlost");
    world.run_in("web", "echo one >> /tmp/f").success();
    world.pack();
    // As if it had been saved with processes, which somebody has lost.
    let home = world.ring_directory("web").join("memory");
    world.edit_ring_file("web", "ring.json", |ring| {
        ring["entries"][0]["memory_bytes"] = json!(4096);
        ring["incompatible"] = json!(["memory"]);
    });
    fs::create_dir_all(home.join(".tmp-1/images")).unwrap();
    let text = world.ring(&["rollback", "web", "--to", "@1"]).success().stdout().to_owned();
    assert!(text.ends_with(", and goes on with its processes\n"), "{text}");
    let before = world.ring_file("web", "ring.json");
    assert_eq!((&before["revive"], &before["incompatible"]), (&json!(true), &json!(["memory"])));
    let output = world.run_in("web", "true");
    output.fails_with(1, "'regen ring rollback root/web --to @1 --without-memory' starts its program instead");
    assert!(output.stderr().contains("bring back the processes of 'root/web@1'"), "{output:?}");
    assert_eq!(world.ring_file("web", "ring.json"), before);
    let faults = world.ring(&["verify", "web"]);
    assert!(faults.code(1).stdout().contains("entry @1: look for its processes"), "{faults:?}");
    // Who names the entry does not mean its processes.
    assert_eq!(world.run_in("web@1", "cat /tmp/f; echo two >> /tmp/f").success().stdout(), "one\n");
    world.ring(&["rollback", "web", "--to", "@1", "--without-memory"]).success();
    assert_eq!(world.run_in("web", "cat /tmp/f").success().stdout(), "one\n");
    world.pack();
    assert_eq!(memory(&world), [""; 0], "what was begun is gone");
    world.ring(&["fork", "web@1", "other"]).success();
    assert!(world.log("other")[0].get("memory_bytes").is_none());
    world.ring(&["rollback", "web", "--to", "@latest"]).success();
    world.ring(&["set", "web", "--depth", "1"]).success();
    assert_eq!(world.seqs("web"), [2]);
    assert_eq!(world.ring_file("web", "ring.json")["incompatible"], json!([]));
    world.ring(&["verify", "web"]).success();
}
