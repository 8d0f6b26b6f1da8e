//! The ring on disk: other tools read it, what was lost is rebuilt from it, and what is wrong in it is found.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use harness::World;
use serde_json::{Value, json};

/// A ring of three packed entries.
fn three_entries(name: &str) -> World {
    let world = World::new(name);
    for n in 1..=3 {
        world.run_in("alice", &format!("echo {n} > /tmp/newest; echo x > /tmp/{n}")).success();
    }
    world.pack();
    world
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// The file of the topmost layer's blob of an entry.
fn blob_of(world: &World, target: &str) -> PathBuf {
    let digest = world.ring_json(&["show", target])["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    let manifest = world.ring_file("alice", &format!("blobs/sha256/{digest}"));
    let layer = manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned();
    world.ring_directory("alice").join("blobs/sha256").join(&layer["sha256:".len()..])
}

/// Changes one byte in the middle of a file, and nothing else about it.
fn flip_byte(file: &std::path::Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// What `ring verify` finds, in lines.
#[track_caller]
fn faults(world: &World) -> Vec<String> {
    let output = world.ring(&["verify", "alice"]);
    let lines: Vec<_> = output.stdout().lines().map(str::to_owned).collect();
    output.code(i32::from(!lines.is_empty()));
    assert_eq!(world.ring(&["verify"]).stdout(), output.stdout(), "of one ring as of all");
    lines
}

/// Repairs what can be, and waits for the worker that this starts: it would mend what the test breaks next.
fn recover(world: &World) {
    world.ring(&["recover"]).success();
    world.pack();
}

#[test]
fn skopeo_and_umoci_read_a_ring_as_the_image_layout_that_it_is() {
    let world = three_entries("tools");
    let log = world.log("alice");
    let directory = world.ring_directory("alice");
    for entry in &log {
        let id = entry["id"].as_str().unwrap();
        let source = format!("oci:{}:{id}", directory.display());
        let raw = world.finish(command("skopeo", &["inspect", "--raw", &source]));
        let manifest: Value = serde_json::from_str(raw.success().stdout()).unwrap();
        let annotations = &manifest["annotations"];
        assert_eq!(annotations["org.opencontainers.image.created"], entry["created"]);
        assert_eq!(annotations["run.regen.entry.seq"], entry["seq"].to_string());
        assert_eq!(annotations["run.regen.entry.delta"], "true");
        assert_eq!(annotations["run.regen.ring"], "root/alice");
        for layer in manifest["layers"].as_array().unwrap() {
            assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
        }
        let inspected = world.finish(command("skopeo", &["inspect", &source]));
        let inspected: Value = serde_json::from_str(inspected.success().stdout()).unwrap();
        assert_eq!(
            (&inspected["Os"], inspected["Layers"].as_array().unwrap().len()),
            (&json!("linux"), entry["layers"].as_array().unwrap().len())
        );
        assert!(inspected["Architecture"].as_str().is_some_and(|name| !name.is_empty()));
        // The annotations are the manifest's own, so a copy keeps them.
        let copy = format!("oci-archive:{}/{id}.tar:{id}", world.base().display());
        world.finish(command("skopeo", &["copy", "--quiet", &source, &copy])).success();
        let raw = world.finish(command("skopeo", &["inspect", "--raw", &copy]));
        assert_eq!(serde_json::from_str::<Value>(raw.success().stdout()).unwrap(), manifest);
        let image = format!("{}:{id}", directory.display());
        world.finish(command("umoci", &["stat", "--image", &image])).success();
    }
    let listed = world.finish(command("umoci", &["list", "--layout", directory.to_str().unwrap()]));
    assert_eq!(listed.success().stdout().lines().count(), 3);
}

#[test]
fn a_layer_that_was_lost_is_rebuilt_from_its_pack() {
    let world = three_entries("lost");
    world.run_in("alice", "rm /tmp/1; rm -r /etc; mkdir -m 700 /etc; echo new > /etc/f; chown 7:8 /etc/f").success();
    world.pack();
    let look = "ls -lan /etc /tmp; stat -c '%a %u:%g %y %n' / /etc /tmp /bin; cat /tmp/* /etc/f";
    let before = world.run_in("alice", look).success().stdout().to_owned();
    for layer in world.layers() {
        fs::remove_dir_all(world.store().join("layers").join(layer)).unwrap();
    }
    assert_eq!(faults(&world).iter().filter(|fault| fault.contains("its directory is gone")).count(), 4);
    assert_eq!(world.run_in("alice", look).success().stdout(), before);
    assert!(faults(&world).is_empty());
    assert_eq!(world.seqs("alice"), [4, 3, 2, 1], "rebuilding is no change");
    // A look rebuilds as well.
    fs::remove_dir_all(world.store().join("layers").join(&world.layers_of("alice")[3])).unwrap();
    assert!(world.ring(&["diff", "alice@3", "@4"]).success().stdout().contains("D /tmp/1\n"));
}

#[test]
fn a_damaged_pack_is_refused_before_anything_of_it_is_used() {
    let world = three_entries("damaged");
    let top = world.layers_of("alice").pop().unwrap();
    let blob = blob_of(&world, "alice");
    let whole = fs::read(&blob).unwrap();
    fs::remove_dir_all(world.store().join("layers").join(&top)).unwrap();
    let expect = |words: &str| {
        let before = world.picture();
        world.run_in("alice", "true").fails_with(1, words);
        assert_eq!(world.picture(), before, "{words}");
        assert!(!world.layer(&top).exists());
    };
    flip_byte(&blob);
    expect("digest");
    fs::write(&blob, &whole[..whole.len() / 2]).unwrap();
    expect("");
    fs::write(&blob, [&whole[..], b"more"].concat()).unwrap();
    expect("");
    fs::remove_file(&blob).unwrap();
    expect("");
    // The entries below it are as good as ever.
    assert_eq!(world.run_in("alice@2", "cat /tmp/newest").success().stdout(), "2\n");
    fs::write(&blob, whole).unwrap();
    assert_eq!(world.run_in("alice", "cat /tmp/newest").success().stdout(), "3\n");
}

#[test]
fn a_layer_that_was_lost_before_it_was_packed_says_so() {
    let world = three_entries("unpacked");
    let lock = fs::File::open(world.store().join("worker.lock")).unwrap();
    lock.lock().unwrap();
    world.run_in("alice", "touch /tmp/4").success();
    let top = world.layers_of("alice").pop().unwrap();
    fs::remove_dir_all(world.store().join("layers").join(&top)).unwrap();
    world.run_in("alice", "true").fails_with(1, "it was never packed: start from another entry");
    assert_eq!(faults(&world).len(), 1);
    drop(lock);
    world.ring(&["pack"]).fails_with(1, &top);
    assert_eq!(world.run_in("alice@3", "cat /tmp/newest").success().stdout(), "3\n");
    world.ring(&["rollback", "alice", "--to", "@3"]).success();
    assert_eq!(world.run_in("alice", "cat /tmp/newest").success().stdout(), "3\n");
}

#[test]
fn verify_finds_a_flipped_byte_in_a_blob() {
    let world = three_entries("flipped");
    assert!(faults(&world).is_empty());
    let blob = blob_of(&world, "alice@2");
    flip_byte(&blob);
    let found = faults(&world);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(blob.file_name().unwrap().to_str().unwrap()), "{found:?}");
    flip_byte(&blob);
    assert!(faults(&world).is_empty());
    fs::remove_file(&blob).unwrap();
    assert_eq!(faults(&world).len(), 1);
}

#[test]
fn verify_finds_a_manifest_or_a_config_that_is_missing_or_changed() {
    let world = three_entries("manifest");
    let blobs = world.ring_directory("alice").join("blobs/sha256");
    let digest = world.ring_json(&["show", "alice@2"])["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    let config = world.ring_file("alice", &format!("blobs/sha256/{digest}"))["config"]["digest"].clone();
    let config = config.as_str().unwrap()["sha256:".len()..].to_owned();
    for blob in [digest, config] {
        let aside = world.base().join("aside");
        fs::rename(blobs.join(&blob), &aside).unwrap();
        let found = faults(&world);
        assert!(found.len() == 1 && found[0].contains("entry @2"), "{found:?}");
        fs::copy(&aside, blobs.join(&blob)).unwrap();
        flip_byte(&blobs.join(&blob));
        let found = faults(&world);
        assert!(found.len() == 1 && found[0].contains("entry @2"), "{found:?}");
        fs::rename(&aside, blobs.join(&blob)).unwrap();
        assert!(faults(&world).is_empty());
    }
}

#[test]
fn verify_finds_an_index_that_somebody_edited_and_recover_repairs_it() {
    let world = three_entries("edited");
    let index = world.ring_directory("alice").join("index.json");
    let good = world.ring_file("alice", "index.json");
    let edits: [fn(&mut Value); 3] = [
        |index| drop(index["manifests"].as_array_mut().unwrap().remove(1)),
        |index| index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = json!("mine"),
        |index| index["manifests"][0]["digest"] = index["manifests"][1]["digest"].clone(),
    ];
    for edit in edits {
        world.edit_ring_file("alice", "index.json", edit);
        let found = faults(&world);
        assert!(found.len() == 1 && found[0].contains("index.json"), "{found:?}");
        assert_eq!(world.run_in("alice", "cat /tmp/newest").success().stdout(), "3\n", "runs do not need it");
        recover(&world);
        assert!(faults(&world).is_empty());
        fs::write(&index, good.to_string()).unwrap();
    }
    for text in ["", "{", "[]", "\"x\"", "{\"manifests\": 7}"] {
        fs::write(&index, text).unwrap();
        assert_eq!(faults(&world).len(), 1, "{text}");
        assert_eq!(world.run_in("alice", "cat /tmp/newest").success().stdout(), "3\n");
        recover(&world);
        assert!(faults(&world).is_empty());
        assert_eq!(world.ring_file("alice", "index.json"), good, "{text}");
    }
    fs::remove_file(&index).unwrap();
    recover(&world);
    assert_eq!(world.ring_file("alice", "index.json"), good);
    fs::remove_file(world.ring_directory("alice").join("oci-layout")).unwrap();
    assert_eq!(faults(&world).len(), 1);
    recover(&world);
    assert!(faults(&world).is_empty());
}

#[test]
fn a_broken_index_keeps_no_entry_from_being_sealed() {
    let world = three_entries("index");
    fs::write(world.ring_directory("alice").join("index.json"), "{").unwrap();
    world.run_in("alice", "touch /tmp/4").success();
    assert_eq!(world.seqs("alice"), [4, 3, 2, 1]);
    world.ring(&["pack"]).fails_with(1, "index.json");
    world.ring(&["recover"]).success();
    world.pack();
    assert_eq!(world.log("alice")[0]["state"], "packed");
    assert!(faults(&world).is_empty());
}

#[test]
fn a_ring_file_that_is_damaged_is_named_and_nothing_is_touched() {
    let world = three_entries("ringjson");
    let file = world.ring_directory("alice").join("ring.json");
    let good = fs::read(&file).unwrap();
    let contradiction = String::from_utf8(good.clone()).unwrap().replace("\"next\":3", "\"next\":9");
    for text in ["", "{", "null", &contradiction] {
        fs::write(&file, text).unwrap();
        let before = world.picture();
        world.run_in("alice", "true").fails_with(1, "ring.json");
        world.ring(&["log", "alice"]).fails_with(1, "ring.json");
        world.ring(&["rollback", "alice", "--to", "@1"]).fails_with(1, "ring.json");
        world.ring(&["pack"]).fails_with(1, "ring.json");
        assert_eq!(faults(&world).len(), 1);
        world.run_in("bob", "true").success();
        let mut after = world.picture();
        after.retain(|path, _| !path.to_string_lossy().contains("/bob"));
        assert_eq!(after, before, "{text}");
        fs::remove_dir_all(world.ring_directory("bob")).unwrap();
    }
    fs::write(&file, &good).unwrap();
    assert_eq!(world.run_in("alice", "cat /tmp/newest").success().stdout(), "3\n");
    fs::remove_file(&file).unwrap();
    let before = world.picture();
    world.run_in("alice", "true").fails_with(1, "it has packs but no ring.json");
    world.ring(&["log", "alice"]).fails_with(1, "it has packs but no ring.json");
    world.ring(&["pack"]).fails_with(1, "ring.json");
    assert_eq!(world.picture(), before);
    assert_eq!(world.layers().len(), 3, "its layers are not taken for garbage");
    fs::write(&file, good).unwrap();
}
