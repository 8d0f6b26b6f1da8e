//! Who has a ring: annotations, engines, several containers at once, and what is refused while it is in use.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::ring::{names, picture};
use harness::{World, eventually};
use serde_json::{Value, json};

/// A container made the way engines do it, from a bundle with annotations; gives its id once it has ended.
fn engine(world: &World, annotations: &Value, script: &str) -> String {
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["annotations"] = annotations.clone();
    });
    let id = world.fresh_id();
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    world.regen(&["start", &id]).success();
    eventually("it ends", || world.status(&id) == "stopped");
    id
}

#[test]
fn an_annotation_puts_an_engines_container_into_a_ring() {
    let world = World::new("engine");
    let alice = json!({"run.regen.ring": "alice", "run.regen.ring.depth": "3", "run.regen.ring.max-bytes": "1GiB"});
    let before = picture(&world.rootfs());
    let id = engine(&world, &alice, "echo one > /tmp/f");
    assert_eq!(world.seqs("alice"), [0u64; 0], "before delete there is no entry");
    world.regen(&["delete", &id]).success();
    assert_eq!(world.seqs("alice"), [1]);
    assert_eq!(
        (world.ring_json(&["ls"])[0]["depth"].as_u64(), world.ring_json(&["ls"])[0]["max_bytes"].as_u64()),
        (Some(3), Some(1 << 30))
    );

    let id = engine(&world, &alice, "cat /tmp/f > /tmp/g; echo two > /tmp/f");
    // containerd does it twice.
    world.regen(&["delete", &id]).success();
    let again = world.regen(&["delete", "--force", &id]);
    assert_eq!((again.success().stdout(), again.stderr()), ("", ""));
    assert_eq!(world.seqs("alice"), [2, 1]);

    let at = json!({"run.regen.ring": "alice", "run.regen.ring.at": "@-1", "run.regen.ring.create": "never"});
    let id = engine(&world, &at, "cp /tmp/f /tmp/seen; test ! -e /tmp/g");
    world.regen(&["delete", "--force", &id]).success();
    let entry = world.ring_json(&["show", "alice"]);
    assert_eq!((&entry["seq"], &entry["parent"]), (&json!(3), &json!(1)));
    assert_eq!(world.run_in("alice", "true").code, 0, "the same base, said in another way");
    assert_eq!(picture(&world.rootfs()), before, "the engine's root file system is not written");
}

#[test]
fn an_engine_that_gives_its_runtime_flags_only_names_a_ring_by_them() {
    let world = World::new("flag");
    let bundle = world.shell("echo x >> /root/runs; cat /root/runs");
    let id = world.id("a");
    let run = |flags: &[&str]| world.regen(&[flags, &["run", "--bundle", bundle.text(), &id]].concat());
    run(&["--ring", "alice", "--depth", "2"]).success();
    assert_eq!(run(&["--ring", "alice"]).success().stdout(), "x\nx\n");
    // The flags stand before every verb, as in a script that an engine calls.
    let bundle = world.bundle(|spec| spec["annotations"] = json!({"run.regen.ring": "bob"}));
    world.regen(&["--ring", "alice", "create", "--bundle", bundle.text(), &id]).success();
    let rings = world.ring_json(&["ls"]);
    let depths: Vec<_> = rings.as_array().unwrap().iter().map(|ring| (&ring["name"], &ring["depth"])).collect();
    assert_eq!(json!(depths), json!([["alice", 2], ["bob", 8]]), "{rings}");
    world.regen(&["--ring", "alice", "delete", "--force", &id]).success();
}

