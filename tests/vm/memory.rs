//! Processes that are saved with a snapshot of a ring, and go on after a rollback to it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::checkpoint::{piped, through_pipes};
use crate::harness::{World, eventually};

/// Counts on in its memory, and writes every number it comes to into a file that it has open.
const COUNTER: &str = "i=0; exec 3>>/tmp/log; while :; do i=$((i+1)); echo $i >&3; sleep 0.1; done";

fn begin(world: &World, id: &str, flags: &[&str], script: &str) {
    let rootfs = world.rootfs_text();
    let run = [&["run", "-d", "--rootfs", &rootfs, "--ring", "web"], flags, &[id, "--", "sh", "-c", script]].concat();
    piped(world, &run).success();
}

fn numbers(text: &str) -> Vec<u64> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// What a container has counted so far.
fn counted(world: &World, id: &str) -> Vec<u64> {
    numbers(&fs::read_to_string(log_of(world, id)).unwrap_or_default())
}

/// Its file, as its first process sees it.
fn log_of(world: &World, id: &str) -> PathBuf {
    format!("/proc/{}/root/tmp/log", world.pid(id)).into()
}

fn counted_in(world: &World, entry: &str) -> Vec<u64> {
    numbers(world.ring(&["cat", entry, "/tmp/log"]).success().stdout())
}

fn counts_past(world: &World, id: &str, number: usize) {
    let log = log_of(world, id);
    eventually("it counts", || numbers(&fs::read_to_string(&log).unwrap_or_default()).len() > number);
}

/// Every number once, in order: what the program remembers is what its file has.
#[track_caller]
fn counts_in_step(numbers: &[u64]) {
    let expected: Vec<u64> = (1..).take(numbers.len()).collect();
    assert_eq!(numbers, expected);
}

fn memory(world: &World) -> PathBuf {
    world.ring_directory("web").join("memory")
}

fn saved(world: &World) -> Vec<String> {
    let names = fs::read_dir(memory(world)).into_iter().flatten();
    names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
}

/// A container that counts, and a snapshot of it with its processes: what it had counted by then.
fn snapshot(world: &World, id: &str) -> Vec<u64> {
    counts_past(world, id, 3);
    let entry = world.ring_json(&["snapshot", "web", "--with-memory"]);
    assert!(entry["memory_bytes"].as_u64().unwrap() > 10_000, "{entry}");
    let numbers = counted_in(world, &format!("web@{}", entry["seq"]));
    counts_in_step(&numbers);
    numbers
}

#[test]
fn a_rollback_brings_back_the_processes_of_a_snapshot_as_often_as_it_is_made() {
    let world = World::new("memory");
    let id = world.id("a");
    begin(&world, &id, &[], COUNTER);
    let before = snapshot(&world, &id).len();
    counts_past(&world, &id, before + 3);
    counts_in_step(&counted(&world, &id));
    assert_eq!(saved(&world).len(), 1);
    world.delete(&id);
    for name in ["b", "c"] {
        let text = world.ring(&["rollback", "web", "--to", "@1"]);
        assert!(text.success().stdout().ends_with(", and goes on with its processes\n"), "{text:?}");
        assert_eq!(world.log("web").last().unwrap()["revived"], json!(true));
        let id = world.id(name);
        begin(&world, &id, &[], "exit 9");
        counts_past(&world, &id, before + 3);
        counts_in_step(&counted(&world, &id));
        world.delete(&id);
    }
    // The one after that begins, and so does one that is told to.
    for (rollback, from) in [(None, "web"), (Some(["rollback", "web", "--to", "@1", "--without-memory"]), "web@1")] {
        let left = counted_in(&world, from).len();
        let _ = rollback.map(|rollback| world.ring(&rollback).success().stdout().to_owned());
        let id = world.id("d");
        begin(&world, &id, &[], COUNTER);
        counts_past(&world, &id, left + 1);
        assert_eq!(counted(&world, &id)[left], 1);
        world.delete(&id);
    }
    world.pack();
    world.ring(&["verify", "web"]).success();
    assert_eq!(saved(&world).len(), 1);
    world.ring(&["set", "web", "--depth", "1"]).success();
    assert_eq!(saved(&world), [""; 0]);
}

#[test]
fn an_engine_creates_and_starts_what_comes_back() {
    let world = World::new("memcreate");
    let id = world.id("a");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", COUNTER]);
        spec["annotations"] = json!({"run.regen.ring": "web"});
    });
    let create = |id: &str| {
        piped(&world, &["create", "--bundle", bundle.text(), id]).success();
        assert_eq!(world.status(id), "created");
    };
    create(&id);
    world.regen(&["start", &id]).success();
    let before = snapshot(&world, &id);
    // Nothing has to have changed since.
    world.regen(&["pause", &id]).success();
    let paused = world.ring_json(&["snapshot", "web", "--with-memory"]);
    assert_eq!(world.status(&id), "paused");
    world.delete(&id);
    for (entry, seen) in [("@1".to_owned(), before), (format!("@{}", paused["seq"]), Vec::new())] {
        world.ring(&["rollback", "web", "--to", &entry]).success();
        let seen = if seen.is_empty() { counted_in(&world, &format!("web{entry}")) } else { seen };
        create(&id);
        assert_eq!(counted(&world, &id), seen, "it waits");
        world.regen(&["start", &id]).success();
        counts_past(&world, &id, seen.len() + 3);
        counts_in_step(&counted(&world, &id));
        world.delete(&id);
    }
}

