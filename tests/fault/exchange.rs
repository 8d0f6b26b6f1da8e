//! Rings that go to a registry, come from it, and move by it: either side is killed, and done again.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::check::find_litter;
use crate::harness::image_registry::{Registry, Setup};
use crate::harness::{World, eventually};
use crate::phase::{RING, SHARE, choose};
use crate::trace::{Follow, Point, Victim, kill_at, record};

pub const PLAIN: &str = "--tls-verify=false";

/// Kills a command at some of its points, or all. `arm` makes everything ready for the nth time and says what the command
/// is; `settle` is what comes after it, whether it was killed or not.
pub fn at_points(name: &str, world: &World, arm: impl Fn(usize) -> Vec<String>, settle: impl Fn(usize)) {
    let victim = |round| Victim { arguments: arm(round), follow: Follow::Everything };
    let mut all: Vec<Point> = record(world, &victim(0));
    settle(0);
    let total = all.len();
    let points = if std::env::var_os("REGEN_OCI_FAULT_ALL").is_some() { all } else { choose(&mut all, SHARE) };
    let mut killed = 0;
    for (round, point) in (1..).zip(&points) {
        println!("fault: {name} at {point}");
        let traced = kill_at(world, &victim(round), point);
        killed += usize::from(traced.killed);
        traced.finish();
        settle(round);
    }
    let points = points.len();
    println!("fault: {name}: {points} of {total} points, {killed} killed, 0 failed");
    assert!(killed * 2 > points, "only {killed} of {points} points were reached");
}

pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// One line more in the file that tells the state, and one entry.
pub fn grow(world: &World, line: u32) {
    world.run_in(RING, &format!("echo {line} >> /state")).success();
    world.pack();
}

/// What the next run finds, or why there is none.
pub fn look(world: &World, ring: &str) -> Result<String, String> {
    let output = world.run_with(&["--ring", ring, "--rebase"], "test ! -e /state || cat /state");
    match output.code {
        0 => Ok(output.stdout().split_whitespace().collect::<Vec<_>>().join(" ")),
        _ => Err(output.stderr().to_owned()),
    }
}

