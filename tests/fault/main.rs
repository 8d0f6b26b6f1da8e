//! Nothing is lost: regen is killed at every call that changes something, and the next commands find the last state
//! before or after, never an error, never a leaked mount, cgroup, process or temporary file.
//!
//! An ordinary run takes some points of each command, chosen by a seed that it prints; with `REGEN_OCI_FAULT_SEED` the
//! same again, with `REGEN_OCI_FAULT_ALL` (see `hack/fault`) every point.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the seed and the points are told, and kept to itself by a test that passes")]

mod check;
mod daemon;
mod exchange;
mod handover;
#[path = "../harness/mod.rs"]
mod harness;
mod image;
mod phase;
mod trace;

use std::fs::{self, File};
use std::process::Command;

use check::find_litter;
use harness::ring::names;
use harness::{World, eventually};
use phase::{Next, Phase, RING, run_arguments, strs};
use serde_json::json;
use trace::Follow;

/// What most phases have in common.
const PLAIN: Phase = Phase {
    name: "",
    follow: Follow::Process,
    prepare: two_entries,
    arm: |_, _| {},
    command: |_, _| Vec::new(),
    next: Next::Delete,
    allowed: &["1 2"],
    check: |_| {},
};

#[test]
fn a_killed_create_leaves_the_ring_as_it_was() {
    Phase { name: "create", command: create, ..PLAIN }.check();
}

#[test]
fn a_killed_first_create_leaves_no_ring_or_an_empty_one() {
    Phase { name: "create the first", prepare: |_| {}, command: create, allowed: &[""], ..PLAIN }.check();
}

#[test]
fn a_run_whose_children_are_killed_fails_or_is_done() {
    let allowed = &["1 2", "1 2 3"];
    Phase { name: "run with its children", follow: Follow::Everything, command: run, allowed, ..PLAIN }.check();
}

#[test]
fn a_killed_run_leaves_the_state_before_or_after() {
    Phase { name: "run", command: run, allowed: &["1 2", "1 2 3"], ..PLAIN }.check();
}

#[test]
fn what_a_container_wrote_outlives_a_killed_delete() {
    Phase { name: "delete, then delete", arm: running, command: delete, allowed: &["1 2 3"], ..PLAIN }.check();
}

#[test]
fn what_a_container_wrote_is_there_for_a_run_after_a_killed_delete() {
    Phase { name: "delete, then run", arm: ended, command: delete, next: Next::Run, allowed: &["1 2 3"], ..PLAIN }
        .check();
}

#[test]
fn a_killed_delete_of_an_unchanged_container_adds_nothing() {
    Phase { name: "delete unchanged", arm: unchanged, command: delete, next: Next::Run, ..PLAIN }.check();
}

#[test]
fn a_killed_pack_is_done_again() {
    let command = |_: &World, _: &str| words(&["ring", "pack"]);
    Phase { name: "pack", follow: Follow::Everything, prepare: two_sealed, command, ..PLAIN }.check();
}

#[test]
fn a_killed_eviction_is_done_again() {
    let command = |_: &World, _: &str| words(&["ring", "set", RING, "--depth", "1"]);
    Phase { name: "evict", command, ..PLAIN }.check();
}

#[test]
fn a_killed_worker_that_folds_is_done_again() {
    let allowed = &["1 2 3 4 5 6 7 8 9 10"];
    let command = |_: &World, _: &str| words(&["worker"]);
    Phase { name: "fold", follow: Follow::Everything, prepare: ten_to_fold, command, allowed, ..PLAIN }.check();
}

#[test]
fn a_killed_worker_that_repacks_is_done_again() {
    let allowed = &["1 2 3 4 5 6 7 8 9 10"];
    let command = |_: &World, _: &str| words(&["worker"]);
    let check = |world: &World| assert!(world.ring(&["verify"]).success().stdout().is_empty());
    let follow = Follow::Everything;
    Phase { name: "repack", follow, prepare: ten_to_repack, command, allowed, check, ..PLAIN }.check();
}

#[test]
fn a_killed_rollback_starts_before_or_after() {
    let command = |_: &World, _: &str| words(&["ring", "rollback", RING, "--to", "@1"]);
    Phase { name: "rollback", command, allowed: &["1", "1 2"], ..PLAIN }.check();
}

#[test]
fn a_killed_fork_leaves_the_whole_fork_or_none() {
    let command = |_: &World, _: &str| words(&["ring", "fork", RING, "b"]);
    Phase { name: "fork", command, check: check_fork, ..PLAIN }.check();
}

