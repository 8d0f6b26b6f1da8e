//! What was moved of a large blob is not moved again, whoever was killed and whatever broke.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::json;

use super::line::{Limit, Line};
use super::{PLAIN, found, pull, push};
use crate::harness::image_registry::{Registry, Setup};
use crate::harness::ring::names;
use crate::harness::{World, eventually};

const MIB: u64 = 1 << 20;
/// Of the one blob that counts; it cannot be compressed.
const SIZE: u64 = 24 * MIB;
/// Where lines halt or break.
const HALF: u64 = 12 * MIB;
/// What at most goes over a line for the other half: whatever was on its way when it broke is lost.
const REST: u64 = 18 * MIB;

/// A world with a ring of one large entry.
fn source(name: &str) -> World {
    let world = World::new(name);
    world.run_in("a", &format!("head -c {SIZE} /dev/urandom > /noise; echo 1 >> /tmp/f")).success();
    world.pack();
    world
}

/// A ring in a registry, a line to that, and where it is to go.
fn far_away(name: &str) -> (World, World, Registry, Line) {
    let (source, target, registry) = (source(name), World::new("to"), Registry::start(Setup::Open));
    push(&source, "a", &registry.reference("a"));
    let line = Line::to(&registry);
    (source, target, registry, line)
}

/// What is kept of transfers.
fn kept(world: &World) -> Vec<PathBuf> {
    let directory = world.store().join("transfers");
    names(&directory).into_iter().map(|name| directory.join(name)).collect()
}

fn kept_bytes(world: &World) -> u64 {
    kept(world).iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len())).sum()
}

/// A command comes to a halt on the line, and is killed there.
fn kill_halted(world: &World, arguments: &[&str], halted: impl Fn() -> bool) {
    let mut running = world.spawn(world.command(arguments));
    eventually("half of it is over", || halted() || running.child.try_wait().unwrap().is_some());
    running.signal(Signal::SIGKILL);
    assert_eq!(running.finish().code, 1009, "it was not done before");
}

/// A pull that was killed when half of the blob was there.
fn half_pulled(target: &World, line: &Line) {
    line.downwards(Limit::Halt(HALF));
    let halted = || line.fetched() >= HALF && kept_bytes(target) > HALF - 2 * MIB;
    kill_halted(target, &["ring", "pull", &line.reference("a"), "b", PLAIN], halted);
    line.downwards(Limit::None);
}

#[test]
fn a_killed_pull_goes_on_in_the_middle_of_a_blob() {
    let (_source, target, _registry, line) = far_away("pull");
    half_pulled(&target, &line);
    let pulled = pull(&target, &line.reference("a"), "b");
    let fetched = pulled["fetched_bytes"].as_u64().unwrap();
    assert!(fetched < REST && line.fetched() < REST + MIB, "{fetched} {}", line.fetched());
    assert_eq!(found(&target, "b"), "1");
    assert!(kept(&target).is_empty());
    target.pack();
    target.ring(&["verify"]).success();
}

#[test]
fn a_pull_whose_registry_is_gone_leaves_no_ring_and_goes_on_later() {
    let (_source, target, _registry, line) = far_away("gone");
    line.downwards(Limit::Down(HALF));
    let failed = target.ring(&["pull", &line.reference("a"), "b", PLAIN]);
    failed.fails_with(1, "pull ring 'root/b' from 'docker://127.0.0.1:");
    assert_eq!((target.ring_json(&["ls"]), target.layers()), (json!([]), vec![]));
    line.downwards(Limit::None);
    pull(&target, &line.reference("a"), "c");
    assert!(line.fetched() < REST, "{}", line.fetched());
    assert_eq!(found(&target, "c"), "1");
    assert!(kept(&target).is_empty());
}

#[test]
fn whole_blobs_of_a_pull_that_failed_are_not_fetched_again() {
    let (source, target, _registry, line) = far_away("whole");
    source.run_in("a", &format!("head -c {SIZE} /dev/urandom > /more; echo 2 >> /tmp/f")).success();
    push(&source, "a", &line.reference("a"));
    line.downwards(Limit::Down(SIZE + HALF));
    target.ring(&["pull", &line.reference("a"), "b", PLAIN]).code(1);
    assert_eq!(target.ring_json(&["ls"]), json!([]));
    let whole = kept_bytes(&target);
    assert!(whole > SIZE, "{whole}");
    line.downwards(Limit::None);
    pull(&target, &line.reference("a"), "b");
    assert!(line.fetched() < 2 * SIZE + 2 * MIB - whole, "{} {whole}", line.fetched());
    assert_eq!(found(&target, "b"), "1 2");
}

#[test]
fn a_line_that_breaks_is_taken_up_where_it_broke() {
    let (source, target, registry, line) = far_away("break");
    line.downwards(Limit::Break(HALF));
    pull(&target, &line.reference("a"), "b");
    assert!(line.fetched() < SIZE + 2 * MIB, "{}", line.fetched());
    line.upwards(Limit::BreakAt("PATCH", 2));
    push(&source, "a", &line.reference("other"));
    assert!(line.sent() < SIZE + 2 * MIB, "{}", line.sent());
    pull(&target, &registry.reference("other"), "c");
    assert_eq!((found(&target, "b"), found(&target, "c")), ("1".into(), "1".into()));
    assert!(kept(&source).is_empty() && kept(&target).is_empty());
}

