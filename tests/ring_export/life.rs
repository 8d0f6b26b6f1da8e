//! Without the base: an entry as it is, on another machine.

use serde_json::json;

use super::{PLAIN, export, grow, import, inspect, shown, tool, tree};
use crate::harness::World;
use crate::harness::image_registry::{Registry, Setup};

/// What of an entry has to be the same everywhere.
fn facts(world: &World, target: &str) -> Vec<serde_json::Value> {
    let entry = world.ring_json(&["show", target]);
    ["seq", "id", "parent", "created", "reason", "exit_code", "base", "digest"]
        .map(|field| entry[field].clone())
        .to_vec()
}

#[test]
fn an_entry_that_went_by_any_road_is_the_same_on_another_machine() {
    let (source, registry) = (World::new("from"), Registry::start(Setup::Open));
    grow(&source, &[]);
    let at = |name: &str| source.base().join(name).display().to_string();
    let roads = [
        format!("oci:{}", at("layout")),
        format!("oci:{}:some", at("layout")),
        format!("oci-archive:{}", at("archive.tar")),
        registry.reference("a:some"),
    ];
    let expected = shown(&source, "a", &[&source.rootfs()]);
    for road in &roads {
        let exported = export(&source, &["a", road, PLAIN]);
        assert_eq!(exported["digest"], source.ring_json(&["show", "a"])["digest"], "{road}");
        let target = World::new("to");
        // Of the two in the layout, the one under the tag of an entry is a ring's.
        let imported = import(&target, road, "b");
        assert_eq!((&imported["entries"], &imported["fetched_blobs"]), (&json!([2]), &json!(2)), "{road}: {imported}");
        target.pack();
        assert_eq!(facts(&target, "b"), facts(&source, "a"), "{road}");
        tree::assert_same(&expected, &shown(&target, "b", &[&source.rootfs()]));
        target.ring(&["verify"]).success();
        let refused = target.run_in("b", "true");
        refused.fails_with(1, "it was made over dir:").fails_with(1, ", not over dir:");
        target.run_with(&["--ring", "b", "--rebase"], "test -e /srv/two && test ! -e /bin/vi").success();
        assert_eq!(import(&target, road, "b")["entries"], json!([]), "{road}");
    }
    let again = export(&source, &["a", &roads[0], PLAIN]);
    assert_eq!((&again["sent_blobs"], &again["present_blobs"]), (&json!(0), &json!(2)));
}

#[test]
fn an_older_entry_is_exported_by_its_selector() {
    let (source, target) = (World::new("from"), World::new("to"));
    grow(&source, &[]);
    let road = format!("oci-archive:{}", source.base().join("a.tar").display());
    assert_eq!(export(&source, &["a@-1", &road])["seq"], 1);
    assert_eq!(import(&target, &road, "b")["entries"], json!([1]));
    target.run_with(&["--ring", "b", "--rebase"], "test -e /srv/d/hard && test ! -e /srv/two").success();
}

#[test]
fn gzip_is_for_tools_that_know_nothing_else_and_changes_no_content() {
    let (source, target) = (World::new("from"), World::new("to"));
    grow(&source, &[]);
    let road = format!("oci:{}:x", source.base().join("layout").display());
    let exported = export(&source, &["a", &road, "--compression", "gzip"]);
    assert_ne!(exported["digest"], source.ring_json(&["show", "a"])["digest"]);
    let raw = tool("skopeo", &["inspect", "--raw", &road]);
    let manifest: serde_json::Value = serde_json::from_str(raw.success().stdout()).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    }
    import(&target, &road, "b");
    tree::assert_same(&shown(&source, "a", &[&source.rootfs()]), &shown(&target, "b", &[&source.rootfs()]));
    // And back: the tar streams are the same, so the packs are those of the ring that it came from.
    let back = format!("oci:{}:y", source.base().join("back").display());
    export(&target, &["b", &back, "--compression", "zstd"]);
    assert_eq!(
        inspect(&back)["Layers"],
        inspect(&format!("oci:{}:x", {
            let plain = source.base().join("plain");
            export(&source, &["a", &format!("oci:{}:x", plain.display())]);
            plain.display().to_string()
        }))["Layers"]
    );
}

#[test]
fn the_copy_of_a_rings_layout_is_imported_whole() {
    let (source, target) = (World::new("from"), World::new("to"));
    grow(&source, &[]);
    let copy = source.base().join("copy");
    tool("cp", &["-a", source.ring_directory("a").to_str().unwrap(), copy.to_str().unwrap()]).success();
    let road = format!("oci:{}", copy.display());
    assert_eq!(import(&target, &road, "b")["entries"], json!([1, 2]));
    tree::assert_same(&shown(&source, "a", &[&source.rootfs()]), &shown(&target, "b", &[&source.rootfs()]));
}

#[test]
fn what_is_only_sealed_is_packed_on_the_way() {
    let world = World::new("sealed");
    world.run_in("a", "echo 1 > /srv-1").success();
    let road = format!("oci:{}", world.base().join("layout").display());
    assert_eq!(export(&world, &["a", &road])["seq"], 1);
    assert_eq!(world.log("a")[0]["state"], "packed");
    world.pack();
}

#[test]
fn entries_that_are_exported_into_one_layout_at_a_time_are_all_in_it() {
    let world = World::new("together");
    for _ in 0..6 {
        world.run_in("a", "echo 1 >> /tmp/f").success();
    }
    world.pack();
    let seqs = world.seqs("a");
    for round in 0..6 {
        let layout = world.base().join(format!("sub{round}/layout"));
        let exports: Vec<_> = seqs
            .iter()
            .flat_map(|seq| [(seq, format!("t{seq}")), (seq, format!("u{seq}"))])
            .map(|(seq, tag)| {
                let to = format!("oci:{}:{tag}", layout.display());
                (tag, world.spawn(world.command(&["ring", "export", &format!("a@{seq}"), &to])))
            })
            .collect();
        let mut expected: Vec<_> = exports
            .into_iter()
            .map(|(tag, export)| {
                export.finish().success();
                tag
            })
            .collect();
        expected.sort();
        let index: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(layout.join("index.json")).unwrap()).unwrap();
        let name = |image: &serde_json::Value| image["annotations"]["org.opencontainers.image.ref.name"].clone();
        let mut found: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|image| name(image).as_str().unwrap().to_owned())
            .collect();
        found.sort();
        assert_eq!(found, expected);
        // What served to keep them apart is no part of a layout.
        let mut names = crate::harness::ring::names(&layout);
        names.sort();
        assert_eq!(names, ["blobs", "index.json", "oci-layout"]);
    }
}