#[test]
fn a_killed_run_in_a_fork_leaves_the_ring_that_it_forked_as_it_was() {
    let command = |world: &World, id: &str| run_arguments(world, id, &["--fork"], "echo 3 >> /state");
    let check = |world: &World| {
        world.ring(&["recover"]).success();
        for own in names(&world.store().join("rings/root")).iter().filter(|name| name.starts_with("a.")) {
            let seen = world.run_in(own, "cat /state").success().stdout().replace('\n', " ");
            assert!(["1 2 ", "1 2 3 "].contains(&&*seen), "{own} has {seen}");
        }
    };
    Phase { name: "run in a fork", command, check, ..PLAIN }.check();
}

#[test]
fn a_killed_pin_changes_no_content() {
    let command = |_: &World, _: &str| words(&["ring", "pin", "a@1"]);
    Phase { name: "pin", command, ..PLAIN }.check();
}

#[test]
fn a_killed_ring_rm_leaves_all_of_the_ring_or_nothing() {
    let command = |_: &World, _: &str| words(&["ring", "rm", RING]);
    Phase { name: "rm", command, allowed: &["", "1 2"], ..PLAIN }.check();
}

#[test]
fn a_killed_rebuild_of_a_lost_layer_is_done_again() {
    Phase { name: "rebuild", prepare: lost_layers, command: create, ..PLAIN }.check();
}

#[test]
fn a_killed_recovery_is_done_again() {
    let command = |_: &World, _: &str| words(&["ring", "recover"]);
    Phase { name: "recover", arm: all_dead, command, next: Next::Run, allowed: &["1 2 3"], ..PLAIN }.check();
}

#[test]
fn a_seal_whose_finisher_is_killed_too_is_finished_by_the_next() {
    let command = |_: &World, _: &str| words(&["ring", "verify"]);
    Phase { name: "finish", arm: half_sealed, command, next: Next::Run, allowed: &["1 2 3"], ..PLAIN }.check();
}

#[test]
fn an_eviction_that_was_cut_short_is_finished_by_the_next_pack() {
    let world = World::new("cut");
    two_entries(&world);
    let before = find_litter(&world);
    world.edit_ring_file(RING, "ring.json", |state| {
        state["entries"].as_array_mut().unwrap().remove(0);
    });
    let gone = world.blobs(RING).len();
    world.pack();
    // The manifest and the config; its layer is below the other entry.
    assert_eq!((before, find_litter(&world), gone - world.blobs(RING).len()), (vec![], vec![], 2));
}

#[test]
fn a_blob_that_was_cut_short_goes_with_the_next_pack() {
    let world = World::new("half");
    two_entries(&world);
    fs::write(world.ring_directory(RING).join("blobs/sha256/.tmp-half"), "x").unwrap();
    world.pack();
    assert_eq!(find_litter(&world), [""; 0]);
}

#[test]
fn a_run_without_its_upper_goes_with_the_next_pack() {
    let world = World::new("upper");
    let id = world.id("a");
    running(&world, &id);
    let runs = world.store().join("runs");
    let run = runs.join(&names(&runs)[0]);
    let record = fs::read(run.join("run.json")).unwrap();
    world.delete(&id);
    world.pack();
    fs::create_dir(&run).unwrap();
    fs::write(run.join("run.json"), record).unwrap();
    world.pack();
    assert_eq!(find_litter(&world), [""; 0]);
}

#[test]
fn a_dead_run_without_a_ring_goes_with_the_next_one() {
    let world = World::new("scratch");
    let (dead, live) = (world.id("dead"), world.id("live"));
    let rootfs = world.rootfs_text();
    world.regen(&["run", "-d", "--rootfs", &rootfs, &dead, "--", "sleep", "1000"]).success();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(world.pid(&dead)), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is dead", || world.status(&dead) == "stopped");
    world.regen(&["run", "--rootfs", &rootfs, &live, "--", "true"]).success();
    eventually("its upper is swept", || names(&world.store().join("runs")).is_empty());
    world.delete(&dead);
    assert_eq!(find_litter(&world), [""; 0]);
}

/// A ring with two packed entries.
fn two_entries(world: &World) {
    world.run_in(RING, "echo 1 >> /state").success();
    world.run_in(RING, "echo 2 >> /state; mkdir -p /d; echo x > /d/f; ln -s f /d/l").success();
    world.pack();
}