pub fn rings(world: &World) -> BTreeSet<String> {
    let list = world.ring_json(&["ls"]);
    list.as_array().unwrap().iter().map(|ring| ring["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_killed_push_is_done_again() {
    let (world, registry) = (World::new("push"), Registry::start(Setup::Open));
    grow(&world, 1);
    grow(&world, 2);
    let reference = |round: usize| registry.reference(&format!("a{round}"));
    let arm = |round| words(&["ring", "push", RING, &reference(round), PLAIN]);
    at_points("push", &world, arm, |round| {
        world.regen(&["ring", "verify"]).success();
        // What is there by now is whole, or nothing that counts.
        let early = world.ring(&["pull", &reference(round), "b", PLAIN]);
        assert!(early.code == 0 || early.stderr().contains("there is no ring"), "{early:?}");
        world.ring(&["push", RING, &reference(round), PLAIN]).success();
        world.ring(&["pull", &reference(round), "b", PLAIN]).success();
        assert_eq!(look(&world, "b").unwrap(), "1 2");
        world.ring(&["rm", "b"]).success();
    });
    world.pack();
    assert_eq!(find_litter(&world), [""; 0]);
}

#[test]
fn a_killed_first_pull_leaves_no_ring_or_one_that_nothing_starts_from() {
    let (world, registry) = (World::new("pull"), Registry::start(Setup::Open));
    grow(&world, 1);
    grow(&world, 2);
    let reference = registry.reference("a");
    world.ring(&["push", RING, &reference, PLAIN]).success();
    let arm = |_| words(&["ring", "pull", &reference, "b", PLAIN]);
    at_points("pull", &world, arm, |_| {
        world.regen(&["ring", "verify"]).success();
        if rings(&world).contains("b") {
            match look(&world, "b") {
                Ok(found) => assert_eq!(found, "1 2"),
                Err(refusal) => assert!(refusal.contains("it has not arrived from"), "{refusal}"),
            }
        }
        world.ring(&["pull", &reference, "b", PLAIN]).success();
        assert_eq!(look(&world, "b").unwrap(), "1 2");
        world.pack();
        assert_eq!(find_litter(&world), [""; 0]);
        world.ring(&["rm", "b"]).success();
    });
}

#[test]
fn a_killed_pull_leaves_the_entries_before_or_after() {
    let (world, registry) = (World::new("more"), Registry::start(Setup::Open));
    let (old, new) = (registry.reference("old"), registry.reference("new"));
    grow(&world, 1);
    world.ring(&["push", RING, &old, PLAIN]).success();
    grow(&world, 2);
    grow(&world, 3);
    world.ring(&["push", RING, &new, PLAIN]).success();
    let arm = |_| {
        world.ring(&["pull", &old, "b", PLAIN]).success();
        world.pack();
        words(&["ring", "pull", &new, "b", PLAIN])
    };
    at_points("pull more", &world, arm, |_| {
        world.regen(&["ring", "verify"]).success();
        let found = look(&world, "b").unwrap();
        assert!(found == "1" || found == "1 2 3", "{found}");
        world.ring(&["pull", &new, "b", PLAIN]).success();
        assert_eq!(look(&world, "b").unwrap(), "1 2 3");
        world.pack();
        assert_eq!(find_litter(&world), [""; 0]);
        world.ring(&["rm", "b"]).success();
    });
}

/// What `give` says.
fn give(world: &World, reference: &str, more: &[&str]) -> Value {
    world.ring_json(&[&["give", RING, "--to", "there", reference, PLAIN], more].concat())
}

/// The arguments of `take` for it.
fn take(given: &Value, reference: &str) -> Vec<String> {
    let (index, moves) = (given["index"].as_str().unwrap(), given["moves"].to_string());
    words(&["ring", "take", reference, RING, "--index", index, "--moves", &moves, PLAIN])
}

fn run(world: &World, arguments: &[String]) {
    world.regen(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).success();
}

#[test]
fn a_ring_whose_giver_is_killed_is_given_once() {
    let (here, there, registry) = (World::new("here"), World::new("there"), Registry::start(Setup::Open));
    grow(&here, 1);
    let reference = |round: usize| registry.reference(&format!("a{round}"));
    let arm = |round| words(&["ring", "give", RING, "--to", "there", &reference(round), PLAIN]);
    at_points("give", &here, arm, |round| {
        here.regen(&["ring", "verify"]).success();
        match look(&here, RING) {
            Ok(found) => assert_eq!(found, "1"),
            Err(refusal) => assert!(refusal.contains("it moved to node 'there'"), "{refusal}"),
        }
        let given = give(&here, &reference(round), &[]);
        assert!(look(&here, RING).is_err(), "both have it");
        assert_eq!(given["moves"], round + 1);
        run(&there, &take(&given, &reference(round)));
        assert_eq!(look(&there, RING).unwrap(), "1");
        // As if it had never been taken.
        there.ring(&["rm", RING]).success();
        here.ring(&["keep", RING, "--to", "there"]).success();
    });
    here.pack();
    assert_eq!(find_litter(&here), [""; 0]);
}

#[test]
fn a_ring_whose_taker_is_killed_is_taken_whole() {
    let (here, there, registry) = (World::new("here"), World::new("there"), Registry::start(Setup::Open));
    grow(&here, 1);
    grow(&here, 2);
    let reference = registry.reference("a");
    let given = give(&here, &reference, &[]);
    at_points(
        "take",
        &there,
        |_| take(&given, &reference),
        |_| {
            there.regen(&["ring", "verify"]).success();
            if rings(&there).contains(RING) {
                match look(&there, RING) {
                    Ok(found) => assert_eq!(found, "1 2"),
                    Err(refusal) => assert!(refusal.contains("it has not arrived from"), "{refusal}"),
                }
            }
            run(&there, &take(&given, &reference));
            assert_eq!(look(&there, RING).unwrap(), "1 2");
            there.pack();
            assert_eq!(find_litter(&there), [""; 0]);
            there.ring(&["rm", RING]).success();
        },
    );
    assert!(look(&here, RING).unwrap_err().contains("it moved to node 'there'"));
}

#[test]
fn what_a_container_writes_whose_ring_is_taken_from_it_is_in_one_ring() {
    let (world, registry) = (World::new("fork"), Registry::start(Setup::Open));
    grow(&world, 1);
    let reference = |round: usize| registry.reference(&format!("a{round}"));
    let id = |round: usize| world.id(&format!("c{round}"));
    let arm = |round: usize| {
        let script = "echo more >> /state; touch /dev/done; exec sleep 1000";
        let rootfs = world.rootfs_text();
        world
            .regen(&["run", "-d", "--rootfs", &rootfs, "--ring", RING, &id(round), "--", "sh", "-c", script])
            .success();
        let done = format!("/proc/{}/root/dev/done", world.pid(&id(round)));
        eventually("it writes", || std::path::Path::new(&done).exists());
        words(&["ring", "give", RING, "--to", "there", &reference(round), PLAIN, "--force"])
    };
    at_points("give by force", &world, arm, |round| {
        world.regen(&["ring", "verify"]).success();
        let given = give(&world, &reference(round), &["--force"]);
        world.delete(&id(round));
        world.pack();
        world.regen(&["ring", "verify"]).success();
        let fork = format!("{RING}-forked-{}", given["moves"]);
        assert_eq!(look(&world, &fork).unwrap(), "1 more");
        world.ring(&["keep", RING, "--to", "there"]).success();
        assert_eq!(look(&world, RING).unwrap(), "1");
        world.ring(&["rm", &fork]).success();
        world.pack();
        assert_eq!(find_litter(&world), [""; 0]);
    });
}
