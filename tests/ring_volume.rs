//! Volumes: bind mounts whose changes belong to the ring, sealed and rolled back with the root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use harness::ring::picture;
use harness::{Directory, Output, World, eventually};
use serde_json::json;

/// What is in the volume, as the container sees it.
const LOOK: &str = "cd /srv/data; find . | sort | while read -r p; do stat -c '%n %F %a %u:%g' $p; \
     test ! -f $p || cat $p; done";

/// A directory of the host's with something in it, which nobody may change.
fn source(world: &World, name: &str) -> PathBuf {
    let path = world.base().join(name);
    for directory in ["sub/deep", "gone", "opaque"] {
        fs::create_dir_all(path.join(directory)).unwrap();
    }
    for file in ["a", "b", "sub/c", "sub/deep/d", "gone/e", "opaque/f"] {
        fs::write(path.join(file), format!("{name} {file}\n")).unwrap();
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2775)).unwrap();
    chown(path.join("b"), Some(7), Some(8)).unwrap();
    path
}

/// A bundle in which that is mounted at /srv/data.
fn bundle(world: &World, source: &Path) -> Directory {
    world.bundle(|spec| {
        let mount = json!({"destination": "/srv/data", "type": "bind", "source": source, "options": ["rbind", "rw"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    })
}

fn run(world: &World, bundle: &Directory, flags: &[&str], script: &str) -> Output {
    let id = world.fresh_id();
    world.regen(&[&["run", "--bundle", bundle.text()], flags, &[&*id, "--", "sh", "-c", script]].concat())
}

const ALICE: [&str; 4] = ["--ring", "alice", "--ring-volume", "/srv/data"];

fn look(world: &World, bundle: &Directory, target: &str) -> String {
    let output = run(world, bundle, &["--ring", target, "--ring-volume", "/srv/data"], LOOK);
    assert_eq!(output.success().stderr(), "");
    output.stdout().to_owned()
}

#[test]
fn a_volumes_changes_are_sealed_with_the_root_and_its_source_is_never_written() {
    let world = World::new("volume");
    let source = source(&world, "source");
    let before = picture(&source);
    let bundle = bundle(&world, &source);
    let first = look(&world, &bundle, "alice");
    assert!(first.starts_with(". directory 2775 0:0\n./a regular file 644 0:0\nsource a\n./b regular file 644 7:8\n"));
    assert_eq!(world.seqs("alice"), [0u64; 0], "looking changes nothing");
    let script = "stat -c %a /srv > /tmp/srv; echo one > /srv/data/a; rm -r /srv/data/gone; rm /srv/data/sub/deep/d; \
         rm -r /srv/data/opaque; mkdir /srv/data/opaque; echo new > /srv/data/new; echo one > /tmp/root";
    run(&world, &bundle, &ALICE, script).success();
    let one = look(&world, &bundle, "alice");
    for shown in ["./a regular file 644 0:0\none\n", "./b regular file 644 7:8\nsource b\n", "./new regular file"] {
        assert!(one.contains(shown), "{one}");
    }
    assert!(!one.contains("gone") && !one.contains("deep/d") && !one.contains("opaque/f"), "{one}");
    run(&world, &bundle, &ALICE, "echo two > /srv/data/a; rm /srv/data/new; echo two > /tmp/root").success();
    // The volume alone counts, and so does its own directory.
    run(&world, &bundle, &ALICE, "chmod 700 /srv/data").success();
    assert_eq!(world.seqs("alice"), [3, 2, 1]);
    let entry = world.ring_json(&["show", "alice"]);
    assert_eq!(entry["volumes"]["/srv/data"], format!("dir:{}#{}", source.display(), source.metadata().unwrap().ino()));

    // Both go back together, and nothing of the volumes has to be said again.
    world.ring(&["rollback", "alice", "--to", "@1"]).success();
    assert_eq!(
        run(&world, &bundle, &["--ring", "alice"], "cat /srv/data/a /tmp/root").success().stdout(),
        "one\none\n"
    );
    world.pack();
    world.ring(&["verify"]).success();
    world.rebuild();
    assert_eq!(look(&world, &bundle, "alice@1"), one);
    assert_eq!(picture(&source), before);
}

#[test]
fn what_cannot_be_a_volume_is_refused_in_one_line() {
    let world = World::new("refuse");
    let (one, two) = (source(&world, "one"), source(&world, "two"));
    let bundle_one = bundle(&world, &one);
    let volume = |place: &str| run(&world, &bundle_one, &["--ring", "alice", "--ring-volume", place], "true");
    volume("/nowhere").fails_with(1, "the container has no mount there");
    volume("/proc").fails_with(1, "no directory of the host's");
    volume("data").fails_with(1, "it is no absolute path");
    volume("/srv/../etc").fails_with(1, "'..'");
    let nested = [&ALICE[..], &["--ring-volume", "/srv/data/sub"]].concat();
    run(&world, &bundle_one, &nested, "true").fails_with(1, "it lies in the volume '/srv/data'");
    world.run_with(&ALICE, "true").fails_with(1, "the container has no mount there");
    run(&world, &bundle_one, &["--ring-volume", "/srv/data"], "true").code(2);
    assert_eq!(world.ring_json(&["ls"]), json!([]));

    run(&world, &bundle_one, &ALICE, "echo mine > /srv/data/a").success();
    let other = bundle(&world, &two);
    let refused = run(&world, &other, &ALICE, "true");
    let inode = |path: &Path| path.metadata().unwrap().ino();
    let names = format!("it was made over dir:{}#{}, not over dir:{}", one.display(), inode(&one), two.display());
    refused.fails_with(1, &names);
    world.run_in("alice", "true").fails_with(1, "start from an entry with a volume that this container has not");
    let rebased = [&ALICE[..], &["--rebase"]].concat();
    assert_eq!(
        run(&world, &other, &rebased, "cat /srv/data/a /srv/data/sub/c").success().stdout(),
        "mine\ntwo sub/c\n"
    );
    world.run_with(&["--ring", "alice", "--rebase"], "true").success();
}

#[test]
fn a_way_that_is_a_link_is_refused_before_anything_is_hidden() {
    let world = World::new("link");
    let source = source(&world, "source");
    std::os::unix::fs::symlink("srv", world.rootfs().join("link")).unwrap();
    let bundle = world.bundle(|spec| {
        let mount = json!({"destination": "/link/data", "type": "bind", "source": source, "options": ["bind"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    let flags = ["--ring", "alice", "--ring-volume", "/link/data"];
    run(&world, &bundle, &flags, "true").fails_with(1, "'link' is a symbolic link");
    assert_eq!(world.ring_json(&["ls"]), json!([]));
}

#[test]
fn a_volume_that_somebody_can_still_write_is_not_sealed() {
    let world = World::new("held");
    let bundle = bundle(&world, &source(&world, "source"));
    let id = world.fresh_id();
    let script = "echo one > /srv/data/a; touch /dev/done; exec sleep 1000";
    world.regen(&[&["run", "-d", "--bundle", bundle.text()], &ALICE[..], &[&*id, "--", "sh", "-c", script]].concat());
    let root = PathBuf::from(format!("/proc/{}/root", world.pid(&id)));
    eventually("it writes", || root.join("dev/done").exists());
    let mut held = fs::OpenOptions::new().append(true).open(root.join("srv/data/a")).unwrap();
    world.delete(&id);
    assert_eq!(world.seqs("alice"), [0u64; 0], "somebody has a file of the volume open");
    run(&world, &bundle, &ALICE, "true").fails_with(1, "is not final");
    held.write_all(b"late\n").unwrap();
    drop(held);
    assert_eq!(run(&world, &bundle, &ALICE, "cat /srv/data/a").success().stdout(), "one\nlate\n");
}

#[test]
fn what_a_volume_hides_stays_hidden_through_folds_and_rebuilds() {
    let world = World::new("fold");
    let bundle = bundle(&world, &source(&world, "source"));
    let deep = [&ALICE[..], &["--depth", "2"]].concat();
    let steps = [
        "rm /srv/data/a; rm -r /srv/data/gone",
        "rm -r /srv/data/opaque; mkdir /srv/data/opaque; echo x > /srv/data/opaque/x",
        "mkdir -p /srv/data/n/m; echo 1 > /srv/data/n/m/f",
        "rm -r /srv/data/n; rm /srv/data/sub/c",
        "rm /srv/data/opaque/x; rm -r /srv/data/sub/deep",
    ];
    for round in 0..16 {
        let step = steps.get(round).copied().unwrap_or("true");
        run(&world, &bundle, &deep, &format!("{step}; echo {round} > /srv/data/count; echo {round} > /tmp/r"))
            .success();
    }
    let shown = look(&world, &bundle, "alice");
    for hidden in ["./a ", "gone", "opaque/f", "opaque/x", "deep", "./n", "sub/c"] {
        assert!(!shown.contains(hidden), "{hidden} shows in {shown}");
    }
    world.pack();
    assert!(world.layers_of("alice").len() < 10, "{:?}", world.layers_of("alice"));
    assert_eq!(look(&world, &bundle, "alice"), shown);
    world.rebuild();
    assert_eq!(look(&world, &bundle, "alice"), shown);
    world.ring(&["verify"]).success();
}

#[test]
fn snapshots_forks_and_readers_have_the_volumes_too() {
    let world = World::new("more");
    let source = source(&world, "source");
    let bundle = bundle(&world, &source);
    let start = |flags: &[&str], script: &str| {
        let (id, script) = (world.fresh_id(), format!("{script}; touch /dev/done; exec sleep 1000"));
        let all = [&["run", "-d", "--bundle", bundle.text()], flags, &[&*id, "--", "sh", "-c", &script]].concat();
        world.regen(&all).success();
        let done = PathBuf::from(format!("/proc/{}/root/dev/done", world.pid(&id)));
        eventually("it writes", || done.exists());
        id
    };
    let id = start(&ALICE, "echo live > /srv/data/a; rm /srv/data/b");
    world.ring(&["snapshot", "alice"]).success();
    let show = |id: &str| world.regen(&["exec", id, "sh", "-c", "cat /srv/data/a; ls /srv/data/"]).stdout().to_owned();
    let expected = "live\na\ngone\nopaque\nsub\n";
    let fork = start(&["--ring", "alice@1", "--fork"], "true");
    assert_eq!((show(&fork).as_str(), show(&id).as_str()), (expected, expected));
    world.regen(&["exec", &fork, "sh", "-c", "echo fork > /srv/data/a"]).success();
    for id in [&id, &fork] {
        world.delete(id);
    }
    let own = format!("alice.{fork}");
    assert_eq!(run(&world, &bundle, &["--ring", &own], "cat /srv/data/a").success().stdout(), "fork\n");
    assert_eq!(run(&world, &bundle, &["--ring", "alice"], "cat /srv/data/a").success().stdout(), "live\n");
    let reader = world.bundle(|spec| {
        *spec = serde_json::from_slice(&fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
        spec["annotations"] = json!({"run.regen.ring": "alice", "run.regen.ring.mode": "readonly"});
    });
    let read = run(&world, &reader, &[], "cat /srv/data/a; echo read > /srv/data/a; cat /srv/data/a");
    assert_eq!(read.success().stdout(), "live\nread\n");
    assert_eq!(fs::read_to_string(source.join("a")).unwrap(), "source a\n");
    world.pack();
    assert_eq!(look(&world, &bundle, "alice").matches("read").count(), 0);
}

impl World {
    /// Packs everything, loses all layers, and has the next runs rebuild them.
    fn rebuild(&self) {
        self.pack();
        for layer in self.layers() {
            fs::remove_dir_all(self.store().join("layers").join(layer)).unwrap();
        }
    }
}

#[test]
fn two_volumes_are_named_by_an_annotation_as_engines_give_it() {
    let world = World::new("two");
    let sources: BTreeMap<_, _> = ["one", "two"].map(|name| (name, source(&world, name))).into();
    let bundle = world.bundle(|spec| {
        for (name, source) in &sources {
            let mount =
                json!({"destination": format!("/vol/{name}"), "type": "bind", "source": source, "options": ["bind"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }
        spec["annotations"] = json!({"run.regen.ring": "alice", "run.regen.ring.volumes": "/vol/one,/vol/two"});
    });
    let add = "for v in one two; do echo more >> /vol/$v/a; cat /vol/$v/a; done";
    assert_eq!(run(&world, &bundle, &[], add).success().stdout(), "one a\nmore\ntwo a\nmore\n");
    assert_eq!(run(&world, &bundle, &[], add).success().stdout(), "one a\nmore\nmore\ntwo a\nmore\nmore\n");
    for (name, source) in &sources {
        assert_eq!(fs::read_to_string(source.join("a")).unwrap(), format!("{name} a\n"));
    }
}
