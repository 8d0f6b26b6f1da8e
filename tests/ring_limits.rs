//! What a ring may hold: depth, bytes, pins, and what is gone from the disk once an entry has left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::process::Command;

use harness::World;
use serde_json::{Value, json};

/// A run that leaves a file of its own and replaces one that every run has.
fn run(world: &World, flags: &[&str], n: u32) {
    let flags = [&["--ring", "alice"], flags].concat();
    world.run_with(&flags, &format!("echo {n} > /tmp/newest; touch /tmp/{n}")).success();
}

fn tags(index: &Value) -> Vec<String> {
    let tag =
        |manifest: &Value| manifest["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned();
    index["manifests"].as_array().unwrap().iter().map(tag).collect()
}

#[test]
fn over_the_depth_the_oldest_leave_with_what_only_they_needed() {
    let world = World::new("depth");
    for n in 1..=6 {
        run(&world, if n == 1 { &["--depth", "3"] } else { &[] }, n);
    }
    world.pack();
    let log = world.log("alice");
    assert_eq!(world.seqs("alice"), [6, 5, 4]);
    let mut ids: Vec<_> = log.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect();
    ids.reverse();
    assert_eq!(tags(&world.ring_file("alice", "index.json")), ids, "the index lists exactly the entries");

    let mut needed: Vec<_> = ["alice@4", "alice@5", "alice@6"].iter().flat_map(|entry| world.closure(entry)).collect();
    needed.sort();
    needed.dedup();
    assert_eq!(world.blobs("alice"), needed, "manifests and configs of the evicted are gone, and nothing else");
    let mut layers = world.layers_of("alice@6");
    layers.sort();
    assert_eq!(world.layers(), layers);
    assert_eq!(world.run_in("alice@4", "ls /tmp").success().stdout(), "1\n2\n3\n4\nnewest\n");
    world.ring(&["show", "alice@3"]).fails_with(1, "the oldest is @4");
}

#[test]
fn layers_and_blobs_go_once_nothing_stands_on_them() {
    let world = World::new("gone");
    run(&world, &["--depth", "2"], 1);
    let old = world.layers_of("alice@1");
    for n in 2..=4 {
        world.run_in("alice@base", &format!("echo {n} > /tmp/newest")).success();
    }
    world.pack();
    assert_eq!(world.seqs("alice"), [4, 3]);
    let mut layers = [world.layers_of("alice@3"), world.layers_of("alice@4")].concat();
    layers.sort();
    assert_eq!(world.layers(), layers);
    assert!(!layers.contains(&old[0]) && layers.len() == 2);
    assert_eq!(world.blobs("alice").len(), 6, "two layers, two configs, two manifests");
}

#[test]
fn a_depth_that_is_left_out_is_the_rings_own() {
    let world = World::new("owndepth");
    let depth = |world: &World| world.ring_json(&["ls"])[0]["depth"].as_u64().unwrap();
    run(&world, &[], 1);
    assert_eq!(depth(&world), 8);
    run(&world, &["--depth", "2"], 2);
    assert_eq!(depth(&world), 2);
    run(&world, &[], 3);
    assert_eq!(depth(&world), 2);
    world.pack();
    assert_eq!(world.seqs("alice"), [3, 2]);
}

#[test]
fn a_ring_has_the_rules_of_the_configuration_and_of_whoever_runs_in_it() {
    let world = World::new("rules");
    let file = world.base().join("rules.toml");
    fs::write(&file, "[ring]\nkeep-hourly = 24\nkeep-weekly = 4\nmax-depth = 50\n").unwrap();
    let run = |script: &str, annotations: Value| {
        let bundle = world.bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["annotations"] = annotations.clone();
        });
        world.regen(&["--config", file.to_str().unwrap(), "run", "--bundle", bundle.text(), &world.fresh_id()])
    };
    let rules = || world.ring_file("alice", "ring.json")["keep"].clone();
    run("echo 1 > /tmp/f", json!({"run.regen.ring": "alice", "run.regen.ring.keep": "daily=7,weekly=0"})).success();
    assert_eq!(rules(), json!({"last": 0, "hourly": 24, "daily": 7, "weekly": 0}));
    // What is not said stays, whatever the configuration says of new rings.
    run("echo 2 > /tmp/f", json!({"run.regen.ring": "alice", "run.regen.ring.keep": "last=3"})).success();
    let kept = json!({"last": 3, "hourly": 24, "daily": 7, "weekly": 0});
    assert_eq!(rules(), kept);
    run("echo 3 > /tmp/f", json!({"run.regen.ring": "alice"})).success();
    assert_eq!((rules(), world.seqs("alice")), (kept, vec![3, 2, 1]));
    for (wrong, cause) in [
        ("hourly=51", "the administrator allows 50 of a kind at most"),
        ("yearly=1", "there is no rule 'yearly'"),
        ("hourly", "a rule is NAME=N"),
        ("hourly=1,hourly=2", "'hourly' is there twice"),
    ] {
        let annotations = json!({"run.regen.ring": "bob", "run.regen.ring.keep": wrong});
        let refused = run("true", annotations);
        refused.fails_with(1, cause);
        assert!(refused.stderr().contains("run.regen.ring.keep"), "{}", refused.stderr());
    }
    assert!(!world.ring_directory("bob").exists());
    world.pack();
}

