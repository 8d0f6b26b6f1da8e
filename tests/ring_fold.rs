//! Folding: a ring that is used for long keeps a short chain, and every entry goes on showing what it was.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::Path;

use harness::{World, eventually};

/// More of them than are folded at once; each stands on what the ones before it did.
const STEPS: &[&str] = &[
    "mkdir -p /srv/tree/deep /srv/opaque /srv/plain; echo 1 > /srv/tree/deep/f; echo 1 > /srv/opaque/old; echo 1 > /srv/file",
    "echo 2 > /srv/tree/g; ln /srv/tree/g /srv/tree/deep/linked; echo 2 > /srv/plain/b",
    "rm -r /srv/opaque; mkdir /srv/opaque; echo 3 > /srv/opaque/new",
    "rm /etc/passwd; rm /srv/plain/b; echo 4 > /srv/plain/c",
    "rm /srv/file; mkdir /srv/file; echo 5 > /srv/file/inside",
    "rm -r /srv/tree/deep; echo 6 > /srv/tree/deep; mkdir /srv/tree/later",
    "rm -r /usr; mkdir -m 1777 /usr; chown 70000:70001 /usr",
    "rm /srv/tree/deep; mkdir /srv/tree/deep; echo 8 > /srv/tree/deep/again",
    "ln -s /nowhere /srv/link; mkfifo /srv/pipe; ln /srv/link /srv/link2",
    "rm -r /srv/opaque; echo 10 > /srv/opaque; chmod 600 /srv/opaque",
    "mv /srv/plain/c /srv/plain/moved; echo 11 > /srv/tree/g",
    "rm -r /bin/vi /srv/plain; mkdir -p /srv/plain/x/y; echo 12 > /srv/plain/x/y/z",
    "rm -r /srv/file/inside; echo back > /etc/passwd; chmod 4755 /srv/opaque",
    "rm -r /srv/tree; mkdir -p /srv/tree/only; touch -d @1000000000 /srv/tree/only /srv/tree /srv",
];

/// Everything that a container sees of what the steps touch.
const LOOK: &str = "cd /; find srv etc usr bin/vi bin/sh 2>/dev/null | sort | while read -r p; do \
     stat -c '%n %F %a %u:%g %h %Y' \"$p\"; test -f \"$p\" && test ! -h \"$p\" && test \"$p\" != bin/sh && cat \"$p\"; \
     test -h \"$p\" && readlink \"$p\"; done; true";

fn look(world: &World, target: &str) -> String {
    world.run_in(target, LOOK).success().stdout().to_owned()
}

/// Runs all steps in a ring of depth 2, packing after some, and gives what was seen after the last two.
fn run_steps(world: &World, pack_every: usize) -> [String; 2] {
    let mut seen = [String::new(), String::new()];
    for (index, step) in STEPS.iter().enumerate() {
        world.run_with(&["--ring", "alice", "--depth", "2"], step).success();
        if index % pack_every == 0 {
            world.pack();
        }
        if index + 2 >= STEPS.len() {
            // Merged layers share files with those that they were merged from, until these are collected: as long as that
            // takes, link counts are higher.
            world.pack();
            seen[index + 2 - STEPS.len()] = look(world, "alice");
        }
    }
    world.pack();
    seen
}

/// What is seen without any folding, in another ring.
fn unfolded(world: &World) -> [String; 2] {
    for step in STEPS {
        world.run_with(&["--ring", "long", "--depth", "1000"], step).success();
    }
    let last = STEPS.len();
    [format!("long@{}", last - 1), format!("long@{last}")].map(|target| look(world, &target))
}

/// Times and link counts of directories tell when and how they were made.
fn without_moments(text: &str) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields.as_slice() {
            [all @ .., _links, _time] if all.len() >= 4 => lines.push_str(&all.join(" ")),
            _ => lines.push_str(line),
        }
        lines.push('\n');
    }
    lines
}

#[test]
fn a_long_used_ring_has_a_short_chain_that_shows_the_same() {
    let world = World::new("fold");
    let seen = run_steps(&world, 3);
    let seqs = world.seqs("alice");
    assert_eq!(seqs.len(), 2);
    let chain = world.layers_of("alice");
    assert!(chain.len() < STEPS.len(), "nothing was folded: {} layers", chain.len());
    let mut layers = chain.clone();
    layers.sort();
    assert_eq!(world.layers(), layers, "what was folded is gone");
    assert_eq!([look(&world, "alice@-1"), look(&world, "alice")], seen);
    assert_eq!(world.seqs("alice"), seqs);
    assert!(world.ring(&["verify"]).success().stdout().is_empty());

    let long = unfolded(&world);
    assert_eq!(world.layers_of("long").len(), STEPS.len());
    assert_eq!(seen.each_ref().map(|text| without_moments(text)), long.each_ref().map(|text| without_moments(text)));
    assert!(world.ring(&["diff", "alice", "long"]).success().stdout().lines().all(|line| line.starts_with("M ")));
}

#[test]
fn a_folded_layer_that_was_lost_is_rebuilt_from_its_packs() {
    let world = World::new("refold");
    let seen = run_steps(&world, 1000);
    let chain = world.layers_of("alice");
    assert!(chain.len() < STEPS.len());
    let manifest = world.ring_json(&["show", "alice"])["digest"].clone();
    let packs = world.closure("alice").len() - 2;
    assert_eq!(packs, STEPS.len(), "packs stay as they are, so that digests that were pushed stay true");
    for layer in &chain {
        fs::remove_dir_all(world.store().join("layers").join(layer)).unwrap();
    }
    assert_eq!([look(&world, "alice@-1"), look(&world, "alice")], seen);
    assert_eq!(world.layers_of("alice"), chain);
    assert_eq!(world.ring_json(&["show", "alice"])["digest"], manifest);
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
}

#[test]
fn an_old_container_runs_on_while_the_layers_under_it_are_folded() {
    let world = World::new("busyfold");
    for step in &STEPS[..STEPS.len() - 1] {
        world.run_with(&["--ring", "alice", "--depth", "1000"], step).success();
    }
    let before = world.layers_of("alice");
    let id = world.detach_in(
        "alice",
        "until test -e /tmp/go; do sleep 0.01; done; rm -r /srv/tree; echo end > /srv/end; touch /tmp/done",
    );
    world.ring(&["set", "alice", "--depth", "1"]).success();
    world.pack();
    let folded = world.layers_of("alice");
    assert!(folded.len() < before.len(), "nothing was folded");
    let root = world.pid(&id);
    fs::write(Path::new(&format!("/proc/{root}/root/tmp/go")), "").unwrap();
    eventually("it ends", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
    world.pack();

    let chain = world.layers_of("alice");
    assert_eq!(chain[..folded.len()], folded, "the new entry stands on what was folded meanwhile");
    assert!(world.layers().iter().all(|layer| chain.contains(layer)), "the old layers are gone with the container");
    let text = look(&world, "alice");
    assert!(text.contains("srv/end regular file") && text.contains("srv/plain/x/y/z"), "{text}");
    assert!(!text.contains("srv/tree"), "{text}");
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
}