#[test]
fn a_variable_of_the_container_names_a_ring_if_the_administrator_says_so() {
    let world = World::new("env");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "echo x >> /root/runs; cat /root/runs"]);
        spec["process"]["env"].as_array_mut().unwrap().push("REGEN_OCI_RING=alice".into());
    });
    let config = world.base().join("config.toml");
    let id = world.id("a");
    let run = |allowed: bool| {
        std::fs::write(&config, format!("[ring]\nfrom-environment = {allowed}\n")).unwrap();
        world.regen(&["--config", config.to_str().unwrap(), "run", "--bundle", bundle.text(), &id])
    };
    run(true).success();
    assert_eq!(run(true).success().stdout(), "x\nx\n");
    assert_eq!(world.ring_json(&["log", "alice"]).as_array().unwrap().len(), 2);
    // The last one: it writes into the root file system itself.
    assert_eq!(run(false).success().stdout(), "x\n");
    assert_eq!(world.ring_json(&["log", "alice"]).as_array().unwrap().len(), 2);
}

#[test]
fn a_container_that_was_created_but_never_started_adds_no_entry() {
    let world = World::new("unstarted");
    let bundle = world.bundle(|spec| spec["annotations"] = json!({"run.regen.ring": "alice"}));
    let id = world.fresh_id();
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    world.run_in("alice", "true").fails_with(1, &format!("in use by container '{id}'"));
    world.regen(&["delete", &id]).success();
    world.run_in("alice", "true").success();
    assert_eq!(world.seqs("alice"), [0u64; 0]);
}

#[test]
fn a_container_without_annotations_writes_its_root_file_system_and_makes_no_store() {
    let world = World::new("plain");
    let id = engine(&world, &json!({"org.example.other": "x"}), "echo x > /tmp/x");
    world.regen(&["delete", &id]).success();
    assert!(world.rootfs().join("tmp/x").exists());
    assert!(!world.store().exists());
}

#[test]
fn a_ring_that_must_be_there_and_is_not_is_refused() {
    let world = World::new("never");
    let bundle = world.bundle(|spec| {
        spec["annotations"] = json!({"run.regen.ring": "alice", "run.regen.ring.create": "never"});
    });
    world.regen(&["run", "--bundle", bundle.text(), &world.fresh_id()]).fails_with(1, "there is no such ring");
    assert_eq!(world.ring_json(&["ls"]), json!([]));
}

#[test]
fn a_ring_in_use_says_by_whom_since_when_and_keeps_everybody_else_out() {
    let world = World::new("inuse");
    world.run_in("alice", "echo one > /tmp/f").success();
    world.pack();
    let id = world.detach_in("alice", "echo two > /tmp/f; sleep 1000");
    let pid = world.pid(&id);
    let state = world.regen(&["ring", "ls", "--json"]);
    let listed: Value = serde_json::from_str(state.success().stdout()).unwrap();
    assert_eq!(listed[0]["in_use_by"], *id);
    let before = world.picture();
    let output = world.run_in("alice", "true");
    output.fails_with(1, &format!("in use by container '{id}' (process {pid}, since 20"));
    assert!(output.stderr().contains(&format!("regen delete --force {id}")), "{}", output.stderr());
    world.ring(&["rollback", "alice", "--to", "@1"]).fails_with(1, &format!("in use by container '{id}'"));
    world.ring(&["rm", "alice"]).fails_with(1, &format!("in use by container '{id}'"));
    world.run_in("alice@base", "true").fails_with(1, "in use");
    assert_eq!(world.picture(), before, "refusals change nothing");
    // Looking, pinning and packing are no use of it.
    world.ring(&["pin", "alice@1"]).success();
    world.ring(&["diff", "alice@base", "@1"]).success();
    world.ring(&["verify", "alice"]).success();
    world.pack();

    world.regen(&["delete", &id]).fails_with(1, "not stopped");
    world.regen(&["delete", "--force", &id]).success();
    world.regen(&["delete", "--force", &id]).success();
    assert_eq!(world.run_in("alice", "cat /tmp/f").success().stdout(), "two\n");
    assert_eq!(world.seqs("alice"), [2, 1]);
    assert_eq!(world.ring_json(&["ls"])[0]["in_use_by"], Value::Null);
}

