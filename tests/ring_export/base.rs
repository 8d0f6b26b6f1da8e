//! With the base: an ordinary image, for everybody's tools and for machines that have nothing of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{PLAIN, export, grow, import, inspect, plainly, shown, tool, tree};
use crate::harness::World;
use crate::harness::image::{Form, Layout, Tar};
use crate::harness::image_registry::{Registry, Setup};
use crate::podman::Podman;

/// What umoci makes of an image.
fn unpacked(world: &World, reference: &str) -> PathBuf {
    let bundle = world.base().join("bundle");
    let image = reference.strip_prefix("oci:").unwrap();
    tool("umoci", &["unpack", "--image", image, bundle.to_str().unwrap()]).success();
    bundle.join("rootfs")
}

fn same_as_unpacked(world: &World, expected: std::collections::BTreeMap<PathBuf, tree::Node>, reference: &str) {
    let mut found = plainly(tree::read(&unpacked(world, reference)));
    found.remove(Path::new(""));
    tree::assert_same(&plainly(expected), &found);
}

#[test]
fn a_state_over_a_directory_is_an_image_that_skopeo_umoci_and_podman_take() {
    let (world, registry) = (World::new("full"), Registry::start(Setup::Open));
    grow(&world, &[]);
    let layout = format!("oci:{}:full", world.base().join("layout").display());
    let exported = export(&world, &["a", &layout, "--full", "--compression", "gzip"]);
    assert_eq!((&exported["delta"], &exported["sent_blobs"]), (&json!(false), &json!(3)));
    let seen = inspect(&layout);
    assert_eq!((seen["Layers"].as_array().unwrap().len(), &seen["Os"]), (3, &json!("linux")));
    same_as_unpacked(&world, shown(&world, "a", &[&world.rootfs()]), &layout);
    let copy = format!("docker://{}/copy:full", registry.host());
    tool("skopeo", &["copy", "--dest-tls-verify=false", &layout, &copy]).success();
    let archive = format!("oci-archive:{}", world.base().join("full.tar").display());
    export(&world, &["a", &archive, "--full"]);
    let podman = Podman::new(&world);
    let loaded = podman.call(&["pull", "--quiet", &archive]);
    let id = loaded.success().stdout().trim().to_owned();
    let script = "cat /srv/two /srv/d/f; ls /bin/vi";
    let parent = podman.parent();
    let run = ["run", "--rm", "--network", "none", "--cgroup-parent", &parent, &id, "sh", "-c", script];
    let ran = podman.call(&run);
    assert_eq!(ran.code(1).stdout(), "2\nnew\nmore\n");
}

#[test]
fn a_state_with_its_base_starts_on_a_machine_that_has_neither() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    grow(&source, &[]);
    let expected = shown(&source, "a", &[&source.rootfs()]);
    let road = registry.reference("a:full");
    export(&source, &["a", &road, "--full", PLAIN]);
    let imported = import(&target, &road, "b");
    target.pack();
    let entry = target.ring_json(&["show", "b"]);
    assert_eq!((&entry["seq"], &entry["reason"], &entry["parent"]), (&json!(2), &json!("import"), &json!(null)));
    assert!(entry["base"].as_str().unwrap().starts_with("image:"), "{entry}");
    let image = imported["base_images"][0].as_str().unwrap().to_owned();
    let (id, script) = (target.fresh_id(), "cat /srv/two; echo 3 > /srv/three");
    let run = target.regen(&["run", "--image", &image, "--ring", "b", &id, "--", "sh", "-c", script]);
    assert_eq!(run.success().stdout(), "2\n");
    target.pack();
    assert_eq!(target.seqs("b"), [3, 2]);
    target.ring(&["verify"]).success();
    // The base's layers are there once, and the entry's are what they were.
    let base: Vec<_> =
        target.layers().into_iter().filter(|layer| layer.len() == 64).map(|id| target.layer(&id)).collect();
    assert_eq!(base.len(), 1);
    tree::assert_same(&expected, &shown(&target, "b@2", &[&base[0]]));
    // From there it goes on as a whole, its base with the blobs that came.
    let again = format!("oci:{}:x", target.base().join("again").display());
    export(&target, &["b", &again, "--full"]);
    assert_eq!(inspect(&again)["Layers"].as_array().unwrap()[..3], inspect_plain(&road)[..]);
    target.run_in("b", "true").fails_with(1, "it was made over image:");
}

fn inspect_plain(reference: &str) -> Vec<serde_json::Value> {
    inspect(reference)["Layers"].as_array().unwrap().clone()
}

