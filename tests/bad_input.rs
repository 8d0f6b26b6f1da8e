//! What is typed or written wrongly: one clear line, and nothing has changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::ring::picture;
use harness::{Output, World};
use serde_json::{Value, json};

/// A world with a ring of two packed entries.
fn prepare(name: &str) -> World {
    let world = World::new(name);
    for n in 1..=2 {
        world.run_in("alice", &format!("echo {n} > /tmp/f")).success();
    }
    world.pack();
    world
}

/// The command fails in one line with these words, and state root, store and root file system are as before.
#[track_caller]
fn assert_refused(world: &World, code: i32, words: &str, command: impl FnOnce() -> Output) {
    let before = (world.picture(), picture(&world.rootfs()));
    command().fails_with(code, words);
    assert_eq!((world.picture(), picture(&world.rootfs())), before, "{words}");
}

#[test]
fn names_that_are_none_are_refused_wherever_a_ring_is_named() {
    let world = prepare("names");
    let long = "x".repeat(256);
    let names = [
        ("a/b/c", "'/' is not allowed"),
        ("..", "it would name a directory"),
        ("root/..", "it would name a directory"),
        ("../x", "it would name a directory"),
        ("", "it is empty"),
        ("/x", "it is empty"),
        ("root/", "it is empty"),
        (".hidden", "begins with"),
        ("-x", "begins with"),
        ("a b", "' ' is not allowed"),
        ("a\nb", "'\\n' is not allowed"),
        ("ä", "'ä' is not allowed"),
        (&long, "256 bytes, at most 200"),
    ];
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    for (name, words) in names {
        let flag = format!("--ring={name}");
        assert_refused(&world, 1, words, || world.regen(&["run", "--rootfs", &rootfs, &flag, &id, "--", "true"]));
        for verb in ["log", "show", "verify", "pack", "rm", "pin"] {
            assert_refused(&world, 1, words, || world.ring(&[verb, "--", name]));
        }
        assert_refused(&world, 1, words, || world.ring(&["rollback", "--to", "@1", "--", name]));
        let bundle = world.bundle(|spec| spec["annotations"] = json!({"run.regen.ring": name}));
        assert_refused(&world, 1, "read annotation run.regen.ring=", || {
            world.regen(&["create", "--bundle", bundle.text(), &id])
        });
    }
    for verb in ["log", "verify", "pack", "rm", "set"] {
        let words = "it names an entry where a whole ring is meant: leave out '@' and what follows";
        assert_refused(&world, 1, words, || world.ring(&[verb, "alice@1"]));
    }
    assert_refused(&world, 1, "there is no such ring", || world.ring(&["log", "bob"]));
}

#[test]
fn selectors_that_are_none_or_lead_nowhere_are_refused() {
    let world = prepare("selectors");
    let oldest = "the oldest is @1 of 20";
    let cases = [
        ("@", "read selector '@'"),
        ("@yesterday", "use @latest, @42, @-1"),
        ("@-", "use @latest"),
        ("@-5y", "it is no duration"),
        ("@2026-11-22", "use @latest"),
        ("@99999999999999999999", "it is too large"),
        ("@-99999999999999999999", "it is too large"),
        ("@1@2", "use @latest"),
        ("@0", oldest),
        ("@3", oldest),
        ("@-2", oldest),
        ("@-100w", oldest),
        ("@1970-01-01T00:00:00Z", oldest),
    ];
    for (selector, words) in cases {
        let target = format!("alice{selector}");
        assert_refused(&world, 1, words, || world.run_in(&target, "true"));
        assert_refused(&world, 1, words, || world.ring(&["show", &target]));
        assert_refused(&world, 1, words, || world.ring(&["pin", &target]));
        assert_refused(&world, 1, words, || world.ring(&["diff", &target, "@1"]));
        assert_refused(&world, 1, words, || world.ring(&["rollback", "alice", "--to", selector]));
    }
    assert_refused(&world, 1, "the base is no entry", || world.ring(&["show", "alice@base"]));
    assert_refused(&world, 2, "it names no ring", || world.ring(&["show", "@1"]));
}

