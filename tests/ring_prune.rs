//! `ring prune`: what nothing needs goes, and everything else stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use harness::image::{Form, Layout, Tar};
use harness::ring::names;
use harness::{World, eventually};
use serde_json::{Value, json};

/// How many there are of each kind, and their bytes.
fn counts(list: &Value) -> BTreeMap<String, (usize, u64)> {
    let mut counts = BTreeMap::new();
    for garbage in list.as_array().unwrap() {
        let count: &mut (usize, u64) = counts.entry(garbage["kind"].as_str().unwrap().to_owned()).or_default();
        *count = (count.0 + 1, count.1 + garbage["bytes"].as_u64().unwrap());
    }
    counts
}

#[test]
fn what_nothing_needs_is_told_and_goes() {
    let world = World::new("prune");
    for ring in ["alice", "bob"] {
        for n in 1..=2 {
            world.run_in(ring, &format!("head -c 100000 /dev/zero > /tmp/{n}")).success();
        }
    }
    world.ring(&["fork", "alice@1", "carol"]).success();
    world.pack();
    assert_eq!(world.ring_json(&["prune", "--dry-run"]), json!([]));
    assert_eq!(world.ring(&["prune"]).success().stdout(), "nothing to collect\n");

    // Nobody collects anything by himself.
    let next = File::create(world.store().join("worker.next")).unwrap();
    next.lock().unwrap();
    world.ring(&["rm", "alice"]).success();
    let dead = world.detach_in_nothing();
    let old = world.ring_directory("bob").join("blobs/sha256").join("ab".repeat(32));
    fs::write(&old, [1; 5000]).unwrap();
    File::open(&old).unwrap().set_modified(SystemTime::now() - Duration::from_secs(3 * 24 * 3600)).unwrap();
    fs::create_dir(world.store().join("layers/.tmp-left")).unwrap();
    fs::create_dir(world.store().join("rings/root/.tmp-left")).unwrap();

    let before = world.layers();
    let would = world.ring_json(&["prune", "--dry-run"]);
    assert_eq!(world.layers(), before);
    let found = counts(&would);
    let number = |kind: &str| found.get(kind).copied().unwrap_or_default();
    // One of alice's two layers is carol's, too.
    assert_eq!(number("layer").0, 1, "{would}");
    assert!(number("layer").1 >= 100_000, "{would}");
    assert_eq!((number("blob"), number("run").0, number("leftover").0), ((1, 8192), 1, 2), "{would}");
    let text = world.ring(&["prune"]);
    let line = text.success().stdout();
    assert!(line.starts_with("1 layer, 1 blob, 1 dead run, 2 leftovers: ") && line.ends_with(" freed\n"), "{line}");
    assert_eq!(world.ring_json(&["prune"]), json!([]));
    drop(next);
    world.delete(&dead);
    world.ring(&["verify"]).success();
    assert_eq!((world.seqs("bob"), world.seqs("carol")), (vec![2, 1], vec![1]));
    assert_eq!(world.run_in("carol", "ls /tmp").success().stdout(), "1\n");
}

#[test]
fn layers_of_images_go_once_nothing_stands_on_them() {
    let world = World::new("images");
    let layout = Layout::new(world.base().join("images"));
    for tag in ["one", "two", "three"] {
        let layers = vec![(Tar::new().busybox(), Form::Plain), (Tar::new().file("tag", tag.as_bytes()), Form::Plain)];
        layout.image(tag, layers, &json!({}));
    }
    let run = |tag: &str, flags: &[&str], script: &str| {
        let (id, image) = (world.fresh_id(), layout.reference(tag));
        world.regen(&[&["run", "--image", &image], flags, &[&*id, "--", "sh", "-c", script]].concat()).success();
        id
    };
    run("one", &["--ring", "alice"], "echo x > /x");
    let living = run("two", &["-d"], "exec sleep 1000");
    run("three", &[], "true");
    world.pack();
    let images = || world.layers().into_iter().filter(|id| id.len() == 64).count();
    assert_eq!(images(), 4);
    assert_eq!(counts(&world.ring_json(&["prune", "--dry-run"]))["image-layer"].0, 1);
    world.ring(&["prune"]).success();
    assert_eq!(images(), 3);
    assert_eq!(world.regen(&["exec", &living, "cat", "/tag"]).success().stdout(), "two");
    world.delete(&living);
    world.ring(&["prune"]).success();
    assert_eq!(images(), 2, "those of the ring's base");
    run("one", &["--ring", "alice"], "cat /x");
    // While somebody unpacks, nobody knows what will be needed.
    let lock = File::create(world.store().join("images.lock")).unwrap();
    world.ring(&["rm", "alice"]).success();
    lock.lock_shared().unwrap();
    let kept = world.ring(&["prune"]);
    assert!(kept.success().stdout().ends_with("layers of images stay: an image is being unpacked\n"), "{kept:?}");
    drop(lock);
    world.ring(&["prune"]).success();
    assert_eq!(world.layers(), [""; 0]);
    run("three", &[], "cat /tag");
}

#[test]
fn nothing_goes_while_a_ring_cannot_be_read() {
    let world = World::new("damaged");
    for ring in ["alice", "bob"] {
        world.run_in(ring, "echo x > /tmp/x").success();
    }
    world.pack();
    world.ring(&["rm", "alice"]).success();
    fs::write(world.ring_directory("bob").join("ring.json"), "{").unwrap();
    let before = world.layers();
    for flags in [&["prune"][..], &["prune", "--dry-run"]] {
        world.ring(flags).fails_with(1, "ring.json");
    }
    assert_eq!(world.layers(), before);
}