/// A ring with two entries that nobody has packed.
fn two_sealed(world: &World) {
    world.run_in(RING, "true").success();
    let _idle = keep_workers_away(world);
    world.run_in(RING, "echo 1 >> /state").success();
    world.run_in(RING, "echo 2 >> /state; seq 1 100000 > /many").success();
    // The last one may still be on its way to finding that.
    assert_eq!(world.leaks(), [""; 0]);
}

/// A ring whose one entry stands on ten layers that could be one.
fn ten_to_fold(world: &World) {
    for n in 1..=10 {
        world
            .run_in(RING, &format!("echo {n} >> /state; mkdir -p /d; echo {n} > /d/{n}; rm -f /d/$(({n} - 2))"))
            .success();
    }
    world.regen(&["ring", "set", RING, "--depth", "20"]).success();
    world.pack();
    world.regen(&["ring", "set", RING, "--depth", "1"]).success();
}

/// A ring whose one entry stands on a layer that was made of ten and has their packs.
fn ten_to_repack(world: &World) {
    ten_to_fold(world);
    world.regen(&["ring", "pin", RING]).success();
    world.pack();
    world.regen(&["ring", "unpin", RING]).success();
}

/// A ring of which only the packs are left.
fn lost_layers(world: &World) {
    two_entries(world);
    assert_eq!(world.leaks(), [""; 0]);
    for layer in fs::read_dir(world.store().join("layers")).unwrap() {
        fs::remove_dir_all(layer.unwrap().path()).unwrap();
    }
}

/// As long as this lives, workers that are started find another one waiting, and go.
fn keep_workers_away(world: &World) -> File {
    let file = File::create(world.store().join("worker.next")).unwrap();
    file.lock().unwrap();
    file
}

/// The ring `b` is a fork of the whole ring, or is not there.
fn check_fork(world: &World) {
    if world.ring_directory("b").exists() {
        assert_eq!(world.run_in("b", "cat /state").success().stdout(), "1\n2\n");
    }
    // Nothing is in the way of another one.
    world.ring(&["fork", RING, "c"]).success();
}

/// A container that has written, and runs.
fn running(world: &World, id: &str) {
    world.regen(&strs(&run_arguments(world, id, &["--detach"], "echo 3 >> /state; sleep 1000"))).success();
    eventually("it writes", || has_written(world));
}

/// A container that has written, and ended.
fn ended(world: &World, id: &str) {
    world.regen(&strs(&run_arguments(world, id, &["--detach"], "echo 3 >> /state"))).success();
    eventually("it ends", || world.status(id) == "stopped");
}

/// A container whose upper has become a layer that no entry names yet, only the journal.
fn half_sealed(world: &World, id: &str) {
    ended(world, id);
    let command = world.command(&["delete", "--force", id]);
    let mut strace = Command::new("strace");
    strace.args(["-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:signal=SIGKILL", "-P"]);
    strace.arg(world.store().join("layers")).arg(command.get_program()).args(command.get_args());
    assert_eq!(world.finish(strace).code, 1009, "it is killed");
    assert!(!world.ring_file(RING, "ring.json")["journal"].is_null(), "the seal has begun");
}

/// A container that has written nothing, and ended.
fn unchanged(world: &World, id: &str) {
    world.regen(&strs(&run_arguments(world, id, &["--detach"], "true"))).success();
    eventually("it ends", || world.status(id) == "stopped");
}

/// A container that has written, and whose processes were all killed, the runtime that waited for it too.
fn all_dead(world: &World, id: &str) {
    let script = "echo 3 >> /state; sleep 1000";
    let mut run = world.spawn(world.command(&strs(&run_arguments(world, id, &[], script))));
    eventually("it writes", || has_written(world));
    let init = nix::unistd::Pid::from_raw(world.pid(id));
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is dead", || world.status(id) == "stopped");
}

fn has_written(world: &World) -> bool {
    let runs = fs::read_dir(world.store().join("runs")).into_iter().flatten().flatten();
    runs.map(|run| run.path().join("upper/state")).any(|path| fs::read(path).is_ok_and(|text| text.ends_with(b"3\n")))
}

fn create(world: &World, id: &str) -> Vec<String> {
    let bundle = world.bundle(|spec| spec["annotations"] = json!({"run.regen.ring": RING}));
    words(&["create", "--bundle", bundle.text(), id])
}

fn run(world: &World, id: &str) -> Vec<String> {
    run_arguments(world, id, &[], "echo 3 >> /state")
}

fn delete(_: &World, id: &str) -> Vec<String> {
    words(&["delete", "--force", id])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
