//! What docs/security.md says about secrets in rings: how long they stay, and what takes them out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::PathBuf;

use harness::World;
use harness::ring::picture;

const SECRET: &str = "a-token-that-nobody-should-keep";

/// The files of the store in which it can be read, compressed or not.
fn places(world: &World) -> Vec<PathBuf> {
    let has = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
    let files = picture(&world.store()).into_keys().filter(|path| path.is_file());
    files
        .filter(|path| {
            let bytes = fs::read(path).unwrap();
            has(&bytes) || zstd::decode_all(&*bytes).is_ok_and(|bytes| has(&bytes))
        })
        .collect()
}

#[test]
fn a_secret_stays_until_no_entry_stands_on_the_run_that_wrote_it() {
    let world = World::new("secret");
    world.run_in("alice", &format!("echo {SECRET} > /tmp/token; echo 1 > /tmp/state")).success();
    world.run_in("alice", "rm /tmp/token").success();
    world.pack();
    world.ring(&["set", "alice", "--depth", "1"]).success();
    world.pack();
    assert_eq!(world.seqs("alice"), [2]);
    let kept = places(&world);
    assert!(kept.iter().any(|path| path.starts_with(world.ring_directory("alice"))), "the documents say otherwise");

    world.ring(&["rollback", "alice", "--to", "@base"]).success();
    world.run_in("alice", "echo 1 > /tmp/state").success();
    world.ring(&["set", "alice", "--depth", "1"]).success();
    world.pack();
    assert_eq!(world.seqs("alice"), [3]);
    assert_eq!(places(&world), Vec::<PathBuf>::new());
    assert_eq!(world.run_in("alice", "cat /tmp/state").success().stdout(), "1\n");
}