#[test]
fn a_beginning_that_is_none_is_thrown_away() {
    let (_source, target, _registry, line) = far_away("wrong");
    half_pulled(&target, &line);
    let [file] = &kept(&target)[..] else { panic!("{:?}", kept(&target)) };
    let mut bytes = fs::read(file).unwrap();
    bytes[1000] ^= 1;
    fs::write(file, bytes).unwrap();
    pull(&target, &line.reference("a"), "b");
    assert!(line.fetched() > SIZE, "all of it came anew: {}", line.fetched());
    assert_eq!(found(&target, "b"), "1");
    assert!(kept(&target).is_empty());
}

#[test]
fn what_nobody_goes_on_with_is_pruned() {
    let (_source, target, _registry, line) = far_away("prune");
    half_pulled(&target, &line);
    // A worker leaves it alone: it is not old.
    target.pack();
    assert!(kept_bytes(&target) > 0);
    let listed = target.ring_json(&["prune", "--dry-run"]);
    let of_it = |item: &&serde_json::Value| item["name"].as_str().unwrap().starts_with("transfers/blob-");
    let item = listed.as_array().unwrap().iter().find(of_it).unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(item["kind"], "leftover");
    target.ring(&["prune"]).success();
    assert!(kept(&target).is_empty());
    pull(&target, &line.reference("a"), "b");
    assert_eq!(found(&target, "b"), "1");
}

/// A push that was killed after the first piece of the blob. Debian's registry forgets an upload of which a piece breaks off.
fn half_pushed(world: &World, line: &Line) -> PathBuf {
    line.upwards(Limit::HaltAt("PATCH", 2));
    kill_halted(world, &["ring", "push", "a", &line.reference("a"), PLAIN], || line.is_halted());
    line.upwards(Limit::None);
    let [note] = &kept(world)[..] else { panic!("{:?}", kept(world)) };
    note.clone()
}

#[test]
fn a_killed_push_goes_on_behind_the_last_piece_of_a_blob() {
    let (source, target, registry) = (source("push"), World::new("to"), Registry::start(Setup::Open));
    let line = Line::to(&registry);
    half_pushed(&source, &line);
    let pushed = push(&source, "a", &line.reference("a"));
    assert!(pushed["sent_bytes"].as_u64().unwrap() < HALF && line.sent() < HALF, "{pushed} {}", line.sent());
    assert!(kept(&source).is_empty());
    pull(&target, &registry.reference("a"), "b");
    assert_eq!(found(&target, "b"), "1");
}

#[test]
fn a_push_that_breaks_off_within_a_piece_is_done_all_the_same() {
    let (source, target, registry) = (source("within"), World::new("to"), Registry::start(Setup::Open));
    let line = Line::to(&registry);
    line.upwards(Limit::Halt(HALF));
    kill_halted(&source, &["ring", "push", "a", &line.reference("a"), PLAIN], || line.is_halted());
    line.upwards(Limit::Break(HALF));
    push(&source, "a", &line.reference("a"));
    assert!(kept(&source).is_empty());
    pull(&target, &registry.reference("a"), "b");
    assert_eq!(found(&target, "b"), "1");
}

#[test]
fn an_upload_that_the_registry_does_not_know_begins_anew() {
    let (source, target, registry) = (source("lost"), World::new("to"), Registry::start(Setup::Open));
    let line = Line::to(&registry);
    let unknown = "/v2/a/blobs/uploads/00000000-0000-0000-0000-000000000000\n";
    for (round, text) in [unknown, "/v2/a/blo"].iter().enumerate() {
        let note = half_pushed(&source, &line);
        fs::write(note, text).unwrap();
        push(&source, "a", &line.reference("a"));
        assert!(line.sent() > SIZE, "{text:?}: {}", line.sent());
        assert!(kept(&source).is_empty());
        pull(&target, &registry.reference("a"), &format!("b{round}"));
        assert_eq!(found(&target, &format!("b{round}")), "1");
        registry.forget();
    }
}

#[test]
fn a_registry_that_takes_no_pieces_gets_blobs_in_one() {
    let (source, target, registry) = (source("plain"), World::new("to"), Registry::start(Setup::Open));
    let layout = source.ring_directory("a");
    let liar = super::liar::Liar::start(&layout, |asked, answer| match asked.method.as_str() {
        "HEAD" => super::liar::Answer::new(404, ""),
        "POST" => super::liar::Answer::new(202, "").with("Location: /v2/a/blobs/uploads/1"),
        "PATCH" => super::liar::Answer::new(405, ""),
        "PUT" => super::liar::Answer::new(201, ""),
        _ => answer,
    });
    let pushed = push(&source, "a", &liar.reference());
    assert!(pushed["sent_bytes"].as_u64().unwrap() > SIZE, "{pushed}");
    assert!(kept(&source).is_empty());
    push(&source, "a", &registry.reference("a"));
    pull(&target, &registry.reference("a"), "b");
    assert_eq!(found(&target, "b"), "1");
}
