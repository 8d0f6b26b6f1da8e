//! Entries that become images and images that become entries; rings that are sent in the background: whoever does it is
//! killed, and it is done again.

use std::fs;
use std::path::Path;

use crate::check::find_litter;
use crate::exchange::{PLAIN, at_points, grow, look, rings, words};
use crate::harness::World;
use crate::harness::image_registry::{Registry, Setup};
use crate::harness::ring::names;
use crate::phase::RING;

/// Everything below a directory that begins as unfinished things do.
fn unfinished(directory: &Path) -> Vec<String> {
    let all = names(directory).into_iter().chain(names(&directory.join("blobs/sha256")));
    all.filter(|name| name.starts_with(".tmp-")).collect()
}

/// What comes back of an export: the ring as it was when that was made.
fn import(world: &World, from: &str) {
    world.ring(&["import", from, "c"]).success();
    assert_eq!(look(world, "c").unwrap(), "1 2");
    world.pack();
    assert_eq!(find_litter_but_images(world), [""; 0]);
    world.ring(&["rm", "c"]).success();
}

/// Layers of images stay until they are pruned.
fn find_litter_but_images(world: &World) -> Vec<String> {
    let is_image = |line: &String| line.strip_prefix("layer ").is_some_and(|id| id.len() == 64);
    find_litter(world).into_iter().filter(|line| !is_image(line)).collect()
}

#[test]
fn a_killed_export_into_a_layout_is_done_again() {
    let world = World::new("layout");
    grow(&world, 1);
    grow(&world, 2);
    let directory = |round: usize| world.base().join(format!("layout-{round}"));
    let road = |round: usize| format!("oci:{}:x", directory(round).display());
    let arm = |round| words(&["ring", "export", RING, &road(round)]);
    at_points("export to a layout", &world, arm, |round| {
        world.regen(&["ring", "verify"]).success();
        // What is there by now is whole, or nothing that counts.
        let early = world.ring(&["import", &road(round), "b"]);
        let nothing = ["no such file", "no OCI image layout", "there is no ring"];
        assert!(early.code == 0 || nothing.iter().any(|words| early.stderr().contains(words)), "{early:?}");
        if early.code == 0 {
            world.ring(&["rm", "b"]).success();
        }
        world.ring(&["export", RING, &road(round)]).success();
        assert_eq!(unfinished(&directory(round)), [""; 0]);
        import(&world, &road(round));
        fs::remove_dir_all(directory(round)).unwrap();
    });
    world.pack();
    assert_eq!(find_litter(&world), [""; 0]);
}

#[test]
fn a_killed_export_into_an_archive_leaves_the_archive_or_nothing() {
    let world = World::new("archive");
    grow(&world, 1);
    grow(&world, 2);
    let directory = world.base().join("archives");
    fs::create_dir(&directory).unwrap();
    let file = |round: usize| directory.join(format!("{round}.tar"));
    let road = |round: usize| format!("oci-archive:{}", file(round).display());
    let arm = |round| words(&["ring", "export", RING, &road(round), "--full"]);
    at_points("export to an archive", &world, arm, |round| {
        world.regen(&["ring", "verify"]).success();
        if !file(round).exists() {
            world.ring(&["export", RING, &road(round), "--full"]).success();
        }
        assert_eq!(names(&directory), [format!("{round}.tar")]);
        import(&world, &road(round));
        fs::remove_file(file(round)).unwrap();
    });
    world.ring(&["prune"]).success();
    assert_eq!(find_litter(&world), [""; 0]);
}

#[test]
fn a_killed_import_with_its_base_leaves_no_ring_or_one_that_nothing_starts_from() {
    let world = World::new("import");
    grow(&world, 1);
    grow(&world, 2);
    let road = format!("oci:{}:x", world.base().join("full").display());
    world.ring(&["export", RING, &road, "--full"]).success();
    let arm = |_| words(&["ring", "import", &road, "b"]);
    at_points("import with its base", &world, arm, |_| {
        world.regen(&["ring", "verify"]).success();
        let mut arrived = false;
        if rings(&world).contains("b") {
            match look(&world, "b") {
                Ok(found) => {
                    assert_eq!(found, "1 2");
                    arrived = true;
                }
                Err(refusal) => assert!(refusal.contains("it has not arrived from"), "{refusal}"),
            }
        }
        // With its base an entry becomes a ring of its own, once.
        if !arrived {
            world.ring(&["import", &road, "b"]).success();
        }
        assert_eq!(look(&world, "b").unwrap(), "1 2");
        world.pack();
        assert_eq!(find_litter_but_images(&world), [""; 0]);
        world.ring(&["rm", "b"]).success();
        world.ring(&["prune"]).success();
        assert_eq!(find_litter(&world), [""; 0], "its base goes with it");
    });
}

#[test]
fn a_killed_sender_is_followed_by_the_next() {
    let (world, registry) = (World::new("sender"), Registry::start(Setup::Open));
    grow(&world, 1);
    grow(&world, 2);
    let config = world.base().join("config.toml");
    let prefix = |round: usize| format!("{}/root/{RING}", registry.reference(&format!("r{round}")));
    let sender = ["--config", config.to_str().unwrap(), "sender"];
    let arm = |round: usize| {
        let prefix = registry.reference(&format!("r{round}"));
        fs::write(&config, format!("[ring]\nauto-push = \"{prefix}\"\nauto-push-tls-verify = false\n")).unwrap();
        words(&sender)
    };
    at_points("sender", &world, arm, |round| {
        world.regen(&["ring", "verify"]).success();
        let early = world.ring(&["pull", &prefix(round), "b", PLAIN]);
        assert!(early.code == 0 || early.stderr().contains("there is no ring"), "{early:?}");
        world.regen(&sender).success();
        world.ring(&["pull", &prefix(round), "b", PLAIN]).success();
        assert_eq!(look(&world, "b").unwrap(), "1 2");
        world.ring(&["rm", "b"]).success();
        world.pack();
        assert_eq!(find_litter(&world), [""; 0]);
        let note = world.ring_file(RING, "push.json");
        assert_eq!((&note["last_seq"], &note["failures"]), (&2.into(), &0.into()), "{note}");
    });
}