#[test]
fn limits_that_hold_nothing_are_refused() {
    let world = prepare("limits");
    let cases = [
        ("0", "a ring has at least one entry"),
        ("-1", "no number"),
        ("x", "no number"),
        ("", "no number"),
        ("99999999999999999999", "read depth '99999999999999999999': it is too large"),
    ];
    for (depth, words) in cases {
        let flag = format!("--depth={depth}");
        assert_refused(&world, 1, words, || world.run_with(&["--ring", "alice", &flag], "true"));
        assert_refused(&world, 1, words, || world.run_with(&["--ring", "new", &flag], "true"));
        assert_refused(&world, 1, words, || world.ring(&["set", "alice", &flag]));
    }
    for bytes in ["x", "-1", "1 parsec", ""] {
        assert_refused(&world, 1, "read size", || world.ring(&["set", "alice", &format!("--max-bytes={bytes}")]));
    }
    for bytes in ["99999999999999999999", "99999999999T"] {
        let words = format!("read size '{bytes}': it is too large");
        assert_refused(&world, 1, &words, || world.ring(&["set", "alice", "--max-bytes", bytes]));
    }
    let bundle = world.bundle(|spec| {
        spec["annotations"] = json!({"run.regen.ring": "alice", "run.regen.ring.keep": "last=5000000000"})
    });
    let id = world.fresh_id();
    assert_refused(&world, 1, "'5000000000' is too large", || world.regen(&["create", "--bundle", bundle.text(), &id]));
    assert_refused(&world, 2, "no limit was given", || world.ring(&["set", "alice"]));
}

#[test]
fn a_bundle_that_is_none_is_refused() {
    let world = prepare("bundle");
    let bundle = world.bundle(|_| {});
    let config = bundle.path().join("config.json");
    let good: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let without = |field: &str| {
        let mut spec = good.clone();
        spec.as_object_mut().unwrap().remove(field);
        spec.to_string()
    };
    let with = |change: fn(&mut Value)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec.to_string()
    };
    let cases = [
        (String::new(), "config.json"),
        ("{".to_owned(), "config.json"),
        ("[1]".to_owned(), "config.json"),
        ("\u{0}\u{1}".to_owned(), "config.json"),
        (without("root"), "root"),
        (without("process"), "process"),
        (with(|spec| spec["root"]["path"] = json!("")), "root"),
        (with(|spec| spec["root"]["path"] = json!("no-such-directory")), "no-such-directory"),
        (with(|spec| spec["root"]["path"] = json!("config.json")), "not a directory"),
        (with(|spec| spec["process"]["args"] = json!([])), "process.args"),
        (with(|spec| spec["process"]["cwd"] = json!("relative")), "process.cwd"),
        (with(|spec| spec["ociVersion"] = json!("99.0.0")), "99.0.0"),
    ];
    for (text, words) in cases {
        fs::write(&config, text).unwrap();
        let id = world.fresh_id();
        assert_refused(&world, 1, words, || world.regen(&["create", "--bundle", bundle.text(), &id]));
        assert_refused(&world, 1, words, || world.regen(&["run", "--ring", "alice", "--bundle", bundle.text(), &id]));
    }
    fs::remove_file(&config).unwrap();
    assert_refused(&world, 1, "config.json", || world.regen(&["run", "--bundle", bundle.text(), &world.fresh_id()]));
    assert_refused(&world, 1, "/no/such", || world.regen(&["run", "--bundle", "/no/such", &world.fresh_id()]));
}

