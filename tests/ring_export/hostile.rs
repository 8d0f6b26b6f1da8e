//! Entries that somebody made by hand to do harm: each is refused in one line, and nothing of it is anywhere.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use serde_json::{Value, json};
use tar::EntryType;

use super::{PLAIN, tool};
use crate::harness::World;
use crate::harness::image::{Form, Layout, Tar, digest};
use crate::harness::image_registry::{Registry, Setup};
use crate::harness::ring::names;

const FIRST: &str = "20261122T152448Z-000001";

/// What a ring says of an entry with this number.
fn annotations(seq: u64) -> Value {
    json!({
        "org.opencontainers.image.created": format!("2026-11-22T15:24:{seq:02}Z"),
        "run.regen.entry.seq": seq.to_string(),
        "run.regen.entry.id": id(seq),
        "run.regen.entry.reason": "exit",
        "run.regen.entry.base": "dir:/nowhere#1",
    })
}

fn id(seq: u64) -> String {
    format!("20261122T152448Z-{seq:06}")
}

/// A layout with one entry of these layers, and its manifest, changed.
fn entry(world: &World, layers: Vec<(Tar, Form)>, change: impl FnOnce(&mut Value)) -> Layout {
    let directory = world.base().join("layout");
    let _ = fs::remove_dir_all(&directory);
    let layout = Layout::new(directory);
    let mut manifest = layout.image(FIRST, layers, &json!({}));
    manifest["annotations"] = annotations(1);
    change(&mut manifest);
    layout.set_manifest(FIRST, &manifest);
    layout
}

fn road(layout: &Layout) -> String {
    format!("oci:{}", layout.directory().display())
}

/// It is refused with these words, and leaves nothing.
#[track_caller]
fn refuses(world: &World, arguments: &[&str], words: &str) {
    world.regen(&[arguments, &["b"]].concat()).fails_with(1, words);
    assert_eq!(world.ring_json(&["ls"]), json!([]), "{words}");
    assert_eq!(world.layers(), [""; 0], "{words}");
    for place in ["rings/root", "transfers", "runs"] {
        assert_eq!(names(&world.store().join(place)), [""; 0], "{words}: {place}");
    }
}

/// A file that nothing may reach.
fn secret(world: &World) -> PathBuf {
    let secret = world.base().join("secret");
    fs::write(&secret, "secret").unwrap();
    secret
}

fn escapes(outside: &str) -> Vec<(Tar, &'static str)> {
    let file = |name: &str| Tar::new().file(name, b"x");
    vec![
        (file("../../../../new"), "'..'"),
        (file("in/../../new"), "'..'"),
        (file("/new"), "absolute"),
        (Tar::new().symlink("s", outside).file("s/new", b"x"), "not a directory"),
        (Tar::new().symlink("s", "..").directory("s/new"), "not a directory"),
        (Tar::new().symlink("s", outside).link("h", "s/secret"), "does not hold"),
        (Tar::new().link("h", "../secret"), "'..'"),
        (Tar::new().link("h", "/etc/passwd"), "absolute"),
        (Tar::new().symlink("s", outside).file("s/.wh.secret", b""), "not a directory"),
        (Tar::new().entry(EntryType::Char, "w", "", b""), "0:0"),
        (Tar::new().entry(EntryType::new(b'Z'), "z", "", b""), "unknown type"),
    ]
}

#[test]
fn entries_that_lead_out_are_refused_by_whatever_road() {
    let (world, registry) = (World::new("out"), Registry::start(Setup::Open));
    let secret = secret(&world);
    let outside = world.base().display().to_string();
    for (round, (tar, words)) in escapes(&outside).into_iter().enumerate() {
        let layout = entry(&world, vec![(tar, Form::Zstd)], |_| {});
        refuses(&world, &["ring", "import", &road(&layout)], words);
        let reference = registry.reference(&format!("a{round}"));
        let (from, to) = (layout.reference(FIRST), format!("{reference}:{FIRST}"));
        tool("skopeo", &["copy", "--quiet", "--dest-tls-verify=false", &from, &to]).success();
        refuses(&world, &["ring", "pull", PLAIN, &reference], words);
        let (metadata, around) = (fs::metadata(&secret).unwrap(), names(world.base()));
        assert_eq!((metadata.nlink(), metadata.len()), (1, 6), "{words}");
        assert!(!around.contains(&"new".to_owned()), "{around:?}");
    }
}

