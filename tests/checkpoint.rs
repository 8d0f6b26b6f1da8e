//! What `checkpoint` and `restore` say where they cannot do their work. That they do it is in `tests/vm`: Debian's criu
//! works on Debian's own kernel only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use harness::World;

#[test]
fn without_criu_nothing_is_lost_and_the_package_is_named() {
    let world = World::new("nocriu");
    let id = world.sleeper("a");
    let mut command = world.command(&["checkpoint", &id]);
    command.env("PATH", world.base());
    let output = world.finish(command);
    output.fails_with(1, "install the package criu");
    assert!(output.stderr().contains(&format!("checkpoint container '{id}'")), "{output:?}");
    assert_eq!(world.status(&id), "running");
    world.delete(&id);
}

#[test]
fn what_criu_cannot_do_is_one_line_with_the_path_of_its_log() {
    let world = World::new("criufails");
    let (bundle, id) = (world.shell("exit 1"), world.id("a"));
    // Images of nothing, which no criu on any kernel can read.
    let images = world.base().join("images");
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("descriptors.json"), "[\"\",\"\",\"\"]").unwrap();
    let images = images.to_str().unwrap();
    let output = world.regen(&["restore", "--image-path", images, "--bundle", bundle.text(), &id]);
    output.fails_with(1, "run criu: Error (criu/");
    assert!(output.stderr().contains(&format!("its log is '{images}/restore.log'")), "{output:?}");
    world.regen(&["state", &id]).fails_with(1, "does not exist");
}

#[test]
fn what_cannot_be_saved_or_restored_is_refused_before_criu_is_asked() {
    let world = World::new("criurefuses");
    world.regen(&["checkpoint", "nobody"]).fails_with(1, "does not exist");
    let bundle = world.shell("true");
    let id = world.id("a");
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    world.regen(&["checkpoint", &id]).fails_with(1, "container not running: it is created");
    world.regen(&["checkpoint", "--parent-path", "/before", &id]).fails_with(2, "relative to --image-path");
    world.regen(&["checkpoint", "--page-server", "nowhere", &id]).fails_with(2, "ADDRESS:PORT");
    world.delete(&id);
    let flags = ["restore", "--image-path", "nothing", "--bundle", bundle.text(), &id];
    world.regen(&flags).fails_with(1, "name the directory that a checkpoint was written to with --image-path");
    world.regen(&["state", &id]).fails_with(1, "does not exist");
}