#[test]
fn shrinking_evicts_and_a_dry_run_only_says_what_it_would_do() {
    let world = World::new("shrink");
    for n in 1..=4 {
        run(&world, &[], n);
    }
    world.pack();
    let before = world.picture();
    let would = world.ring_json(&["set", "alice", "--depth", "2", "--dry-run"]);
    assert_eq!(would["evicted"], json!([1, 2]));
    let text = world.ring(&["rollback", "alice", "--to", "@1", "--dry-run"]).success().stdout().to_owned();
    assert!(text.contains("would start"), "{text}");
    world.ring(&["rm", "alice", "--dry-run"]).success();
    assert_eq!(world.picture(), before);

    let done = world.ring_json(&["set", "alice", "--depth", "2"]);
    assert_eq!(done, json!({"depth": 2, "max_bytes": null, "evicted": [1, 2]}));
    assert_eq!(world.seqs("alice"), [4, 3]);
    world.ring(&["set", "alice"]).fails_with(2, "no limit was given");
    for bad in ["0", "-1", "many", ""] {
        world.ring(&["set", "alice", &format!("--depth={bad}")]).fails_with(1, "read depth");
    }
    assert_eq!(world.ring_json(&["ls"])[0]["depth"], 2);
}

#[test]
fn a_pinned_entry_is_passed_over_until_it_is_unpinned() {
    let world = World::new("pin");
    run(&world, &["--depth", "2"], 1);
    assert_eq!(world.ring_json(&["pin", "alice@1"])["pinned"], true);
    for n in 2..=4 {
        run(&world, &[], n);
    }
    world.pack();
    assert_eq!(world.seqs("alice"), [4, 1]);
    assert_eq!(world.run_in("alice@1", "cat /tmp/newest").success().stdout(), "1\n");
    assert_eq!(world.ring_json(&["unpin", "alice@1"])["pinned"], false);
    run(&world, &[], 5);
    world.pack();
    assert_eq!(world.seqs("alice"), [5, 4]);
    world.ring(&["pin", "alice@base"]).fails_with(1, "the base is no entry");
    world.ring(&["pin", "alice@1"]).fails_with(1, "the oldest is @4");
}

#[test]
fn over_the_byte_limit_the_oldest_leave_but_never_the_newest() {
    let world = World::new("bytes");
    let fill = |name: &str| {
        let script = format!("dd if=/dev/urandom of=/tmp/{name} bs=1024 count=512 2>/dev/null");
        world.run_in("alice@base", &script).success();
    };
    for name in ["a", "b", "c"] {
        fill(name);
    }
    world.pack();
    let total = world.ring_json(&["ls"])[0]["bytes"].as_u64().unwrap();
    assert!(total > 3 * 2 * 512 * 1024, "each layer counts with its pack: {total}");
    let limit = |bytes: u64| world.ring_json(&["set", "alice", "--max-bytes", &bytes.to_string()])["evicted"].clone();
    assert_eq!(limit(total), json!([]));
    assert_eq!(limit(total - 1), json!([1]));
    assert_eq!(limit(1), json!([2]));
    assert_eq!(world.seqs("alice"), [3], "the newest stays even if it alone is over");
    fill("d");
    world.pack();
    assert_eq!(world.seqs("alice"), [4]);
    assert_eq!(world.ring_json(&["set", "alice", "--max-bytes", "none"])["max_bytes"], Value::Null);
    fill("e");
    world.pack();
    assert_eq!(world.seqs("alice"), [5, 4]);
    world.ring(&["set", "alice", "--max-bytes", "lots"]).fails_with(1, "lots");
}