#[test]
fn a_pack_that_is_larger_than_it_says_or_may_be_is_refused() {
    let world = World::new("bomb");
    let config = world.base().join("config.toml");
    fs::write(&config, "[image]\nmax-layer-bytes = \"1MiB\"\n").unwrap();
    let config = config.to_str().unwrap();
    let zeros = vec![0; 16 << 20];
    for form in [Form::Zstd, Form::Gzip, Form::Plain] {
        let layout = entry(&world, vec![(Tar::new().file("zeros", &zeros), form)], |_| {});
        refuses(&world, &["--config", config, "ring", "import", &road(&layout)], "1048576 bytes");
    }
    let many = (0..60).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), &zeros[..20_000]));
    let layout = entry(&world, vec![(many, Form::Zstd)], |_| {});
    refuses(&world, &["--config", config, "ring", "import", &road(&layout)], "1048576 bytes");
    let name = "n".repeat(100_000);
    let long = Tar::new().entry(EntryType::GNULongName, "l", "", name.as_bytes()).file("x", b"");
    let layout = entry(&world, vec![(long, Form::Zstd)], |_| {});
    refuses(&world, &["ring", "import", &road(&layout)], "unpack");
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_path("p").unwrap();
    header.set_mode(0o644);
    header.set_size(1 << 32);
    let huge = Tar::new().raw(header).file("x", b"");
    let layout = entry(&world, vec![(huge, Form::Zstd)], |_| {});
    refuses(&world, &["ring", "import", &road(&layout)], "absurd");
}

