//! Rings under podman: what they are worth to people who never type `regen run`.

use std::os::unix::fs::chown;

use crate::harness::{World, eventually};
use crate::podman::{IMAGE, Podman};

const ALICE: [&str; 3] = ["--rm", "--annotation", "run.regen.ring=alice"];

#[test]
fn a_ring_outlives_the_containers_of_podman() {
    let world = World::new("pm");
    let podman = Podman::new(&world);
    podman.run(&ALICE, &["sh", "-c", "echo hi > /etc/motd; rm /bin/ls"]).success();
    let read = podman.run(&ALICE, &["sh", "-c", "cat /etc/motd; test ! -e /bin/ls"]);
    assert_eq!(read.success().stdout(), "hi\n");
    podman.run(&["--rm"], &["test", "-e", "/etc/motd"]).code(1);
    // The second run changed nothing: what podman itself puts into a container is no change.
    assert_eq!(podman.log("alice").len(), 1);
    let diff = world.regen(&["ring", "diff", "alice@base", "alice@latest"]);
    let lines: Vec<_> = diff.success().stdout().lines().collect();
    assert!(lines.contains(&"A /etc/motd") && lines.contains(&"D /bin/ls"), "{lines:?}");
}

#[test]
fn a_container_of_podman_can_be_entered_stopped_and_put_back() {
    let world = World::new("pb");
    let podman = Podman::new(&world);
    podman.run(&ALICE, &["sh", "-c", "echo good > /root/state"]).success();
    let name = world.id("box");
    let script = "trap 'exit 0' TERM; echo bad > /root/state; while :; do sleep 0.05; done";
    let ring = ["--annotation", "run.regen.ring=alice", "--detach", "--name", &name];
    podman.run(&ring, &["sh", "-c", script]).success();
    let state = || podman.call(&["exec", &name, "cat", "/root/state"]).success().stdout().to_owned();
    eventually("the program ran", || state() == "bad\n");
    podman.run(&ALICE, &["true"]).code(126);
    podman.call(&["stop", "--time", "30", &name]).success();
    podman.call(&["rm", &name]).success();
    world.regen(&["ring", "rollback", "alice", "--to", "@-1"]).success();
    assert_eq!(podman.run(&ALICE, &["cat", "/root/state"]).success().stdout(), "good\n");
}

#[test]
fn podman_tells_its_user_why_regen_refused() {
    let world = World::new("pe");
    let podman = Podman::new(&world);
    podman.run(&ALICE, &["nonesuch"]).code(127);
    podman.run(&ALICE, &["/etc/passwd"]).code(126);
    let refused = podman.run(&["--rm", "--annotation", "run.regen.rign=alice"], &["true"]);
    assert!(refused.code(126).stderr().contains("run.regen.rign"), "{refused:?}");
    assert_eq!(world.ring_json(&["ls"]), serde_json::json!([]), "a container that could not be made leaves no ring");
}

#[test]
fn an_annotation_of_podman_sets_the_depth_and_the_oldest_entries_leave() {
    let world = World::new("pd");
    let podman = Podman::new(&world);
    let deep = [&ALICE[..], &["--annotation", "run.regen.ring.depth=2"]].concat();
    for run in ["1", "2", "3"] {
        podman.run(&deep, &["sh", "-c", &format!("echo {run} > /root/state")]).success();
    }
    world.regen(&["ring", "pack", "alice"]).success();
    let numbers: Vec<_> = podman.log("alice").iter().map(|entry| entry["seq"].clone()).collect();
    assert_eq!(numbers, [3, 2]);
    assert_eq!(podman.run(&ALICE, &["cat", "/root/state"]).success().stdout(), "3\n");
}

#[test]
fn a_second_container_of_podman_is_refused_with_the_name_of_the_first() {
    let world = World::new("p2");
    let podman = Podman::new(&world);
    let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let name = podman.start(&ALICE[1..], script);
    let id = podman.inspect(&name, "{{.Id}}");
    let refused = podman.run(&ALICE, &["true"]);
    assert!(refused.code(126).stderr().contains(&format!("in use by container '{id}'")), "{refused:?}");
    // Unlike podman's own layer, its copies know where a running container writes.
    let (copy, inside) = (podman.path("copy"), format!("{name}:/root/copied"));
    std::fs::write(&copy, "copied\n").unwrap();
    podman.call(&["cp", copy.to_str().unwrap(), &inside]).success();
    podman.call(&["restart", "--time", "30", &name]).success();
    eventually("it is up again", || podman.call(&["logs", &name]).stdout().matches("up\n").count() == 2);
    podman.call(&["rm", "--force", "--time", "30", &name]).success();
    assert_eq!(podman.run(&ALICE, &["cat", "/root/copied"]).success().stdout(), "copied\n");
}

