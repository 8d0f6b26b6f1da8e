//! What cannot be exported or imported is refused in one line, and nothing has changed.

use std::fs;

use serde_json::{Value, json};

use super::{PLAIN, export, grow, import};
use crate::harness::World;
use crate::harness::image::{Form, Layout, Tar};
use crate::harness::ring::{names, picture};

#[test]
fn a_place_that_has_other_things_in_it_stays_as_it_is() {
    let world = World::new("place");
    grow(&world, &[]);
    let at = |name: &str| world.base().join(name);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/file"), "x").unwrap();
    let before = picture(&at("full"));
    let text = |kind: &str, name: &str| format!("{kind}:{}", at(name).display());
    for (to, words) in [
        (text("oci", "full"), "it is no OCI image layout"),
        (text("oci", "full/file"), "not a directory"),
        (text("oci-archive", "full/file"), "there is something of that name"),
        (text("oci-archive", "absent/a.tar"), "no such file or directory"),
        (text("oci", "new:a/b"), "a tag has"),
        (text("oci", "new:regen-ring"), "it is for the ring itself"),
        ("docker://127.0.0.1:1/a".into(), "reach registry '127.0.0.1:1'"),
        ("dir:/x".into(), "give oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://"),
    ] {
        let refused = world.ring(&["export", "a", &to, PLAIN]);
        assert!([1, 2].contains(&refused.code) && refused.stderr().contains(words), "{to}: {}", refused.stderr());
        assert_eq!(refused.stderr().lines().count(), 1, "{to}: {}", refused.stderr());
    }
    world.ring(&["export", "a@9", &text("oci", "new")]).fails_with(1, "9");
    world.ring(&["export", "a@base", &text("oci", "new")]).fails_with(2, "the base is no entry");
    world.ring(&["export", "none", &text("oci", "new")]).fails_with(1, "there is no such ring");
    world.ring(&["export", "a", &text("oci", "new"), "--compression", "xz"]).code(2);
    assert_eq!(picture(&at("full")), before);
    assert!(!at("new").exists());
}

#[test]
fn a_base_that_is_gone_or_another_one_is_not_exported_but_the_entry_is() {
    let world = World::new("base");
    grow(&world, &[]);
    let (moved, to) = (world.base().join("moved"), format!("oci:{}", world.base().join("exported").display()));
    fs::rename(world.rootfs(), &moved).unwrap();
    world.ring(&["export", "a", &to, "--full"]).fails_with(1, "is gone: export the entry without '--full'");
    fs::create_dir(world.rootfs()).unwrap();
    world.ring(&["export", "a", &to, "--full"]).fails_with(1, "is another one now");
    assert!(!world.base().join("exported").exists());
    export(&world, &["a", &to]);
    fs::remove_dir(world.rootfs()).unwrap();
    fs::rename(&moved, world.rootfs()).unwrap();
}

#[test]
fn what_is_no_entry_is_not_imported() {
    let world = World::new("odd");
    let layout = Layout::new(world.base().join("image"));
    layout.image("v1", vec![(Tar::new().busybox(), Form::Gzip)], &json!({}));
    let directory = format!("oci:{}", layout.directory().display());
    for (from, words) in [
        (layout.reference("v1"), "not of a ring's entry"),
        (directory.clone(), "not of a ring's entry"),
        (layout.reference("v2"), "look for tag 'v2'"),
        (format!("oci:{}", world.rootfs().display()), "it is no OCI image layout"),
        ("oci-archive:/etc/passwd".into(), "open image archive"),
        ("oci:/absent".into(), "no such file or directory"),
        ("absent".into(), "give oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://"),
    ] {
        let refused = world.ring(&["import", &from, "b"]);
        refused.fails_with(1, words);
        assert_eq!(refused.stderr().lines().count(), 1);
    }
    assert_eq!(world.ring_json(&["ls"]), json!([]));
}

/// A full export in a layout, to be damaged.
fn exported(world: &World) -> (String, Value) {
    grow(world, &[]);
    let layout = world.base().join("exported");
    let road = format!("oci:{}:x", layout.display());
    let digest = export(world, &["a", &road, "--full"])["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    (road, serde_json::from_slice(&fs::read(layout.join("blobs/sha256").join(digest)).unwrap()).unwrap())
}

#[test]
fn a_damaged_export_leaves_nothing_where_it_was_to_come() {
    let (world, target) = (World::new("damage"), World::new("to"));
    let (road, manifest) = exported(&world);
    let blob = |of: &Value| {
        world.base().join("exported/blobs/sha256").join(&of["digest"].as_str().unwrap()["sha256:".len()..])
    };
    let cut = ["has 1 bytes", "its content has digest"];
    for (part, cut) in
        [(&manifest["layers"][0], cut[0]), (&manifest["layers"][2], cut[0]), (&manifest["config"], cut[1])]
    {
        let good = fs::read(blob(part)).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(blob(part), &bad).unwrap();
        target.ring(&["import", &road, "b"]).fails_with(1, "its content has digest");
        fs::write(blob(part), &good[..1]).unwrap();
        target.ring(&["import", &road, "b"]).fails_with(1, cut);
        fs::remove_file(blob(part)).unwrap();
        target.ring(&["import", &road, "b"]).fails_with(1, "no such file or directory");
        fs::write(blob(part), &good).unwrap();
        assert_eq!(target.ring_json(&["ls"]), json!([]));
        assert!(names(&target.store().join("rings/root")).is_empty());
    }
    import(&target, &road, "b");
    target.pack();
}

#[test]
fn an_export_with_its_base_is_a_ring_of_its_own_only() {
    let (world, target) = (World::new("own"), World::new("to"));
    let (road, _) = exported(&world);
    target.run_in("b", "echo 1 > /srv-1").success();
    target.pack();
    let before = target.log("b");
    target.ring(&["import", &road, "b"]).fails_with(1, "import ring 'root/b'");
    assert_eq!(target.log("b"), before);
    import(&target, &road, "c");
    target.pack();
    target.ring(&["import", &road, "c"]).fails_with(1, "diverged");
}
