//! `ring prune`: what nothing needs goes, and everything else stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use harness::image::{Form, Layout, Tar};
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
