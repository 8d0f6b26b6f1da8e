//! Images that lie, break off or attack: the run ends with 1, in one line, and nothing of them is left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::image::{Form, Layout, Tar};
use harness::ring::names;
use harness::{Output, World};
use serde_json::{Value, json};

/// A world with an image of busybox, tag `good`, and its manifest.
fn prepare(name: &str) -> (World, Layout, Value) {
    let world = World::new(name);
    let layout = Layout::new(world.base().join("image"));
    let manifest = layout.image("good", vec![(Tar::new().busybox(), Form::Gzip)], &json!({}));
    (world, layout, manifest)
}

fn run(world: &World, reference: &str) -> Output {
    world.regen(&["run", "--image", reference, &world.fresh_id(), "--", "true"])
}

/// It is refused in one line with these words, and leaves neither layer nor run nor anything half-made.
#[track_caller]
fn assert_refused(world: &World, reference: &str, words: &str) {
    run(world, reference).fails_with(1, words);
    for directory in ["layers", "runs"] {
        assert_eq!(names(&world.store().join(directory)), [""; 0], "{words}: left in {directory}");
    }
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), "");
}

fn hex(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap()
}

#[test]
fn a_blob_with_a_wrong_digest_or_size_is_refused() {
    let (world, layout, manifest) = prepare("digest");
    let blob = layout.blob(&manifest["layers"][0]);
    let whole = fs::read(&blob).unwrap();
    let mut flipped = whole.clone();
    flipped[1000] ^= 1;
    fs::write(&blob, flipped).unwrap();
    assert_refused(&world, &layout.reference("good"), "was expected");
    fs::write(&blob, &whole[..whole.len() - 100]).unwrap();
    assert_refused(&world, &layout.reference("good"), hex(&manifest["layers"][0]));
    fs::write(&blob, [&whole[..], b"x"].concat()).unwrap();
    assert_refused(&world, &layout.reference("good"), hex(&manifest["layers"][0]));
    fs::remove_file(&blob).unwrap();
    assert_refused(&world, &layout.reference("good"), hex(&manifest["layers"][0]));
    fs::write(&blob, &whole).unwrap();

    let config = layout.blob(&manifest["config"]);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("linux", "lunix")).unwrap();
    assert_refused(&world, &layout.reference("good"), hex(&manifest["config"]));
    fs::write(&config, text).unwrap();
    run(&world, &layout.reference("good")).success();
}

#[test]
fn a_layer_that_is_cut_short_or_is_no_tar_is_refused_even_if_its_digest_is_right() {
    let (world, layout, manifest) = prepare("short");
    let blob = layout.blob(&manifest["layers"][0]);
    let whole = fs::read(&blob).unwrap();
    let diff_id: Value = serde_json::from_slice(&fs::read(layout.blob(&manifest["config"])).unwrap()).unwrap();
    assert!(diff_id["rootfs"]["diff_ids"][0].is_string());
    let contents: [&[u8]; 4] = [&whole[..whole.len() / 2], b"this is no gzip stream", b"", &[0x1f, 0x8b, 8, 0]];
    for content in contents {
        let mut manifest = manifest.clone();
        manifest["layers"][0]["digest"] = json!(harness::image::digest(content));
        manifest["layers"][0]["size"] = json!(content.len());
        fs::write(layout.blob(&manifest["layers"][0]), content).unwrap();
        layout.set_manifest("bad", &manifest);
        assert_refused(&world, &layout.reference("bad"), "unpack");
    }
    // The right blob under the wrong name of its content.
    let other = layout.image("other", vec![(Tar::new().file("other", b""), Form::Gzip)], &json!({}));
    let mut manifest = manifest;
    manifest["config"] = other["config"].clone();
    layout.set_manifest("bad", &manifest);
    assert_refused(&world, &layout.reference("bad"), "was expected");
}