impl World {
    /// A container in no ring, all of whose processes are killed.
    fn detach_in_nothing(&self) -> String {
        let (rootfs, id) = (self.rootfs_text(), self.fresh_id());
        self.regen(&["run", "-d", "--rootfs", &rootfs, &id, "--", "sleep", "1000"]).success();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid(&id)), nix::sys::signal::Signal::SIGKILL).unwrap();
        eventually("it is dead", || self.status(&id) == "stopped");
        id
    }
}

/// Makes a ring one that was used last so many days ago.
fn age(world: &World, ring: &str, days: i64) {
    let then = (chrono::Utc::now() - chrono::TimeDelta::days(days)).to_rfc3339();
    world.edit_ring_file(ring, "ring.json", |state| {
        for entry in state["entries"].as_array_mut().unwrap() {
            entry["created"] = json!(then);
        }
        state["last_exit"] = json!(then);
    });
}

#[test]
fn forks_of_containers_go_that_are_out_of_use() {
    let world = World::new("forks");
    world.run_in("alice", "echo 1 > /tmp/f").success();
    world.pack();
    let fork = |id: &str, script: &str| {
        let rootfs = world.rootfs_text();
        let arguments = ["run", "--rootfs", &rootfs, "--ring", "alice", "--fork", id, "--", "sh", "-c", script];
        world.regen(&arguments).success();
        format!("alice.{id}")
    };
    let [old, new, pinned] =
        ["old", "new", "pinned"].map(|name| fork(&world.id(name), "head -c 50000 /dev/zero > /tmp/g"));
    world.ring(&["pin", &pinned]).success();
    world.ring(&["fork", "alice", "bob"]).success();
    world.pack();
    for ring in ["alice", "bob", &old, &pinned] {
        age(&world, ring, 9);
    }
    age(&world, &new, 5);
    let layer = world.layers_of(&old).pop().unwrap();
    let rings = || names(&world.store().join("rings/root"));
    let before = rings();

    assert_eq!(world.ring_json(&["prune"]), json!([]));
    assert_eq!(world.ring_json(&["prune", "--forks"]), json!([]), "something was changed in each");
    assert_eq!(world.ring_json(&["prune", "--forks", "--older-than", "10d"]), json!([]));
    let week = ["prune", "--forks", "--older-than", "1w"];
    let would = world.ring_json(&[&week[..], &["--dry-run"]].concat());
    let told: Vec<_> = would.as_array().unwrap().iter().map(|garbage| (&garbage["kind"], &garbage["name"])).collect();
    assert_eq!(told, [(&json!("fork"), &json!(format!("root/{old}"))), (&json!("layer"), &json!(layer))]);
    assert_eq!(rings(), before);
    let line = world.ring(&week).success().stdout().to_owned();
    assert!(line.starts_with("1 fork, 1 layer: ") && line.ends_with(" freed\n"), "{line}");
    assert_eq!(rings(), before.iter().filter(|name| **name != old).cloned().collect::<Vec<_>>());
    assert!(!world.layers().contains(&layer));
    assert_eq!(world.lines_found("alice"), "1");
    world.ring(&["verify"]).success();
}

#[test]
fn the_fork_of_a_run_that_was_killed_and_changed_nothing_goes() {
    let world = World::new("killed");
    world.run_in("alice", "echo 1 > /tmp/f").success();
    world.pack();
    let start = |name: &str, script: &str| {
        let (id, rootfs) = (world.id(name), world.rootfs_text());
        let script = format!("{script}; exec sleep 1000");
        let command = ["run", "-d", "--rootfs", &rootfs, "--ring", "alice", "--fork", &id, "--", "sh", "-c", &script];
        world.regen(&command).success();
        id
    };
    let (idle, writer) = (start("idle", "true"), start("writer", "echo 2 > /tmp/f"));
    eventually("it has written", || world.lines_in(&writer) == "2");
    let forks = || world.ring_json(&["prune", "--forks", "--older-than", "0s", "--dry-run"]);
    assert_eq!(forks(), json!([]), "both run");
    for id in [&idle, &writer] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(world.pid(id)), nix::sys::signal::Signal::SIGKILL).unwrap();
        eventually("it is dead", || world.status(id) == "stopped");
    }
    assert_eq!(
        counts(&forks()).get("fork").map(|fork| fork.0),
        Some(1),
        "what the other one has written is no entry yet"
    );
    world.ring(&["prune", "--forks"]).success();
    assert_eq!(names(&world.store().join("rings/root")), ["alice".to_owned(), format!("alice.{writer}")]);
    for id in [&idle, &writer] {
        world.delete(id);
    }
    assert_eq!(world.lines_found(&format!("alice.{writer}")), "2");
    world.pack();
    assert_eq!(names(&world.store().join("runs")), [""; 0]);
}

#[test]
fn an_age_that_is_none_is_refused() {
    let world = World::new("age");
    world.ring(&["prune", "--older-than", "1d"]).fails_with(2, "--forks");
    world.ring(&["prune", "--forks", "--older-than", "often"]).fails_with(2, "read age 'often'");
}
