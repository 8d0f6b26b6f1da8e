//! Rings that come and go while others look: whoever goes through all of them passes over one that is gone, and several may
//! remove at a time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use harness::World;
use harness::ring::names;
use serde_json::json;

/// Verbs that go through all rings.
const WALKS: [&[&str]; 5] = [&["ls"], &["verify"], &["prune"], &["prune", "--dry-run"], &["recover"]];

#[test]
fn who_goes_through_all_rings_passes_over_one_that_goes() {
    let world = World::new("walk");
    world.run_in("alice", "echo 1 > /tmp/f").success();
    world.pack();
    for n in 0..90 {
        world.ring(&["fork", "alice", &format!("r{n}")]).success();
    }
    let done = AtomicBool::new(false);
    let others = thread::scope(|scope| {
        let walkers: Vec<_> = WALKS
            .iter()
            .map(|verb| {
                scope.spawn(|| {
                    let mut count = 0;
                    while !done.load(Ordering::Relaxed) && count < 1000 {
                        // A line for a ring that is gone would be a fault that is none.
                        world.ring(verb).success();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        // Two removals at a time, each with a worker behind it, and what the walks collect.
        let removers = [0, 1].map(|half| {
            let world = &world;
            scope.spawn(move || {
                for n in (0..90).filter(|n| n % 2 == half) {
                    world.ring(&["rm", &format!("r{n}")]).success();
                }
            })
        });
        let removed: Vec<_> = removers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        removed.into_iter().for_each(|removed| removed.unwrap());
        walkers.into_iter().map(|walker| walker.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(others.iter().all(|count| *count > 0), "{others:?}");
    assert_eq!(rings(&world), BTreeSet::from(["alice".to_owned()]));
    assert_eq!(world.lines_found("alice"), "1");
}

#[test]
fn a_look_ends_while_others_collect_what_it_leaves() {
    let world = World::new("umount");
    world.run_in("alice", "echo 1 > /tmp/f").success();
    world.pack();
    let at = world.base().join("at");
    fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();
    for _ in 0..25 {
        world.ring(&["mount", "alice", at]).success();
        let prunes = [0, 1].map(|_| world.spawn(world.command(&["ring", "prune"])));
        world.ring(&["umount", at]).success();
        for prune in prunes {
            prune.finish().success();
        }
    }
    world.pack();
    world.ring(&["prune"]).success();
    assert_eq!(names(&world.store().join("runs")), [""; 0]);
}

/// The directories of root's rings.
fn rings(world: &World) -> BTreeSet<String> {
    names(&world.store().join("rings/root")).into_iter().collect()
}

/// The rings that `ring ls` shows.
fn listed(world: &World) -> BTreeSet<String> {
    let list = world.ring_json(&["ls"]);
    list.as_array().unwrap().iter().map(|ring| ring["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_ring_whose_making_was_cut_short_is_collected_and_one_that_is_being_made_stays() {
    let world = World::new("unmade");
    world.run_in("alice", "echo 1 > /tmp/f").success();
    world.pack();
    let unmade = |name: &str| {
        let directory = world.ring_directory(name);
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        fs::write(directory.join(".tmp-index.json"), "{").unwrap();
        File::create(directory.join("lock")).unwrap()
    };
    unmade("left");
    fs::create_dir(world.ring_directory("bare")).unwrap();
    unmade("living");
    let living = File::open(world.ring_directory("living").join("lock")).unwrap();
    living.lock().unwrap();

    let would = world.ring_json(&["prune", "--dry-run"]);
    let found: BTreeSet<_> = would.as_array().unwrap().iter().map(|garbage| garbage["name"].to_string()).collect();
    assert_eq!(found, [r#""rings/root/bare""#, r#""rings/root/left""#].map(str::to_owned).into(), "{would}");
    world.ring(&["prune"]).success();
    assert_eq!(rings(&world), ["alice", "living"].map(str::to_owned).into());
    drop(living);
    // Not only when it is asked for: the worker does it, too.
    unmade("left");
    world.pack();
    assert_eq!(rings(&world), BTreeSet::from(["alice".to_owned()]));
    // The name is free, also for who finds such a directory.
    unmade("left");
    world.run_in("left", "true").success();
    unmade("other");
    world.ring(&["fork", "alice", "other"]).success();
    assert_eq!(world.lines_found("other"), "1");
}

#[test]
fn a_killed_import_leaves_no_ring_that_nobody_sees() {
    let (source, world) = (World::new("from"), World::new("to"));
    source.run_in("alice", "head -c 3000000 /dev/urandom > /tmp/f").success();
    source.pack();
    let from = format!("oci:{}", source.base().join("layout").display());
    source.ring(&["export", "alice", &from]).success();
    let mut unmade = 0;
    for step in 0..60_u64 {
        let ring = format!("r{step}");
        let mut import = world.spawn(world.command(&["ring", "import", &from, &ring]));
        // As soon as there is anything of it, then later and later, and again.
        for _ in 0..20_000 {
            if world.ring_directory(&ring).exists() || import.child.try_wait().unwrap().is_some() {
                break;
            }
            thread::sleep(Duration::from_micros(50));
        }
        thread::sleep(Duration::from_micros(step % 12 * 250));
        import.child.kill().unwrap();
        import.child.wait().unwrap();
        unmade += usize::from(!world.ring_directory(&ring).join("ring.json").exists());
    }
    assert!(unmade > 0, "none was killed that early");
    let before = listed(&world);
    world.ring(&["prune"]).success();
    assert_eq!((rings(&world), listed(&world)), (before.clone(), before));
    // Each of them arrives when it is asked for again, whatever was left of it.
    for ring in ["r0", "r30", "r59"] {
        world.ring(&["import", &from, ring]).success();
        world.run_with(&["--ring", ring, "--rebase"], "test -s /tmp/f").success();
    }
    world.ring(&["verify"]).success();
}

/// Whether an import was killed between its beginning and its end; if not, nothing is left of it.
fn is_caught(world: &World, from: &str, ring: &str) -> bool {
    let mut import = world.spawn(world.command(&["ring", "import", from, ring]));
    for _ in 0..100_000 {
        if world.ring_directory(ring).join("ring.json").exists() || import.child.try_wait().unwrap().is_some() {
            break;
        }
        thread::sleep(Duration::from_micros(50));
    }
    import.child.kill().unwrap();
    import.child.wait().unwrap();
    let caught = world.ring_file(ring, "ring.json")["elsewhere"]["state"] == json!("arriving");
    if !caught {
        world.ring(&["rm", ring]).success();
    }
    caught
}

#[test]
fn a_ring_that_has_not_arrived_tells_the_command_that_brings_it() {
    let world = World::new("hint");
    world.run_in("alice", "head -c 30000000 /dev/urandom > /tmp/f").success();
    world.pack();
    world.ring(&["export", "alice", "oci:sub/layout"]).success();
    world.ring(&["export", "alice", "oci-archive:sub/archive.tar"]).success();
    for (from, ring) in [("oci:sub/layout", "one"), ("oci-archive:sub/archive.tar", "two")] {
        // On a machine that is busy it may have arrived before it is killed.
        assert!((0..20).any(|_| is_caught(&world, from, ring)), "it was never caught");
        let (transport, path) = from.split_once(':').unwrap();
        let hint = format!("ring import {transport}:{} root/{ring}", world.base().join(path).display());
        let refused = world.run_in(ring, "true");
        refused.fails_with(1, &format!("'regen {hint}'"));
        // From wherever it is typed.
        let mut command = world.command(&hint.split(' ').collect::<Vec<_>>());
        command.current_dir("/");
        world.finish(command).success();
        world.run_in(ring, "test -s /tmp/f").success();
    }
}