#[test]
fn layers_that_lead_out_of_the_root_are_refused() {
    let (world, layout, _) = prepare("escape");
    let outside = world.base().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let out = outside.to_str().unwrap();
    let up = format!("../../../../../../../..{out}");
    let cases: Vec<(&str, Tar)> = vec![
        ("'..'", Tar::new().file("../evil", b"")),
        ("'..'", Tar::new().file("a/../../evil", b"")),
        ("absolute", Tar::new().file(&format!("{out}/evil"), b"")),
        ("evil", Tar::new().symlink("link", out).file("link/evil", b"")),
        ("evil", Tar::new().symlink("link", &up).file("link/evil", b"")),
        ("evil", Tar::new().directory("d").symlink("d/link", "/").file(&format!("d/link{out}/evil"), b"")),
        ("link", Tar::new().symlink("link", out).file("link/.wh.secret", b"")),
        ("'..'", Tar::new().link("stolen", &format!("{up}/secret"))),
        ("absolute", Tar::new().link("stolen", &format!("{out}/secret"))),
        ("stolen", Tar::new().symlink("link", out).link("stolen", "link/secret")),
        ("whiteout", Tar::new().directory("a").file("a/.wh...", b"")),
        ("stolen", Tar::new().link("stolen", "no/such/file")),
        ("squash the image", Tar::new().file(".wh..wh..opq", b"")),
    ];
    for (number, (words, tar)) in cases.into_iter().enumerate() {
        let tag = format!("bad{number}");
        layout.image(&tag, vec![(tar.busybox(), Form::Gzip)], &json!({}));
        assert_refused(&world, &layout.reference(&tag), words);
        assert_eq!(names(&outside), ["secret"], "{words}");
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    }
    run(&world, &layout.reference("good")).success();
}

#[test]
fn a_bomb_is_stopped_at_the_limit_of_the_configuration() {
    let (world, layout, _) = prepare("bomb");
    let config = world.base().join("config.toml");
    fs::write(&config, "[image]\nmax-layer-bytes = \"4MiB\"\n").unwrap();
    let bomb = vec![0u8; 6 << 20];
    for (tag, form) in [("gzip", Form::Gzip), ("zstd", Form::Zstd)] {
        layout.image(tag, vec![(Tar::new().busybox().file("bomb", &bomb), form)], &json!({}));
        let run = |reference: &str| {
            let id = world.fresh_id();
            world.regen(&["--config", config.to_str().unwrap(), "run", "--image", reference, &id, "--", "true"])
        };
        run(&layout.reference(tag)).fails_with(1, "bomb");
        assert_eq!(names(&world.store().join("layers")), [""; 0]);
    }
    run(&world, &layout.reference("gzip")).success();
}

#[test]
fn references_to_nothing_say_what_there_is() {
    let (world, layout, manifest) = prepare("missing");
    layout.set_manifest("better", &manifest);
    let directory = layout.directory().display().to_string();
    let archive = world.base().join("no.tar").display().to_string();
    fs::write(world.base().join("text"), "text").unwrap();
    let cases = [
        (layout.reference("worse"), "the tags are 'good', 'better'"),
        ("oci:/no/such/layout:x".to_owned(), "no such file or directory"),
        (format!("oci-archive:{archive}"), "no such file or directory"),
        (format!("oci-archive:{}", world.base().join("text").display()), "text"),
        (format!("oci-archive:{directory}"), "it is a directory"),
        (format!("oci:{}", world.rootfs_text()), "no OCI image layout"),
        ("docker://busybox".to_owned(), "skopeo copy"),
        ("busybox".to_owned(), "it does not say how to read the image"),
        ("oci:".to_owned(), "the path is empty"),
        (format!("oci:{directory}:"), "the tag after ':' is empty"),
    ];
    for (reference, words) in cases {
        run(&world, &reference).fails_with(1, words);
    }
    let mut windows: Value = serde_json::from_slice(&fs::read(layout.blob(&manifest["config"])).unwrap()).unwrap();
    windows["os"] = json!("windows");
    let text = windows.to_string();
    let mut manifest = manifest;
    manifest["config"]["digest"] = json!(harness::image::digest(text.as_bytes()));
    manifest["config"]["size"] = json!(text.len());
    fs::write(layout.blob(&manifest["config"]), text).unwrap();
    layout.set_manifest("windows", &manifest);
    run(&world, &layout.reference("windows")).fails_with(1, "windows");
    assert_eq!(names(&world.store().join("layers")), [""; 0]);
}