#[test]
fn a_volume_of_podman_belongs_to_the_ring_if_an_annotation_says_so() {
    let world = World::new("pv");
    let podman = Podman::new(&world);
    let source = podman.path("volume");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "source\n").unwrap();
    let mount = format!("{}:/data", source.display());
    let flags = [&ALICE[..], &["--annotation", "run.regen.ring.volumes=/data", "--volume", &mount]].concat();
    podman.run(&flags, &["sh", "-c", "cat /data/f; echo mine > /data/f; echo root > /root/f"]).success();
    assert_eq!(podman.run(&flags, &["cat", "/data/f", "/root/f"]).success().stdout(), "mine\nroot\n");
    assert_eq!(podman.log("alice").len(), 1);
    assert_eq!(std::fs::read_to_string(source.join("f")).unwrap(), "source\n");
}

#[test]
fn a_volume_of_a_container_with_other_user_ids_belongs_to_the_ring_with_its_owners() {
    let world = World::new("pw");
    let podman = Podman::new(&world);
    let source = podman.path("volume");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "source\n").unwrap();
    for path in [&source, &source.join("f")] {
        chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    let mount = format!("{}:/data", source.display());
    let map = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let volume = ["--annotation", "run.regen.ring.volumes=/data", "--volume", &mount];
    let flags = [&ALICE[..], &map, &volume].concat();
    let script = "id -u; stat -c %u:%g /data/f; echo mine > /data/f; chown 5:6 /data/f; echo root > /root/f";
    assert_eq!(podman.run(&flags, &["sh", "-c", script]).success().stdout(), "0\n0:0\n");
    let look = ["sh", "-c", "cat /data/f /root/f; stat -c %u:%g /data/f"];
    assert_eq!(podman.run(&flags, &look).success().stdout(), "mine\nroot\n5:6\n");
    assert_eq!(podman.log("alice").len(), 1);
    assert_eq!(std::fs::read_to_string(source.join("f")).unwrap(), "source\n");
}

/// Every second, what a container has changed.
const EVERY: [&str; 4] = ["--annotation", "run.regen.ring=alice", "--annotation", "run.regen.ring.snapshot-every=1s"];

#[test]
fn snapshots_of_a_container_of_podman_are_made_by_themselves_until_it_ends() {
    let world = World::new("pk");
    let podman = Podman::new(&world);
    let name = podman.start(&EVERY, "echo one > /root/f; echo up; while :; do sleep 0.05; done");
    let has = |text: &str| world.ring(&["cat", "alice", "/root/f"]).stdout() == text;
    eventually("what it wrote is an entry", || has("one\n"));
    let before = world.seqs("alice");
    world.await_looks("alice");
    assert_eq!(world.seqs("alice"), before, "nothing has changed since");
    podman.call(&["exec", &name, "sh", "-c", "echo two >> /root/f"]).success();
    eventually("so is what it wrote later", || has("one\ntwo\n"));
    let before = world.seqs("alice");
    podman.call(&["kill", &name]).success();
    podman.call(&["rm", "--force", &name]).success();
    eventually("who made them has ended", || !world.makes_snapshots());
    // What it ended as is an entry of its own.
    let log = podman.log("alice");
    let (end, others) = log.split_first().unwrap();
    assert!(end["reason"] == "exit" && others.iter().all(|entry| entry["reason"] == "snapshot"), "{log:?}");
    assert_eq!(world.seqs("alice")[1..], before);
    assert_eq!(podman.run(&ALICE, &["cat", "/root/f"]).success().stdout(), "one\ntwo\n");
}

#[test]
fn a_container_of_podman_that_could_have_no_snapshot_is_refused_if_it_asks_for_them() {
    let world = World::new("pq");
    let podman = Podman::new(&world);
    let run = ["run", "--rm", "--network", "none", "--cgroups", "disabled"];
    let refused = podman.call(&[&run[..], &EVERY, &[IMAGE, "true"]].concat());
    assert!(refused.code(126).stderr().contains("no cgroup that could be frozen"), "{refused:?}");
    assert_eq!(world.ring_json(&["ls"]), serde_json::json!([]));
}