/// An image of two layers in a world, with a command, and a ring over it.
fn over_an_image(world: &World) -> (Layout, String) {
    let layout = Layout::new(world.base().join("image"));
    let upper = Tar::new().directory("etc").file("etc/motd", b"from the image\n").file("bin/.wh.pwd", b"");
    let config = json!({"Cmd": ["cat", "/etc/motd"], "Env": ["A=1"], "WorkingDir": "/etc"});
    layout.image("v1", vec![(Tar::new().busybox(), Form::Zstd), (upper, Form::Gzip)], &config);
    let reference = layout.reference("v1");
    let id = world.fresh_id();
    let script = "echo saved > /etc/motd; echo $A > /a";
    world.regen(&["run", "--image", &reference, "--ring", "a", &id, "--", "sh", "-c", script]).success();
    world.pack();
    (layout, reference)
}

#[test]
fn an_images_own_blobs_and_its_command_go_along() {
    let (world, target) = (World::new("image"), World::new("to"));
    let (_layout, reference) = over_an_image(&world);
    let road = format!("oci:{}:full", world.base().join("exported").display());
    export(&world, &["a", &road, "--full"]);
    let (base, full) = (inspect(&reference), inspect(&road));
    assert_eq!(full["Layers"].as_array().unwrap()[..2], base["Layers"].as_array().unwrap()[..]);
    assert_eq!(full["Env"], json!(["A=1"]));
    let archive = format!("oci-archive:{}", world.base().join("full.tar").display());
    export(&world, &["a", &archive, "--full"]);
    for image in [&road, &archive] {
        let output = target.regen(&["run", "--image", image, &target.fresh_id()]);
        assert_eq!(output.success().stdout(), "saved\n", "{image}");
    }
    // It is the same base here as there: the image itself is as good as what came along.
    import(&target, &archive, "b");
    let id = target.fresh_id();
    let run = target.regen(&["run", "--image", &reference, "--ring", "b", &id, "--", "cat", "/a"]);
    assert_eq!(run.success().stdout(), "1\n");
    target.pack();
}

#[test]
fn an_image_whose_blobs_are_gone_is_packed_anew() {
    let (world, target) = (World::new("gone"), World::new("to"));
    let (layout, _) = over_an_image(&world);
    fs::remove_dir_all(layout.directory()).unwrap();
    let road = format!("oci:{}:full", world.base().join("exported").display());
    export(&world, &["a", &road, "--full"]);
    assert_eq!(target.regen(&["run", "--image", &road, &target.fresh_id()]).success().stdout(), "saved\n");
    let whole = target.regen(&["run", "--image", &road, &target.fresh_id(), "--", "ls", "/bin/pwd"]);
    assert!(!whole.stdout().contains("pwd"), "a whiteout of the image was lost");
}

#[test]
fn the_overlay_of_an_engine_goes_along_as_one_layer() {
    let world = World::new("engine");
    let at = |name: &str| world.base().join(name);
    for name in ["l2", "up", "work", "merged"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("l2/of-the-upper-layer"), "x").unwrap();
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        at("l2").display(),
        world.rootfs().display(),
        at("up").display(),
        at("work").display()
    );
    let merged = at("merged").display().to_string();
    tool("mount", &["-t", "overlay", "overlay", "-o", &options, &merged]).success();
    let ran = world.regen(&["run", "--rootfs", &merged, "--ring", "a", &world.fresh_id(), "--", "touch", "/srv-1"]);
    let below = world.ring_json(&["show", "a"])["base"].clone();
    tool("umount", &[&merged]).success();
    ran.success();
    assert!(below.as_str().unwrap().starts_with("overlay:"), "{below}");
    world.pack();
    let road = format!("oci:{}:full", at("exported").display());
    export(&world, &["a", &road, "--full", "--compression", "gzip"]);
    assert_eq!(inspect(&road)["Layers"].as_array().unwrap().len(), 2);
    same_as_unpacked(&world, shown(&world, "a", &[&at("l2"), &world.rootfs()]), &road);
}

#[test]
fn what_is_mounted_in_a_base_stays_out_of_the_image() {
    let world = World::new("mounted");
    world.run_in("a", "echo 1 > /srv-1").success();
    world.pack();
    let inner = world.rootfs().join("proc");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "tmpfs"]).arg(&inner);
    world.finish(mount).success();
    fs::write(inner.join("secret"), "x").unwrap();
    let road = format!("oci:{}:full", world.base().join("exported").display());
    let exported = world.ring(&["export", "a", &road, "--full", "--compression", "gzip"]);
    nix::mount::umount(&inner).unwrap();
    exported.success();
    assert!(!unpacked(&world, &road).join("proc/secret").exists());
}
