//! Folding: a ring that is used for long keeps a short chain, and every entry goes on showing what it was.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

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

/// Runs all steps, each an entry, and leaves two of them. Gives what was seen of these before anything was folded.
fn run_then_leave_two(world: &World, pinned: &[&str]) -> [String; 2] {
    for step in STEPS {
        world.run_with(&["--ring", "alice", "--depth", "1000"], step).success();
    }
    world.pack();
    let seen = look_at_both(world);
    for entry in pinned {
        world.ring(&["pin", entry]).success();
    }
    world.ring(&["set", "alice", "--depth", "2"]).success();
    world.pack();
    assert!(world.layers_of("alice").len() < 4, "nothing was folded");
    seen
}

fn look_at_both(world: &World) -> [String; 2] {
    ["alice@-1", "alice"].map(|target| look(world, target))
}

fn lose_layers(world: &World) {
    for layer in world.layers_of("alice") {
        fs::remove_dir_all(world.store().join("layers").join(layer)).unwrap();
    }
}

/// The digests of the packs from which an entry's lowest layer is rebuilt.
fn lowest_packs(world: &World) -> Vec<String> {
    let record = world.ring_file("alice", "ring.json")["layers"][&world.layers_of("alice")[0]].clone();
    record["packs"].as_array().unwrap().iter().map(|pack| pack["digest"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_folded_layer_that_was_lost_is_rebuilt_from_its_packs() {
    let world = World::new("refold");
    // What a pinned entry lists is not repacked.
    let before = run_then_leave_two(&world, &["alice@-1"]);
    assert_eq!(lowest_packs(&world).len(), STEPS.len() - 1);
    let (chain, seen) = (world.layers_of("alice"), look_at_both(&world));
    assert_eq!(seen.each_ref().map(|text| without_moments(text)), before.each_ref().map(|text| without_moments(text)));
    let manifest = world.ring_json(&["show", "alice"])["digest"].clone();
    let packs = world.closure("alice").len() - 2;
    assert_eq!(packs, STEPS.len(), "packs stay as they are, so that digests that were pushed stay true");
    lose_layers(&world);
    assert_eq!(look_at_both(&world), seen);
    assert_eq!(world.layers_of("alice"), chain);
    assert_eq!(world.ring_json(&["show", "alice"])["digest"], manifest);
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
}

#[test]
fn a_repacked_layer_that_was_lost_is_rebuilt_as_it_was() {
    let world = World::new("repack");
    let before = run_then_leave_two(&world, &[]);
    let (chain, seen) = (world.layers_of("alice"), look_at_both(&world));
    assert_eq!(seen.each_ref().map(|text| without_moments(text)), before.each_ref().map(|text| without_moments(text)));
    assert_eq!(lowest_packs(&world).len(), 1);
    lose_layers(&world);
    assert_eq!(look_at_both(&world), seen);
    assert_eq!(world.layers_of("alice"), chain);
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
}

#[test]
fn packs_that_were_replaced_stay_with_the_entries_that_list_them_and_leave_with_the_last() {
    let world = World::new("replaced");
    for step in STEPS {
        world.run_with(&["--ring", "alice", "--depth", "1000"], step).success();
    }
    world.pack();
    let before = ["alice@-1", "alice"].map(|target| world.closure(target));
    world.ring(&["set", "alice", "--depth", "2"]).success();
    world.pack();
    assert_eq!(["alice@-1", "alice"].map(|target| world.closure(target)), before, "what was pushed stays true");
    assert!(before.iter().flatten().all(|blob| world.blobs("alice").contains(blob)));
    let [new] = &lowest_packs(&world)[..] else { panic!("it was not repacked") };
    assert!(world.ring(&["verify"]).success().stdout().is_empty());

    run_packed(&world, ["echo one > /one".to_owned()]);
    let digest = world.ring_json(&["show", "alice"])["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    let manifest = world.ring_file("alice", &format!("blobs/sha256/{digest}"));
    let lowest = &manifest["layers"][0];
    assert_eq!(lowest["digest"], **new);
    let replaces = lowest["annotations"]["run.regen.pack.replaces"].as_str().unwrap().to_owned();
    assert_eq!(replaces.split(' ').count(), STEPS.len() - 1);
    assert!(replaces.split(' ').all(|old| before[0].contains(&old.to_owned())));
    assert!(world.ring(&["verify"]).success().stdout().is_empty());

    run_packed(&world, ["echo two > /two".to_owned()]);
    assert!(!replaces.split(' ').any(|old| world.blobs("alice").contains(&old.to_owned())));
    assert!(world.ring_file("alice", "ring.json")["repacked"].is_null());
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
    assert_eq!(world.run_in("alice", "cat /one /two /etc/passwd").success().stdout(), "one\ntwo\nback\n");
}

#[test]
fn a_layer_for_whose_new_pack_there_is_no_room_keeps_the_old_ones() {
    let world = World::new("noroom");
    run_then_leave_two(&world, &["alice@-1"]);
    let packs = lowest_packs(&world);
    let full = world.base().join("full.toml");
    fs::write(&full, "[store]\nmin-free = \"100%\"\n").unwrap();
    world.regen(&["--config", full.to_str().unwrap(), "ring", "unpin", "alice@-1"]).success();
    world.regen(&["--config", full.to_str().unwrap(), "ring", "pack"]).success();
    assert_eq!(lowest_packs(&world), packs);
    world.pack();
    assert_eq!(lowest_packs(&world).len(), 1);
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

/// Runs scripts in a ring of depth 2, one after another, each packed before the next.
fn run_packed(world: &World, scripts: impl IntoIterator<Item = String>) {
    for script in scripts {
        world.run_with(&["--ring", "alice", "--depth", "2"], &script).success();
        world.pack();
    }
}

#[test]
fn a_large_layer_stays_what_it_is_below_any_number_of_small_ones() {
    let world = World::new("large");
    let large =
        "mkdir /data; head -c 6000000 /dev/urandom > /data/large; for n in $(seq 50); do echo $n > /data/$n; done";
    run_packed(&world, [large.to_owned(), "true > /first".to_owned()]);
    let (bottom, packs) = (world.layers_of("alice")[0].clone(), lowest_packs(&world));
    run_packed(&world, (0..24).map(|n| format!("echo {n} > /data/$(({n} % 7)); echo {n} >> /log")));
    let chain = world.layers_of("alice");
    assert_eq!((&chain[0], lowest_packs(&world)), (&bottom, packs));
    assert!(chain.len() <= 2 + 9, "{} layers", chain.len());
    assert_eq!(world.run_in("alice", "cat /data/3; wc -l < /log").success().stdout(), "17\n24\n");
    assert!(world.ring(&["verify"]).success().stdout().is_empty());
}

#[test]
fn what_no_entry_shows_any_more_does_not_stay_on_the_disk() {
    let world = World::new("waste");
    let write =
        |n: u64| format!("echo {n} > /n; head -c 1500000 /dev/urandom > /data; head -c 700000 /dev/zero > /z{}", n % 2);
    run_packed(&world, (0..7).map(write));
    let (layers, shown) = (layer_bytes(&world), shown_bytes(&world, "alice"));
    assert!(layers * 2 <= shown * 3, "{layers} bytes of layers for {shown} that some entry shows");

    // What is deleted is on no list of what is large.
    run_packed(&world, ["rm /data /z0 /z1; echo a > /a", "echo b > /b", "echo c > /c"].map(str::to_owned));
    let (layers, shown) = (layer_bytes(&world), shown_bytes(&world, "alice"));
    assert!(layers < 700_000 && shown < 200_000, "{layers} bytes of layers for {shown} that some entry shows");
    assert_eq!(
        world.run_in("alice", "cat /n /a /b /c; ls -d /data /z0 2>&1 | wc -l").success().stdout(),
        "6\na\nb\nc\n2\n"
    );
}

/// What all layers take on disk.
fn layer_bytes(world: &World) -> u64 {
    let mut files = HashMap::new();
    let mut pending = vec![world.store().join("layers")];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        files.insert(metadata.ino(), metadata.blocks() * 512);
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|child| child.unwrap().path()));
        }
    }
    files.values().sum()
}

/// What of that the entries of a ring show, directories included.
fn shown_bytes(world: &World, ring: &str) -> u64 {
    let mut shown = HashMap::new();
    for seq in world.seqs(ring) {
        let layers = world.layers_of(&format!("{ring}@{seq}"));
        show(layers.iter().rev().map(|id| world.layer(id)).collect(), &mut shown);
    }
    shown.values().sum()
}

/// Adds what directories, uppermost first, show together.
fn show(directories: Vec<PathBuf>, shown: &mut HashMap<u64, u64>) {
    let mut names: HashSet<OsString> = HashSet::new();
    for directory in &directories {
        let metadata = fs::symlink_metadata(directory).unwrap();
        shown.insert(metadata.ino(), metadata.blocks() * 512);
        names.extend(fs::read_dir(directory).unwrap().map(|child| child.unwrap().file_name()));
    }
    for name in names {
        let found = directories.iter().map(|directory| directory.join(&name));
        let mut found = found.filter_map(|path| Some((fs::symlink_metadata(&path).ok()?, path))).peekable();
        let (first, _) = found.peek().unwrap();
        if first.is_dir() {
            show(found.take_while(|(metadata, _)| metadata.is_dir()).map(|(_, path)| path).collect(), shown);
        } else if !first.file_type().is_char_device() {
            shown.insert(first.ino(), first.blocks() * 512);
        }
    }
}