/// Changes the blob of the only layer, and what is said of it.
fn with_blob(world: &World, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Layout {
    let layout = entry(world, vec![(Tar::new().file("f", &[7; 5000]), Form::Zstd)], |_| {});
    let tagged = layout.directory().join("index.json");
    let index: Value = serde_json::from_slice(&fs::read(tagged).unwrap()).unwrap();
    let path = layout.blob(&index["manifests"][0]);
    let mut manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let blob = change(fs::read(layout.blob(&manifest["layers"][0])).unwrap());
    manifest["layers"][0]["digest"] = json!(digest(&blob));
    manifest["layers"][0]["size"] = json!(blob.len());
    fs::write(layout.blob(&manifest["layers"][0]), blob).unwrap();
    layout.set_manifest(FIRST, &manifest);
    layout
}

#[test]
fn a_pack_that_is_cut_or_followed_by_something_is_refused() {
    let world = World::new("cut");
    let cut = with_blob(&world, |blob| blob[..blob.len() / 2].to_vec());
    refuses(&world, &["ring", "import", &road(&cut)], "unpack sha256:");
    let more = with_blob(&world, |blob| [&blob[..], b"more"].concat());
    refuses(&world, &["ring", "import", &road(&more)], "unpack sha256:");
    let other = with_blob(&world, |_| b"no compression at all".to_vec());
    refuses(&world, &["ring", "import", &road(&other)], "unpack sha256:");
    let empty = with_blob(&world, |_| Vec::new());
    refuses(&world, &["ring", "import", &road(&empty)], "unpack sha256:");
}

#[test]
fn what_a_manifest_and_a_config_say_has_to_be_true() {
    let world = World::new("lies");
    let one = || vec![(Tar::new().file("f", b"x"), Form::Zstd)];
    let other = digest(b"other");
    for (words, change) in [
        ("its descriptor says", (|m: &mut Value| m["layers"][0]["size"] = json!(1)) as fn(&mut Value)),
        ("are to be fetched and unpacked", |m| m["layers"][0]["size"] = json!(u64::MAX)),
        ("unpack sha256:", |m| m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip")),
        ("is no layer", |m| m["layers"][0]["mediaType"] = json!("application/json")),
        ("instead of", |m| m["config"]["size"] = json!(1)),
        ("layers, its config", |m| {
            let layer = m["layers"][0].clone();
            m["layers"].as_array_mut().unwrap().push(layer);
        }),
        ("are larger than any that a ring has", |m| m["config"]["size"] = json!(1_u64 << 40)),
        ("it is that of another entry", |m| m["annotations"]["run.regen.entry.seq"] = json!("2")),
        ("its outcome is unknown", |m| m["annotations"]["run.regen.entry.outcome"] = json!("splendid")),
        ("are not fewer than its layers", |m| m["annotations"]["run.regen.entry.base-layers"] = json!("9")),
        ("read its volumes", |m| m["annotations"]["run.regen.entry.volume./a/../../etc"] = json!("dir:/etc#1")),
    ] {
        let layout = entry(&world, one(), change);
        let refused = world.regen(&["ring", "import", &road(&layout), "b"]);
        assert!(refused.stderr().contains(words) || words == "read its volumes", "{words}: {}", refused.stderr());
        refuses(&world, &["ring", "import", &road(&layout)], "import ring 'root/b' from 'oci:");
    }
    // Its tar stream is another one than the config says.
    let layout = entry(&world, one(), |_| {});
    let manifest = fs::read(layout.directory().join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&manifest).unwrap();
    let mut manifest: Value = serde_json::from_slice(&fs::read(layout.blob(&index["manifests"][0])).unwrap()).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(layout.blob(&manifest["config"])).unwrap()).unwrap();
    config["rootfs"]["diff_ids"][0] = json!(other);
    let text = config.to_string();
    manifest["config"]["digest"] = json!(digest(text.as_bytes()));
    manifest["config"]["size"] = json!(text.len());
    fs::write(layout.blob(&manifest["config"]), text).unwrap();
    layout.set_manifest(FIRST, &manifest);
    refuses(&world, &["ring", "import", &road(&layout)], "the tar stream is");
}

/// A layout whose ring's index lists these numbers, each of them the one entry.
fn listing(world: &World, seqs: &[u64]) -> Layout {
    let layout = entry(world, vec![(Tar::new().file("f", b"x"), Form::Zstd)], |_| {});
    let index: Value = serde_json::from_slice(&fs::read(layout.directory().join("index.json")).unwrap()).unwrap();
    let listed: Vec<_> = seqs
        .iter()
        .map(|seq| {
            let mut descriptor = index["manifests"][0].clone();
            descriptor["annotations"] =
                json!({"org.opencontainers.image.ref.name": id(*seq), "run.regen.entry": seq.to_string()});
            descriptor
        })
        .collect();
    layout.set_manifest("regen-ring", &json!({"schemaVersion": 2, "manifests": listed}));
    layout
}

#[test]
fn a_list_of_entries_that_no_ring_has_is_refused() {
    let world = World::new("list");
    for (seqs, words) in [
        (vec![1, 1], "out of order"),
        (vec![2, 1], "out of order"),
        (vec![0], "no ring gives"),
        (vec![1 << 60], "no ring gives"),
        ((1..=10_001).collect(), "too many entries"),
        (vec![1, 2], "it is that of another entry"),
    ] {
        let layout = listing(&world, &seqs);
        refuses(&world, &["ring", "import", &road(&layout)], words);
    }
}

#[test]
fn a_parent_that_is_the_entry_itself_or_a_later_one_is_none() {
    let world = World::new("parents");
    for parent in ["1", "7", "18446744073709551616"] {
        let layout = entry(&world, vec![(Tar::new().file("f", b"x"), Form::Zstd)], |manifest| {
            manifest["annotations"]["run.regen.entry.parent"] = json!(parent);
        });
        let imported = world.regen(&["ring", "import", &road(&layout), "b"]);
        if imported.code == 0 {
            assert_eq!(world.ring_json(&["show", "b"])["parent"], Value::Null, "{parent}");
            world.pack();
            world.ring(&["log", "b", "--graph"]).success();
            world.ring(&["rm", "b"]).success();
        } else {
            imported.fails_with(1, "its parent is no number");
        }
    }
    world.pack();
}

#[test]
fn devices_and_rights_are_those_of_image_layers_and_reach_nothing() {
    let world = World::new("device");
    let disk = "disk";
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Block);
    header.set_path(disk).unwrap();
    header.set_mode(0o666);
    header.set_device_major(8).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_size(0);
    let tar = Tar::new().raw(header).file("root-shell", b"x");
    let layout = entry(&world, vec![(tar, Form::Zstd)], |_| {});
    world.regen(&["ring", "import", &road(&layout), "b"]).success();
    world.pack();
    let layer = world.layer(&world.layers_of("b")[0]);
    assert!(fs::symlink_metadata(layer.join(disk)).unwrap().file_type().is_block_device());
    let opened = world.run_with(&["--ring", "b", "--rebase"], "head -c 1 /disk");
    assert!(opened.stderr().contains("not permitted"), "{opened:?}");
    world.pack();
}