#[test]
fn annotations_that_are_empty_malformed_or_unknown_are_refused_by_name() {
    let world = prepare("annotations");
    let cases = [
        ("run.regen.ring", ""),
        ("run.regen.ring", "other/alice"),
        ("run.regen.rign", "alice"),
        ("run.regen.ring.at", ""),
        ("run.regen.ring.at", "@yesterday"),
        ("run.regen.ring.depth", "0"),
        ("run.regen.ring.depth", ""),
        ("run.regen.ring.depth", "1000000000"),
        ("run.regen.ring.max-bytes", "many"),
        ("run.regen.ring.max-bytes", ""),
        ("run.regen.ring.create", "maybe"),
        ("run.regen.ring.depht", "3"),
        ("run.regen.ring.depth", "3\nlevel=info"),
    ];
    for (key, value) in cases {
        let bundle = world.bundle(|spec| {
            spec["annotations"] = json!({"run.regen.ring": "alice"});
            spec["annotations"][key] = json!(value);
        });
        let words = if key.ends_with("rign") || key.ends_with("depht") {
            key.to_owned()
        } else {
            format!("read annotation {key}='")
        };
        for verb in ["create", "run"] {
            assert_refused(&world, 1, &words, || world.regen(&[verb, "--bundle", bundle.text(), &world.fresh_id()]));
        }
    }
    let bundle =
        world.bundle(|spec| spec["annotations"] = json!({"run.regen.ring": "alice", "run.regen.ring.at": "@9"}));
    let id = world.fresh_id();
    assert_refused(&world, 1, "the oldest is @1", || world.regen(&["create", "--bundle", bundle.text(), &id]));
}

#[test]
fn wrong_usage_ends_with_two() {
    let world = prepare("usage");
    let rootfs = world.rootfs_text();
    for arguments in [
        vec!["run", "--rootfs", &rootfs, "--bundle", "x", "id"],
        vec!["run", "--depth", "3", "--rootfs", &rootfs, "id"],
        vec!["ring"],
        vec!["ring", "log"],
        vec!["ring", "rollback", "alice"],
        vec!["ring", "no-such-verb"],
        vec!["no-such-verb"],
    ] {
        let before = world.picture();
        let output = world.regen(&arguments);
        assert!(output.code(2).stdout().is_empty() && !output.stderr().is_empty(), "{arguments:?}");
        assert_eq!(world.picture(), before);
    }
    let no_command = world.regen(&["run", "--rootfs", &rootfs, &world.fresh_id()]);
    no_command.fails_with(2, "no command was given");
    for id in ["a/b", "..", ""] {
        assert_eq!(world.regen(&["run", "--rootfs", &rootfs, id, "--", "true"]).code, 2, "{id}");
    }
}

#[test]
fn a_configuration_that_says_nothing_valid_is_refused_with_its_line() {
    let world = prepare("config");
    let file = world.base().join("config.toml");
    for (text, words) in [("[ring]\ndepht = 3\n", "line 2"), ("[ring]\ndepth = 0\n", "ring.depth"), ("x", "line 1")] {
        fs::write(&file, text).unwrap();
        let arguments = ["--config", file.to_str().unwrap(), "ring", "ls"];
        assert_refused(&world, 1, words, || world.regen(&arguments));
    }
    assert_refused(&world, 1, "no such file", || world.regen(&["--config", "/no/such.toml", "ring", "ls"]));
    fs::write(&file, "[ring]\ndepth = 3\nmax-depth = 5\n").unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    let run = ["run", "--rootfs", &rootfs, "--ring", "bob", &id, "--", "true"];
    world.regen(&[&config[..], &run].concat()).success();
    assert_eq!(world.ring_json(&["ls"])[1]["depth"], 3, "the depth of a new ring");
    let bundle = world.bundle(|spec| spec["annotations"] = json!({"run.regen.ring": "x", "run.regen.ring.depth": "6"}));
    let create = ["create", "--bundle", bundle.text(), &id];
    world.regen(&[&config[..], &create].concat()).fails_with(1, "the administrator allows 5 at most");
}
