//! Containers that are made before anybody knows what they are called.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::{Directory, World, eventually};
use regen::config::Config;
use regen::error::Kind;
use regen::ops::{Place, name};
use regen::runtime::{self, StateRoot};
use serde_json::{Value, json};

/// A container that waits.
fn created(world: &World, bundle: &Directory) -> String {
    let id = world.id("a");
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    id
}

/// What a crash between the two steps of a rename leaves.
fn half_renamed(world: &World, id: &str, to: &str) {
    std::os::unix::fs::symlink(to, world.state_directory(id).join("name")).unwrap();
}

fn rename(world: &World, from: &str, to: &str) -> regen::error::Result<()> {
    runtime::rename(&StateRoot::new(world.root()), &from.parse().unwrap(), &to.parse().unwrap())
}

#[test]
fn a_container_that_waits_is_renamed_and_every_verb_finds_it_under_its_new_name() {
    let world = World::new("rename");
    let id = created(&world, &world.shell("sleep 1000"));
    let new = world.id("b");
    rename(&world, &id, &new).unwrap();
    world.regen(&["state", &id]).fails_with(1, "does not exist");
    let state = world.state(&new);
    assert_eq!((state["id"].as_str().unwrap(), state["status"].as_str().unwrap()), (&*new, "created"));
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), format!("{new}\n"));
    let error = rename(&world, &new, &world.id("c")).unwrap_err();
    assert!(error.to_string().contains("renamed before"), "{error}");
    world.regen(&["start", &new]).success();
    assert_eq!(world.regen(&["exec", &new, "hostname"]).success().stdout(), "box\n");
    world.regen(&["pause", &new]).success();
    world.regen(&["resume", &new]).success();
    world.regen(&["kill", &new, "KILL"]).success();
    eventually("it stops", || world.status(&new) == "stopped");
    world.regen(&["delete", &new]).success();
}

#[test]
fn a_rename_that_was_cut_short_changes_nothing_and_is_done_again_with_any_name() {
    let world = World::new("cut");
    let id = created(&world, &world.shell("sleep 1000"));
    half_renamed(&world, &id, &world.id("b"));
    assert_eq!(world.state(&id)["id"], id);
    world.regen(&["state", &world.id("b")]).fails_with(1, "does not exist");
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), format!("{id}\n"));
    let new = world.id("c");
    rename(&world, &id, &new).unwrap();
    assert_eq!(world.state(&new)["id"], new);
    world.delete(&new);
}

#[test]
fn a_container_is_not_renamed_over_another_and_not_once_it_runs() {
    let world = World::new("taken");
    let other = world.sleeper("b");
    let id = created(&world, &world.shell("sleep 1000"));
    assert_eq!(rename(&world, &id, &other).unwrap_err().kind(), Kind::Exists);
    assert_eq!(world.status(&id), "created");
    world.regen(&["start", &id]).success();
    let error = rename(&world, &id, &world.id("c")).unwrap_err();
    assert!(error.to_string().contains("it is running"), "{error}");
    assert_eq!(rename(&world, &world.id("d"), &world.id("c")).unwrap_err().kind(), Kind::NotFound);
    world.delete(&id);
    world.delete(&other);
}

#[test]
fn a_directory_that_was_only_moved_is_damaged() {
    let world = World::new("moved");
    let id = created(&world, &world.shell("sleep 1000"));
    let new = world.id("b");
    fs::rename(world.state_directory(&id), world.state_directory(&new)).unwrap();
    world.regen(&["state", &new]).fails_with(1, "belongs to");
    fs::rename(world.state_directory(&new), world.state_directory(&id)).unwrap();
    world.delete(&id);
}

#[test]
fn what_a_renamed_container_changes_is_saved_under_its_ring() {
    let world = World::new("ring");
    let new = world.id("b");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "echo hi > /etc/motd; sleep 1000"]);
        spec["annotations"] = json!({"run.regen.ring": "mine"});
    });
    let id = created(&world, &bundle);
    rename(&world, &id, &new).unwrap();
    // A ring in use is nobody else's, and what nobody needs is collected.
    world.regen(&["ring", "rm", "mine"]).fails_with(1, "in use");
    world.regen(&["ring", "recover"]).success();
    world.regen(&["start", &new]).success();
    eventually("it has changed something", || world.regen(&["exec", &new, "cat", "/etc/motd"]).code == 0);
    world.regen(&["ring", "snapshot", "mine"]).success();
    let place = Place {
        root: StateRoot::new(world.root()),
        store: world.store(),
        owner: "root".parse().unwrap(),
        config: Config::default(),
        config_file: None,
    };
    name::note(&place, &new.parse().unwrap()).unwrap();
    assert!(world.regen(&["ring", "ls"]).success().stdout().contains(&new));
    world.regen(&["exec", &new, "touch", "/etc/more"]).success();
    world.regen(&["ring", "snapshot", "mine"]).success();
    world.delete(&new);
    let log: Value = serde_json::from_str(world.regen(&["ring", "log", "mine", "--json"]).success().stdout()).unwrap();
    assert_eq!(log.as_array().unwrap().len(), 3, "two snapshots and the end: {log}");
}