#[test]
fn where_the_next_run_starts_is_never_evicted() {
    let world = World::new("next");
    for n in 1..=3 {
        run(&world, &[], n);
    }
    world.ring(&["rollback", "alice", "--to", "@1"]).success();
    world.pack();
    assert_eq!(world.ring_json(&["set", "alice", "--depth", "1"])["evicted"], json!([2]));
    assert_eq!(world.run_in("alice", "cat /tmp/newest").success().stdout(), "1\n");
}

#[test]
fn an_exit_that_changed_nothing_adds_no_entry() {
    let world = World::new("unchanged");
    run(&world, &[], 1);
    world.pack();
    let before = world.picture();
    for script in ["true", "cat /tmp/newest", "exit 7", "echo x > /dev/shm/x; touch /dev/y"] {
        world.run_in("alice", script);
    }
    // What was written and taken back is no change either.
    world.run_in("alice", "echo x > /tmp/x; rm /tmp/x").success();
    assert_eq!(world.seqs("alice"), [1]);
    world.pack();
    let mut after = world.picture();
    let ring = world.ring_directory("alice").join("ring.json");
    assert_ne!(after.remove(&ring), None, "it notes the last exit");
    let mut before = before;
    before.remove(&ring);
    assert_eq!(after, before);
}

#[test]
fn what_an_engine_mounts_is_no_change_but_what_a_program_writes_beside_it_is() {
    let world = World::new("stubs");
    let files = world.base().join("files");
    fs::create_dir(&files).unwrap();
    for name in ["hosts", "containerenv"] {
        fs::write(files.join(name), "from the engine").unwrap();
    }
    let bundle = |script: &str| {
        world.bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["annotations"] = json!({"run.regen.ring": "alice"});
            let mounts = spec["mounts"].as_array_mut().unwrap();
            for (name, place) in
                [("hosts", "/etc/hosts"), ("containerenv", "/run/.containerenv"), ("hosts", "/srv/a/b/c")]
            {
                mounts.push(json!({"destination": place, "source": files.join(name), "options": ["bind", "rw"]}));
            }
        })
    };
    let start = |script: &str| world.regen(&["run", "--bundle", bundle(script).text(), &world.fresh_id()]);
    start("echo more >> /etc/hosts; cat /run/.containerenv").success();
    assert_eq!(world.ring_json(&["ls"])[0]["entries"], 0);
    start("touch /srv/a/b/d").success();
    assert_eq!(world.seqs("alice"), [1]);
    start("cat /srv/a/b/c").success();
    assert_eq!(world.seqs("alice"), [1]);
    start("chmod 700 /etc").success();
    assert_eq!(world.seqs("alice"), [2, 1], "a directory that holds a mount point is nobody's stub");
    assert_eq!(start("stat -c %a /etc").success().stdout(), "700\n");
}

#[test]
fn what_others_put_into_the_layout_stays_when_entries_leave() {
    let world = World::new("foreign");
    run(&world, &["--depth", "1"], 1);
    world.pack();
    let id = world.log("alice")[0]["id"].as_str().unwrap().to_owned();
    let directory = world.ring_directory("alice");
    let place = |tag: &str| format!("oci:{}:{tag}", directory.display());
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", &place(&id), &place("kept-by-hand")]);
    world.finish(copy).success();
    let mut tag = Command::new("umoci");
    tag.args(["tag", "--image", &format!("{}:{id}", directory.display()), "kept-by-umoci"]);
    world.finish(tag).success();
    let kept = world.closure("alice@1");
    for n in 2..=3 {
        run(&world, &[], n);
    }
    world.pack();
    assert_eq!(world.seqs("alice"), [3]);
    let newest = world.log("alice")[0]["id"].as_str().unwrap().to_owned();
    let mut listed = tags(&world.ring_file("alice", "index.json"));
    listed.sort();
    assert_eq!(listed, [newest, "kept-by-hand".to_owned(), "kept-by-umoci".to_owned()]);
    let blobs = world.blobs("alice");
    assert!(kept.iter().all(|blob| blobs.contains(blob)), "what they refer to is there");
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", &place("kept-by-hand"), &format!("oci:{}/copy:a", world.base().display())]);
    world.finish(copy).success();
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
}