#[test]
fn a_container_that_came_back_is_saved_again_and_ends_as_others_do() {
    let world = World::new("memagain");
    let id = world.id("a");
    begin(&world, &id, &[], &format!("trap 'echo over; exit 3' TERM; {COUNTER}"));
    snapshot(&world, &id);
    world.delete(&id);
    world.ring(&["rollback", "web", "--to", "@1"]).success();
    begin(&world, &id, &[], COUNTER);
    let second = snapshot(&world, &id).len();
    let seq = world.seqs("web")[0];
    world.delete(&id);
    world.ring(&["rollback", "web", "--to", &format!("@{seq}")]).success();
    let rootfs = world.rootfs_text();
    let mut run = world.spawn(through_pipes(&world, &["run", "--rootfs", &rootfs, "--ring", "web", &id, "--", "x"]));
    eventually("it counts on", || {
        let ended = run.child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?} {}", run.complaints());
        world.regen(&["state", &id]).code == 0 && counted(&world, &id).len() > second + 3
    });
    counts_in_step(&counted(&world, &id));
    world.regen(&["kill", &id, "TERM"]).success();
    eventually("its last word arrives", || run.so_far() == "over\n");
    run.finish().code(3);
    assert_eq!(world.log("web")[0]["exit_code"], json!(3));
}

#[test]
fn processes_that_cannot_be_saved_go_on_and_leave_no_entry() {
    let world = World::new("memfail");
    // Its streams are files of the host's.
    let id = world.detach_in("web", COUNTER);
    counts_past(&world, &id, 3);
    let before = world.ring_file("web", "ring.json");
    let output = world.ring(&["snapshot", "web", "--with-memory"]);
    let log = world.ring_directory("web").join("memory.log");
    output.fails_with(1, &format!("its log is '{}'", log.display()));
    assert!(fs::read_to_string(log).unwrap().contains("Error"));
    assert_eq!(world.status(&id), "running");
    assert_eq!((saved(&world).len(), world.ring_file("web", "ring.json")), (0, before));
    let seen = counted(&world, &id).len();
    counts_past(&world, &id, seen + 3);
    counts_in_step(&counted(&world, &id));
    world.delete(&id);
}

#[test]
fn a_container_goes_on_if_whoever_saves_it_is_killed() {
    let world = World::new("memkill");
    let id = world.id("a");
    begin(&world, &id, &[], COUNTER);
    counts_past(&world, &id, 3);
    let before = world.ring_file("web", "ring.json");
    let snapshot = world.spawn(world.command(&["ring", "snapshot", "web", "--with-memory"]));
    let begun = |name: &String| memory(&world).join(name).join("images/dump.log").exists();
    eventually("criu is at work", || saved(&world).iter().any(begun));
    snapshot.signal(Signal::SIGKILL);
    snapshot.finish().code(1009);
    // criu finishes what it was at, and only then somebody else has the ring.
    eventually("it goes on", || world.status(&id) == "running");
    eventually("nothing is left", || saved(&world).is_empty());
    eventually("the ring is as before", || world.ring_file("web", "ring.json") == before);
    let seen = counted(&world, &id).len();
    counts_past(&world, &id, seen + 3);
    counts_in_step(&counted(&world, &id));
    let saved = self::snapshot(&world, &id).len();
    world.delete(&id);
    world.ring(&["rollback", "web", "--to", "@1"]).success();
    begin(&world, &id, &[], COUNTER);
    counts_past(&world, &id, saved + 3);
    counts_in_step(&counted(&world, &id));
    world.delete(&id);
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn processes_that_cannot_come_back_change_nothing_and_say_how_to_go_on_without() {
    let world = World::new("membad");
    let id = world.id("a");
    begin(&world, &id, &[], COUNTER);
    let left = snapshot(&world, &id).len();
    world.delete(&id);
    // So that nobody changes the ring in the background.
    world.pack();
    world.ring(&["rollback", "web", "--to", "@1"]).success();
    let home = memory(&world).join(&saved(&world)[0]);
    let refused = |cause: &str| {
        let before = world.ring_file("web", "ring.json");
        let rootfs = world.rootfs_text();
        let run = ["run", "-d", "--rootfs", &rootfs, "--ring", "web", &id, "--", "true"];
        // Without pipes, at whose other ends its last words could still be on their way.
        let output = world.regen(&run);
        output.fails_with(1, "'regen ring rollback root/web --to @1 --without-memory' starts its program instead");
        assert!(output.stderr().contains(cause), "{output:?}");
        assert_eq!(world.ring_file("web", "ring.json"), before);
        world.regen(&["state", &id]).fails_with(1, "does not exist");
    };
    change(&home.join("memory.json"), |notes| notes["machine"]["kernel"] = json!("4.19"));
    refused("it was taken under Linux 4.19");
    change(&home.join("memory.json"), |notes| {
        notes["machine"]["kernel"] = json!(fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
        notes["mounts"].as_array_mut().unwrap().push(json!("/data"));
    });
    refused("they had something of the host's at '/data'");
    change(&home.join("memory.json"), |notes| drop(notes["mounts"].as_array_mut().unwrap().pop()));
    fs::rename(home.join("images/inventory.img"), home.join("inventory")).unwrap();
    refused("run criu: Error");
    fs::rename(home.join("inventory"), home.join("images/inventory.img")).unwrap();
    begin(&world, &id, &[], COUNTER);
    counts_past(&world, &id, left + 3);
    counts_in_step(&counted(&world, &id));
    world.delete(&id);
}
