//! What becomes of operations when the daemon dies: none is lost, and none is done twice.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::json;

use super::{claim, list, probe, show};
use crate::harness::{World, eventually};

#[test]
fn what_was_queued_or_running_when_the_daemon_was_killed_goes_on() {
    let world = World::new("op-killed");
    let mut daemon = world.daemon();
    // More than are at work at a time.
    let running = probe(&world, 32, 1000);
    let mut ids = BTreeSet::from([running.clone()]);
    ids.extend((0..50).map(|_| probe(&world, 1, 10)));
    ids.insert(probe(&world, 10_000, 0));
    // On a busy machine it may be through already.
    eventually("the first is at work", || show(&daemon, &running)["state"] != "queued");
    daemon.crash();
    let listed = list(&daemon, &["--limit", "1000"]);
    let found: BTreeSet<_> = listed.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(found, ids, "none is lost");
    for id in &ids {
        world.regen(&["op", "wait", id]).success();
    }
    assert!(list(&daemon, &[]).iter().all(|one| one["state"] == "succeeded"));
}

#[test]
fn what_is_held_stays_held_over_the_death_of_the_daemon() {
    let world = World::new("op-held");
    let mut daemon = world.daemon();
    let id = claim(&world, "probe/1", 600_000).unwrap();
    eventually("it runs", || show(&daemon, &id)["state"] == "running");
    daemon.crash();
    let error = claim(&world, "probe/1", 0).unwrap_err().to_string();
    assert!(error.contains(&format!("operation {id} has it")), "{error}");
    world.regen(&["op", "cancel", &id]).success();
    eventually("it is over", || show(&daemon, &id)["state"] == "cancelled");
    claim(&world, "probe/1", 0).unwrap();
}

#[test]
fn a_restart_that_was_half_done_is_told_as_it_is_found() {
    let world = World::new("op-half");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let slow = ["upgrade", &name, "--to", "1.1.0", "--ready", "notify", "--ready-timeout", "1h", "--no-wait"];
    let id = daemon.service(&slow).success().stdout().trim_end().to_owned();
    eventually("its instance is there", || daemon.show(&name)["instances"].as_array().unwrap().len() == 2);
    daemon.crash();
    let words = "the daemon ended while it was being done, and everything is as it was before";
    world.regen(&["op", "wait", &id]).fails_with(1, words);
    assert_eq!(show(&daemon, &id)["state"], "failed");
    daemon.await_rest(&name);
    assert_eq!(daemon.show(&name)["version"], json!("1.0.0"));
    daemon.service(&["restart", &name]).success();
}

#[test]
fn a_removal_that_was_half_done_is_done() {
    let world = World::new("op-halfgone");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--drain-timeout", "1h"]);
    let open = std::net::TcpStream::connect(("127.0.0.1", daemon.port(&name))).unwrap();
    let id = daemon.service(&["rm", &name, "--no-wait"]).success().stdout().trim_end().to_owned();
    eventually("it goes", || daemon.show(&name)["state"] == "removing");
    daemon.end(Signal::SIGKILL);
    daemon.start();
    drop(open);
    world.regen(&["op", "wait", &id]).success();
    assert!(daemon.list().is_empty());
}
