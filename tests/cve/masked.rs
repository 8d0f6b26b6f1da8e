//! CVE-2025-31133: `/dev/null`, from which files are masked, is something else by the time it is used.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::World;
use crate::{
    Exchange, assert_refused_or_prints, assert_untouched, create_amid, drop_mounts, host_directory, image, run,
    shell_in,
};

/// An image with a file to be masked, and one that must not be shown in its place.
fn prepare(world: &World) -> PathBuf {
    let image = image(world, "image");
    fs::write(image.join("etc/masked"), "to be masked\n").unwrap();
    fs::write(image.join("etc/other"), "in its place\n").unwrap();
    fs::create_dir(image.join("etc/directory")).unwrap();
    fs::write(image.join("etc/directory/file"), "to be masked\n").unwrap();
    image
}

/// Reads what is masked, and tries to write through it. Neither may show or change anything.
/// It names no /dev/null itself: that may be the other file.
const LOOK: &str = "exec 2>&-; cat /etc/masked /etc/directory/*; (echo changed > /etc/masked); \
    grep -q changed /etc/other && echo written; echo over";

fn mask(spec: &mut Value) {
    // The image's own /dev, which is the weak case.
    drop_mounts(spec, |place| place.starts_with("/dev"));
    spec["linux"]["maskedPaths"] = json!(["/etc/masked", "/etc/directory", "/no/such/file"]);
}

#[track_caller]
fn assert_masked(world: &World, image: &Path, change: impl FnOnce(&mut Value)) -> i32 {
    let bundle = shell_in(world, image, LOOK, |spec| {
        mask(spec);
        change(spec);
    });
    let output = run(world, &bundle);
    assert_refused_or_prints(&output, "over\n");
    assert_eq!(fs::read_to_string(image.join("etc/other")).unwrap(), "in its place\n");
    output.code
}

#[test]
fn a_null_device_that_is_a_symlink_masks_nothing_with_its_target() {
    let world = World::new("31133-link");
    let host = host_directory(&world);
    let secret = host.join("secret");
    for target in
        ["/etc/other", "../etc/other", secret.to_str().unwrap(), "/proc/sys/kernel/core_pattern", "/proc/self/exe"]
    {
        let image = prepare(&world);
        symlink(target, image.join("dev/null")).unwrap();
        assert_masked(&world, &image, |_| ());
        assert_untouched(&host);
        fs::remove_dir_all(&image).unwrap();
    }
}

#[test]
fn a_null_device_that_is_a_plain_file_or_directory_is_no_mask() {
    let world = World::new("31133-file");
    let image = prepare(&world);
    fs::write(image.join("dev/null"), "in its place\n").unwrap();
    assert_masked(&world, &image, |_| ());
    fs::remove_file(image.join("dev/null")).unwrap();
    fs::create_dir(image.join("dev/null")).unwrap();
    assert_masked(&world, &image, |_| ());
}

#[test]
fn a_null_device_that_changes_places_with_a_symlink_masks_or_the_run_is_refused() {
    let world = World::new("31133-race");
    let image = prepare(&world);
    assert_eq!(assert_masked(&world, &image, |_| ()), 0, "it is masked where nobody interferes");
    symlink("../etc/other", image.join("dev/swap")).unwrap();
    let exchange = Exchange::start(image.join("dev/null"), image.join("dev/swap"));
    for _ in 0..40 {
        assert_masked(&world, &image, |_| ());
    }
    assert!(exchange.finish() > 100, "there was no race");
}

#[test]
fn what_is_to_be_masked_is_found_inside_the_image_wherever_its_links_lead() {
    let world = World::new("31133-target");
    let host = host_directory(&world);
    let image = prepare(&world);
    fs::remove_file(image.join("etc/masked")).unwrap();
    symlink(host.join("secret"), image.join("etc/masked")).unwrap();
    assert_masked(&world, &image, |_| ());
    assert_untouched(&host);
}

#[test]
fn what_is_to_be_read_only_changes_places_with_a_symlink_and_something_is() {
    let world = World::new("31133-readonly");
    let image = prepare(&world);
    symlink("/etc/directory", image.join("etc/swap")).unwrap();
    fs::create_dir(image.join("etc/kept")).unwrap();
    // Either the directory, under whichever name it has, or what the symlink leads to, which is as good a meaning.
    let script = "kept=/etc/kept; [ -L $kept ] && kept=/etc/swap; n=0; for directory in $kept /etc/directory; do
        (echo > $directory/new) 2>/dev/null || n=$((n + 1)); rm -f $directory/new; done; echo $n > /tmp/answer";
    let bundle = shell_in(&world, &image, script, |spec| spec["linux"]["readonlyPaths"] = json!(["/etc/kept"]));
    let mut turns = 0;
    for _ in 0..20 {
        let (answer, count) = create_amid(&world, &image, &bundle, ("etc/kept", "etc/swap"));
        assert!(answer.is_none_or(|answer| answer == "1\n"), "nothing is read-only");
        turns += count;
    }
    assert!(turns > 100, "there was no race");
}
