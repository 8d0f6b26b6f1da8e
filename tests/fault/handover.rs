//! A ring that passes to another container while the old one goes on: whoever does that, or saves what the old one still
//! wrote, is killed at every step.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{World, eventually};
use crate::phase::{Next, Phase, RING};
use crate::{PLAIN, delete, running, words};

#[test]
fn a_killed_snapshot_leaves_its_container_running() {
    let command = |_: &World, _: &str| words(&["ring", "snapshot", RING]);
    let next = Next::GoesOn;
    Phase { name: "snapshot", arm: running, command, next, allowed: &["1 2 3"], ..PLAIN }.check();
}

#[test]
fn a_killed_snapshot_over_another_one_leaves_both_as_they_should_be() {
    let arm = |world: &World, id: &str| {
        running(world, id);
        world.ring(&["snapshot", RING]).success();
        world.regen(&["exec", id, "sh", "-c", "echo 4 >> /state"]).success();
    };
    let command = |_: &World, _: &str| words(&["ring", "snapshot", RING]);
    let check = |world: &World| {
        let snapshots = world.log(RING).into_iter().rev().filter(|entry| entry["reason"] == "snapshot");
        let states = snapshots.map(|entry| {
            let shown = world.ring(&["cat", &format!("{RING}@{}", entry["seq"]), "/state"]);
            shown.success().stdout().split_whitespace().collect::<Vec<_>>().join(" ")
        });
        let states: Vec<_> = states.collect();
        assert!(states == ["1 2 3"] || states == ["1 2 3", "1 2 3 4"], "{states:?}");
    };
    let allowed = &["1 2 3 4"];
    Phase { name: "snapshot over another", arm, command, next: Next::GoesOn, allowed, check, ..PLAIN }.check();
}

#[test]
fn a_killed_hand_over_loses_nothing_of_the_old_container() {
    let command = |_: &World, id: &str| words(&["handover", "prepare", id]);
    let next = Next::GoesOn;
    let check = |world: &World| assert_eq!(beside(world), [""; 0]);
    Phase { name: "hand over", arm: running, command, next, allowed: &["1 2 3"], check, ..PLAIN }.check();
}

#[test]
fn a_hand_over_that_is_killed_again_is_prepared_again() {
    let arm = |world: &World, id: &str| {
        running(world, id);
        world.regen(&["handover", "prepare", id]).success();
    };
    let command = |_: &World, id: &str| words(&["handover", "prepare", id]);
    let next = Next::GoesOn;
    Phase { name: "hand over again", arm, command, next, allowed: &["1 2 3"], ..PLAIN }.check();
}

#[test]
fn what_an_old_container_still_wrote_outlives_a_killed_delete() {
    let arm = |world: &World, id: &str| {
        followed(world, id);
        write(world, id, "late");
    };
    let check = |world: &World| assert_eq!(beside(world), ["exit"]);
    let allowed = &["1 2 3 4"];
    Phase { name: "delete beside", arm, command: delete, allowed, check, ..PLAIN }.check();
}

#[test]
fn a_killed_delete_of_an_old_container_that_wrote_nothing_more_adds_nothing() {
    let check = |world: &World| assert_eq!(beside(world), [""; 0]);
    let allowed = &["1 2 3 4"];
    Phase { name: "delete beside unchanged", arm: followed, command: delete, allowed, check, ..PLAIN }.check();
}

#[test]
fn a_killed_recovery_of_an_old_container_is_done_again() {
    let arm = |world: &World, id: &str| {
        followed(world, id);
        write(world, id, "late");
        let first = world.pid(id);
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        eventually("it is dead", || world.status(id) == "stopped");
    };
    let command = |_: &World, _: &str| words(&["ring", "recover"]);
    let check = |world: &World| assert_eq!(beside(world), ["recovered"]);
    let next = Next::Run;
    Phase { name: "recover beside", arm, command, next, allowed: &["1 2 3 4"], check, ..PLAIN }.check();
}

#[test]
fn a_killed_undo_leaves_the_ring_to_one_of_both() {
    let command = |world: &World, id: &str| {
        let token = hand_over(world, id);
        world.run_in(RING, "echo broken >> /state; exit 1").code(1);
        write(world, id, "late");
        words(&["handover", "undo", &token.to_string()])
    };
    // The one whose state is not the newest has an entry all the same.
    let check = |world: &World| assert_eq!(beside(world), ["exit"]);
    let allowed = &["1 2 3 late", "1 2 3 broken"];
    let next = Next::GoesOn;
    Phase { name: "undo", arm: running, command, next, allowed, check, ..PLAIN }.check();
}

/// A container that has handed its ring over, to one that has ended since.
fn followed(world: &World, id: &str) {
    running(world, id);
    hand_over(world, id);
    world.run_in(RING, "echo 4 >> /state").success();
}

fn hand_over(world: &World, id: &str) -> Value {
    serde_json::from_str(world.regen(&["handover", "prepare", id]).success().stdout()).unwrap()
}

fn write(world: &World, id: &str, line: &str) {
    world.regen(&["exec", id, "sh", "-c", &format!("echo {line} >> /state")]).success();
}

/// The reasons of the entries beside the main line.
fn beside(world: &World) -> Vec<String> {
    let log = world.log(RING);
    let sides = log.iter().filter(|entry| entry["side"] == true);
    sides.map(|entry| entry["reason"].as_str().unwrap().to_owned()).collect()
}