#[test]
fn of_several_who_want_one_ring_exactly_one_gets_it() {
    let world = World::new("claims");
    let start = || {
        let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
        let script = format!("echo {id} >> /tmp/who; sleep 1000");
        let command =
            world.command(&["run", "-d", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "sh", "-c", &script]);
        (id, world.spawn(command))
    };
    let started: Vec<_> = (0..5).map(|_| start()).collect();
    let ended: Vec<_> = started.into_iter().map(|(id, running)| (id, running.finish())).collect();
    let (winners, losers): (Vec<_>, Vec<_>) = ended.into_iter().partition(|(_, output)| output.code == 0);
    assert_eq!(winners.len(), 1, "{winners:?}");
    let winner = &winners[0].0;
    for (_, output) in &losers {
        output.fails_with(1, &format!("in use by container '{winner}'"));
    }
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), format!("{winner}\n"));
    let root = world.pid(winner);
    eventually("it wrote", || fs::metadata(format!("/proc/{root}/root/tmp/who")).is_ok_and(|file| file.len() > 0));
    world.delete(winner);
    assert_eq!(world.run_in("alice", "cat /tmp/who").success().stdout(), format!("{winner}\n"));
}

#[test]
fn two_rings_run_at_once_and_know_nothing_of_each_other() {
    let world = World::new("two");
    let ids =
        ["alice", "bob"].map(|ring| (ring, world.detach_in(ring, &format!("echo {ring} > /tmp/who; sleep 1000"))));
    for (_, id) in &ids {
        let root = world.pid(id);
        eventually("it wrote", || fs::metadata(format!("/proc/{root}/root/tmp/who")).is_ok_and(|file| file.len() > 0));
    }
    assert_eq!(names(&world.store().join("runs")).len(), 2);
    for (_, id) in &ids {
        world.delete(id);
    }
    for (ring, _) in &ids {
        assert_eq!(world.run_in(ring, "cat /tmp/who").success().stdout(), format!("{ring}\n"));
        assert_eq!(world.seqs(ring), [1]);
    }
    let rings = world.ring_json(&["ls"]);
    let names: Vec<_> = rings.as_array().unwrap().iter().map(|ring| ring["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["alice", "bob"]);
    // The full name means the same ring, another owner another one, which nobody makes by a slip of the pen.
    assert_eq!(world.run_in("root/alice", "cat /tmp/who").success().stdout(), "alice\n");
    world.run_in("carol/alice", "ls /tmp").fails_with(1, "there is no such ring");
}

#[test]
fn another_base_is_refused_with_both_named_unless_it_is_asked_for() {
    let world = World::new("base");
    world.run_in("alice", "echo mine > /srv").success();
    let other = world.base().join("other");
    let copy = std::process::Command::new("cp");
    let mut copy = copy;
    copy.arg("-a").arg(world.rootfs()).arg(&other);
    world.finish(copy).success();
    fs::write(other.join("etc/other"), "").unwrap();
    let run = |flags: &[&str]| {
        let id = world.fresh_id();
        let start = ["run", "--rootfs", other.to_str().unwrap(), "--ring", "alice"];
        world
            .regen(&[&start[..], flags, &[&id, "--", "sh", "-c", "cat /srv; echo /etc/other; touch /tmp/new"]].concat())
    };
    let refused = run(&[]);
    refused.fails_with(1, &format!("it was made over dir:{}#", world.rootfs_text()));
    assert!(refused.stderr().contains(&format!("not over dir:{}#", other.display())), "{}", refused.stderr());
    assert_eq!(world.seqs("alice"), [1]);
    assert_eq!(run(&["--rebase"]).success().stdout(), "mine\n/etc/other\n");
    assert_eq!(world.seqs("alice"), [2, 1]);
    assert_ne!(world.ring_json(&["show", "alice@1"])["base"], world.ring_json(&["show", "alice@2"])["base"]);
    // Now this one is the odd one out.
    world.run_in("alice", "true").fails_with(1, "it was made over");
    world.run_in("alice@1", "true").success();
    assert_eq!(world.run_in("alice@base", "ls /tmp").success().stdout(), "");
}

#[test]
fn a_base_that_is_gone_is_told_in_the_log() {
    let world = World::new("basegone");
    let base = world.base().join("base");
    fs::create_dir(&base).unwrap();
    world.run_in("alice", "true").success();
    let run = |directory: &str| {
        let id = world.fresh_id();
        world.regen(&["run", "--rootfs", directory, "--ring", "alice", &id, "--", "sh", "-c", "touch /tmp/1"])
    };
    fs::remove_dir(&base).unwrap();
    fs::rename(world.rootfs(), &base).unwrap();
    run(base.to_str().unwrap()).success();
    world.pack();
    fs::rename(&base, world.rootfs()).unwrap();
    assert!(world.ring(&["log", "alice"]).success().stdout().contains("base gone"));
    assert_eq!(world.ring_json(&["show", "alice"])["base_present"], false);
    world.ring(&["diff", "alice@base", "@1"]).fails_with(1, "is gone");
    run(base.to_str().unwrap()).fails_with(1, "no such file or directory");
}

#[test]
fn a_ring_that_is_removed_goes_with_its_layers_and_a_new_one_begins_at_one() {
    let world = World::new("rm");
    for ring in ["alice", "bob"] {
        for n in 1..=2 {
            world.run_in(ring, &format!("echo {ring} > /tmp/{n}")).success();
        }
    }
    world.pack();
    let mut kept = world.layers_of("bob");
    kept.sort();
    let removed = world.ring_json(&["rm", "alice"]);
    assert_eq!((&removed["ring"], &removed["entries"]), (&json!("root/alice"), &json!(2)));
    world.pack();
    assert_eq!(world.layers(), kept);
    assert_eq!(names(&world.store().join("rings/root")), ["bob"]);
    world.ring(&["log", "alice"]).fails_with(1, "there is no such ring");
    world.ring(&["rm", "alice"]).fails_with(1, "there is no such ring");
    assert_eq!(world.run_in("alice", "touch /tmp/new; ls /tmp").success().stdout(), "new\n");
    assert_eq!(world.seqs("alice"), [1]);
    // What a removal that was cut short left in the way is no obstacle to the next one.
    let left = world.store().join("rings/root/.tmp-0123");
    fs::create_dir_all(left.join("blobs")).unwrap();
    world.ring(&["rm", "alice"]).success();
    world.pack();
    assert_eq!(names(&world.store().join("rings/root")), ["bob"]);
}

#[test]
fn what_is_only_sealed_counts_when_a_ring_is_removed() {
    let world = World::new("rmsealed");
    world.run_in("alice", "touch /tmp/1").success();
    world.pack();
    // A worker that is at it already keeps the one of this run from packing.
    let lock = fs::File::open(world.store().join("worker.lock")).unwrap();
    lock.lock().unwrap();
    world.run_in("alice", "head -c 300000 /dev/urandom > /tmp/2").success();
    let planned = world.ring_json(&["rm", "alice", "--dry-run"]);
    assert!(planned["bytes"].as_u64().unwrap() >= 300_000, "{planned}");
    assert_eq!(world.ring_json(&["rm", "alice"]), planned);
    drop(lock);
    world.pack();
    assert_eq!(world.layers(), [""; 0]);
}

#[test]
fn a_run_in_a_ring_that_is_removed_when_nobody_looks_is_thrown_away() {
    let world = World::new("rmlate");
    let id = world.detach_in("alice", "touch /tmp/1; sleep 1000");
    fs::remove_dir_all(world.ring_directory("alice")).unwrap();
    world.delete(&id);
    world.pack();
    assert!(names(&world.store().join("runs")).is_empty() && world.layers().is_empty());
}
