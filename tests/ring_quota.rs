//! What rings may take together, and which entries are kept whatever the depth.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::{Output, World};
use serde_json::{Value, json};

impl Configured<'_> {
    fn regen(&self, arguments: &[&str]) -> Output {
        self.0.regen(&[&["--config", self.0.base().join("config.toml").to_str().unwrap()], arguments].concat())
    }
}

/// A world whose file says this of the store.
struct Configured<'a>(&'a World);

fn configure<'a>(world: &'a World, store: &str) -> Configured<'a> {
    fs::write(world.base().join("config.toml"), format!("[store]\n{store}\n")).unwrap();
    Configured(world)
}

/// An entry of its own that holds so many KiB which nothing else shares.
fn add(world: &World, ring: &str, kib: u32) {
    let script = format!("dd if=/dev/urandom of=/tmp/data bs=1024 count={kib} 2>/dev/null");
    world.run_in(&format!("{ring}@base"), &script).success();
}

#[test]
fn the_largest_ring_loses_its_oldest_entries_where_all_take_too_much() {
    let world = World::new("quota");
    for _ in 0..4 {
        add(&world, "large", 600);
        add(&world, "small", 60);
    }
    world.pack();
    world.ring(&["pin", "large@2"]).success();
    // Each entry is there as a directory and as a pack.
    let limited = configure(&world, "max-bytes = \"4MiB\"");
    limited.regen(&["ring", "pack"]).success();
    world.pack();
    assert_eq!((world.seqs("large"), world.seqs("small")), (vec![4, 2], vec![4, 3, 2, 1]));
    let listed = limited.regen(&["ring", "ls"]);
    assert!(listed.success().stdout().contains("all rings together: ") && listed.stdout().ends_with(" of 4.0 MiB\n"));
    assert!(!world.ring(&["ls"]).success().stdout().contains("together"));
    // What is kept can be restored, also after the last bytes that could go have gone.
    configure(&world, "max-bytes = 1").regen(&["ring", "pack"]).success();
    assert_eq!((world.seqs("large"), world.seqs("small")), (vec![4, 2], vec![4]));
    for target in ["large@2", "large@4", "small@4"] {
        world.run_in(target, "test -s /tmp/data").success();
    }
    world.ring(&["verify"]).success();
}

#[test]
fn what_a_fork_stands_on_is_not_let_go_of_for_nothing() {
    let world = World::new("quota-fork");
    for _ in 0..3 {
        add(&world, "alice", 100);
    }
    world.pack();
    world.ring(&["fork", "alice@1", "bob"]).success();
    configure(&world, "max-bytes = 1").regen(&["ring", "pack"]).success();
    assert_eq!((world.seqs("alice"), world.seqs("bob")), (vec![3, 1], vec![1]));
}

#[test]
fn free_space_is_made_only_if_that_is_said() {
    let world = World::new("quota-free");
    for _ in 0..3 {
        add(&world, "alice", 100);
    }
    world.pack();
    let free = |more: &str| configure(&world, &format!("min-free = \"100%\"\n{more}"));
    free("").regen(&["ring", "pack"]).success();
    assert_eq!(world.seqs("alice"), [3, 2, 1]);
    free("make-room = true").regen(&["ring", "pack"]).success();
    assert_eq!(world.seqs("alice"), [3], "as much as may leave");
    world.run_in("alice", "test -s /tmp/data").success();
}

#[test]
fn an_entry_that_a_rule_keeps_outlives_the_depth() {
    let world = World::new("keep");
    for n in 1..=6 {
        world.run_in("alice", &format!("echo {n} > /tmp/f")).success();
    }
    world.pack();
    // Two days ago, yesterday, and today; the file is the only truth about it.
    world.edit_ring_file("alice", "ring.json", |ring| {
        for (entry, day) in ring["entries"].as_array_mut().unwrap().iter_mut().zip([20, 20, 21, 22, 22, 22]) {
            entry["created"] = json!(format!("2026-11-{day}T12:00:00.{:09}Z", entry["seq"].as_u64().unwrap()));
        }
    });
    let rules = ["set", "alice", "--depth", "1", "--keep-daily", "3", "--keep-last", "2"];
    let planned = world.ring(&[&rules[..], &["--dry-run"]].concat());
    assert_eq!(planned.success().stdout(), "root/alice: @1 @4 would be evicted\n");
    assert_eq!(world.ring_file("alice", "ring.json")["incompatible"], json!([]));
    let set = world.ring_json(&rules);
    let keep = json!({"last": 2, "hourly": 0, "daily": 3, "weekly": 0});
    assert_eq!((&set["evicted"], &set["keep"]), (&json!([1, 4]), &keep));
    assert_eq!(world.ring_file("alice", "ring.json")["incompatible"], json!(["keep"]));
    let ring = &world.ring_json(&["ls"])[0];
    assert_eq!((&ring["keep"], &ring["depth"]), (&keep, &json!(1)));
    assert!(world.ring(&["ls"]).success().stdout().contains(" 1 +2 +3d "));
    // The rules hold for what comes later, and each can be taken away alone.
    world.run_in("alice", "echo 7 > /tmp/f").success();
    world.pack();
    let later = world.seqs("alice");
    assert!(later.contains(&7) && later.contains(&6) && later.contains(&3) && !later.contains(&5), "{later:?}");
    world.ring(&["set", "alice", "--keep-daily", "0"]).success();
    assert_eq!(world.seqs("alice"), [7, 6]);
    world.ring(&["set", "alice", "--keep-last", "0"]).success();
    assert_eq!(world.seqs("alice"), [7]);
    let file = world.ring_file("alice", "ring.json");
    assert_eq!((&file["incompatible"], &file["keep"]), (&json!([]), &Value::Null));
    world.ring(&["set", "alice", "--keep-last", "x"]).code(2);
    world.ring(&["set", "alice"]).fails_with(2, "no limit was given");
}
