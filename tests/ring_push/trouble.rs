//! Registries that are busy, or somebody else; several pushes at a time; a disk that is full.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::liar::{Answer, Liar};
use super::{PLAIN, found, grow, pull};
use crate::harness::World;
use crate::harness::image_registry::{Registry, Setup};

#[test]
fn a_registry_that_has_too_much_to_do_is_asked_again() {
    let (world, target) = (World::new("busy"), World::new("to"));
    grow(&world, "a", 1..=1);
    world.pack();
    let tries = Arc::new(AtomicU32::new(0));
    let counted = tries.clone();
    let liar = Liar::start(&world.ring_directory("a"), move |asked, answer| {
        let busy = asked.path.contains("/blobs/") && counted.fetch_add(1, Ordering::Relaxed) == 0;
        if busy { Answer::new(429, "").with("Retry-After: 1") } else { answer }
    });
    pull(&target, &liar.reference(), "b");
    assert_eq!(tries.load(Ordering::Relaxed), 3, "the first blob was asked for twice");
    assert_eq!(found(&target, "b"), "1");
}

#[test]
fn a_registry_that_is_always_busy_is_given_up() {
    let (world, target) = (World::new("swamped"), World::new("to"));
    grow(&world, "a", 1..=1);
    world.pack();
    let liar = Liar::start(&world.ring_directory("a"), move |asked, answer| {
        if asked.path.contains("/blobs/") { Answer::new(500, "oh") } else { answer }
    });
    target
        .ring(&["pull", &liar.reference(), "b", PLAIN])
        .fails_with(1, "the registry answers 500 Internal Server Error: try again later");
    assert_eq!(target.ring_json(&["ls"]), json!([]));
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let (world, registry) = (World::new("name"), Registry::start(Setup::Tls));
    grow(&world, "a", 1..=1);
    let reference = registry.reference("a").replace("127.0.0.1", "localhost");
    for verb in [["push", "a", &reference], ["pull", &reference, "b"]] {
        let mut command = world.command(&[&["ring"], &verb[..]].concat());
        command.env("SSL_CERT_FILE", registry.certificate());
        let refused = world.finish(command);
        refused.fails_with(1, "not valid for name").fails_with(1, "into /etc/containers/certs.d/localhost:");
    }
    assert_eq!(world.ring_json(&["ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn two_pushes_of_one_ring_at_once_leave_the_ring() {
    let (world, target, registry) = (World::new("twice"), World::new("to"), Registry::start(Setup::Open));
    grow(&world, "a", 1..=4);
    world.pack();
    let reference = registry.reference("a");
    let push = || world.spawn(world.command(&["ring", "push", "a", &reference, PLAIN]));
    let both = [push(), push()];
    both.into_iter().for_each(|one| {
        one.finish().success();
    });
    pull(&target, &reference, "b");
    assert_eq!(found(&target, "b"), "1 2 3 4");
    target.pack();
    target.ring(&["verify"]).success();
}

/// A store of so many bytes, as long as this lives.
struct Small<'a>(&'a World);

impl<'a> Small<'a> {
    fn new(world: &'a World, size: &str) -> Self {
        std::fs::create_dir(world.store()).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"]).arg(world.store());
        world.finish(mount).success();
        Self(world)
    }

    fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={size}")]).arg(self.0.store());
        self.0.finish(mount).success();
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0.store(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_pull_onto_a_full_disk_leaves_nothing_and_goes_on_when_there_is_room() {
    let (world, target, registry) = (World::new("large"), World::new("full"), Registry::start(Setup::Open));
    // One that is large as a blob, and one that is so only as a layer.
    world.run_in("a", "head -c 6000000 /dev/urandom > /noise; echo 1 > /tmp/f").success();
    world.run_in("b", "yes | head -c 12000000 > /words; echo 1 > /tmp/f").success();
    world.pack();
    let small = Small::new(&target, "8M");
    for (ring, words) in [("a", "are to be fetched and unpacked"), ("b", "no space left on device")] {
        let reference = registry.reference(ring);
        super::push(&world, ring, &reference);
        small.resize("8M");
        target.ring(&["pull", &reference, ring, PLAIN]).fails_with(1, words);
        assert_eq!(target.ring_json(&["ls"]), json!([]), "{ring}");
        assert_eq!(target.layers(), [""; 0], "{ring}");
        small.resize("64M");
        pull(&target, &reference, ring);
        assert_eq!(found(&target, ring), "1");
        target.pack();
        target.ring(&["rm", ring]).success();
        target.ring(&["pack"]).success();
    }
    drop(small);
}
