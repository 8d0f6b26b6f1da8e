//! What a ring is for: a container's state survives its end, and can be put back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use harness::World;
use serde_json::{Value, json};

/// A ring of three packed entries, each of which has one more file than the one before.
fn three_entries(world: &World) {
    for n in 1..=3 {
        world.run_in("alice", &format!("echo {n} > /tmp/newest; touch /tmp/{n}")).success();
    }
    world.pack();
    assert_eq!(world.seqs("alice"), [3, 2, 1]);
}

#[test]
fn a_run_finds_what_the_one_before_it_left_and_the_base_stays_as_it_was() {
    let world = World::new("survive");
    let before = harness::ring::picture(&world.rootfs());
    world.run_in("alice", "echo one > /tmp/f; echo two >> /etc/passwd; rm /bin/ls; mkdir /opt").success();
    let output = world.run_in("alice", "cat /tmp/f; tail -n 1 /etc/passwd; test -e /bin/ls || echo gone; echo /opt");
    assert_eq!(output.success().stdout(), "one\ntwo\ngone\n/opt\n");
    assert_eq!(harness::ring::picture(&world.rootfs()), before);
    assert_eq!(world.seqs("alice"), [1], "the second run changed nothing");
}

#[test]
fn a_container_that_destroyed_itself_is_put_back() {
    let world = World::new("mistake");
    world.run_in("alice", "echo precious > /root/work").success();
    world.run_in("alice", "rm -r /bin; :").success();
    world.run_in("alice", "true").fails_with(127, "executable file not found in $PATH");
    assert_eq!(world.seqs("alice"), [2, 1], "a start that failed adds no entry");

    world.ring(&["rollback", "alice", "--to", "@-1"]).success();
    assert_eq!(world.run_in("alice", "cat /root/work").success().stdout(), "precious\n");
    assert_eq!(world.seqs("alice"), [2, 1], "the entries after it stay");
}

#[test]
fn after_a_rollback_the_next_exit_is_a_new_entry_whose_parent_is_where_it_started() {
    let world = World::new("parent");
    three_entries(&world);
    let next = |world: &World| {
        let log = world.log("alice");
        let next: Vec<_> = log.iter().filter(|entry| entry["next"] == true).map(|entry| entry["seq"].clone()).collect();
        assert_eq!(next.len(), 1);
        next[0].as_u64().unwrap()
    };
    assert_eq!(next(&world), 3);
    let rolled = world.ring_json(&["rollback", "alice", "--to", "@1"]);
    assert_eq!((&rolled["seq"], &rolled["next"]), (&json!(1), &json!(true)));
    assert_eq!(next(&world), 1);
    world.run_in("alice", "test ! -e /tmp/2").success();
    assert_eq!(next(&world), 1, "an exit that changed nothing leaves the pointer");

    world.run_in("alice", "touch /tmp/4; ls /tmp").success();
    assert_eq!(next(&world), 4);
    let entry = world.ring_json(&["show", "alice@4"]);
    assert_eq!(entry["parent"], 1);
    assert_eq!(world.layers_of("alice@4")[..1], world.layers_of("alice@1"));
    assert_eq!(world.run_in("alice", "ls /tmp").success().stdout(), "1\n4\nnewest\n");
}

#[test]
fn a_rollback_to_the_base_starts_from_nothing() {
    let world = World::new("tobase");
    three_entries(&world);
    assert_eq!(world.ring_json(&["rollback", "alice", "--to", "@base"]), Value::Null);
    assert_eq!(world.run_in("alice", "ls /tmp").success().stdout(), "");
    assert!(world.log("alice").iter().all(|entry| entry["next"] == false));
    world.run_in("alice", "touch /tmp/4").success();
    let entry = world.ring_json(&["show", "alice"]);
    assert_eq!((&entry["seq"], &entry["parent"]), (&json!(4), &Value::Null));
}

#[test]
fn every_selector_finds_its_entry_for_runs_and_for_looks() {
    let world = World::new("selectors");
    three_entries(&world);
    let minutes_ago = |minutes| chrono::Utc::now() - chrono::TimeDelta::minutes(minutes);
    world.edit_ring_file("alice", "ring.json", |ring| {
        for (entry, minutes) in ring["entries"].as_array_mut().unwrap().iter_mut().zip([90, 30, 10]) {
            entry["created"] = json!(minutes_ago(minutes));
        }
    });
    let log = world.log("alice");
    let field = |index: usize, name: &str| format!("@{}", log[index][name].as_str().unwrap());
    let second = chrono::DateTime::parse_from_rfc3339(log[1]["created"].as_str().unwrap()).unwrap();
    let just_before = format!("@{}", (second - chrono::TimeDelta::nanoseconds(1)).to_rfc3339());
    let other_zone = format!("@{}", second.with_timezone(&chrono::FixedOffset::east_opt(3600).unwrap()).to_rfc3339());
    let expectations = [
        ("", "3"),
        ("@latest", "3"),
        ("@2", "2"),
        ("@-0", "3"),
        ("@-1", "2"),
        ("@-2", "1"),
        ("@-5m", "3"),
        ("@-20m", "2"),
        ("@-1h15m", "1"),
        ("@-5400s", "1"),
        (&field(1, "created"), "2"),
        (&just_before, "1"),
        (&other_zone, "2"),
        (&field(2, "id"), "1"),
    ];
    for (selector, seq) in expectations {
        let target = format!("alice{selector}");
        assert_eq!(world.ring_json(&["show", &target])["seq"].to_string(), seq, "{target}");
    }
    // The same code finds the start of a run: one form of each kind.
    for (selector, newest) in [("@-1", "2\n"), ("@1", "1\n"), ("@-20m", "2\n"), ("@latest", "3\n"), ("@base", "")] {
        let output = world.run_in(&format!("alice{selector}"), "test -e /tmp/newest && cat /tmp/newest; true");
        assert_eq!(output.success().stdout(), newest, "alice{selector}");
    }
    assert_eq!(world.seqs("alice"), [3, 2, 1]);

    let oldest = format!("the oldest is @1 of {}", log[2]["created"].as_str().unwrap());
    for selector in ["@-2h", "@2001-01-01T00:00:00Z", "@7", "@-3", "@20010101T000000Z-000001"] {
        let target = format!("alice{selector}");
        world.ring(&["show", &target]).fails_with(1, &oldest);
        world.run_in(&target, "true").fails_with(1, &oldest);
        world.ring(&["rollback", "alice", "--to", selector]).fails_with(1, &oldest);
    }
    world.ring(&["rollback", "alice", "--to", "bob@1"]).fails_with(2, "another ring");
    assert_eq!(world.ring_json(&["rollback", "alice", "--to", "alice@-1"])["seq"], 2);
    assert_eq!(world.ring_json(&["rollback", "alice", "--to", "-2"])["seq"], 1);
}

#[test]
fn the_log_has_every_field_that_scripts_rely_on() {
    let world = World::new("fields");
    world.run_in("alice", "echo a > /tmp/a; exit 3").code(3);
    world.run_in("alice", "dd if=/dev/urandom of=/tmp/b bs=1024 count=300 2>/dev/null").success();
    world.pack();
    let log = world.log("alice");
    for entry in &log {
        let digest = entry["digest"].as_str().unwrap();
        assert!(world.ring_directory("alice").join("blobs/sha256").join(&digest["sha256:".len()..]).is_file());
        let created = entry["created"].as_str().unwrap();
        assert!(created.contains('.') && chrono::DateTime::parse_from_rfc3339(created).is_ok(), "{created}");
        assert!(entry["base"].as_str().unwrap().contains(&*world.rootfs_text()));
        assert_eq!(
            (&entry["reason"], &entry["state"], &entry["synced"]),
            (&json!("exit"), &json!("packed"), &json!(true))
        );
        assert_eq!(entry["pinned"], false);
    }
    let [newer, older] = &log[..] else { panic!("{log:?}") };
    assert_eq!((&older["seq"], &older["parent"], &older["exit_code"]), (&json!(1), &Value::Null, &json!(3)));
    assert_eq!((&newer["seq"], &newer["parent"], &newer["exit_code"]), (&json!(2), &json!(1), &json!(0)));
    assert_eq!((&older["next"], &newer["next"]), (&json!(false), &json!(true)));
    let bytes = |entry: &Value, name: &str| entry[name].as_u64().unwrap();
    assert!(bytes(newer, "added_bytes") > 300 * 1024 && bytes(older, "added_bytes") < 100 * 1024);
    assert_eq!(bytes(older, "total_bytes"), bytes(older, "added_bytes"));
    assert_eq!(bytes(newer, "total_bytes"), bytes(older, "added_bytes") + bytes(newer, "added_bytes"));
    assert_eq!(newer["layers"].as_array().unwrap().len(), 2);
    assert_eq!(newer["layers"][0], older["layers"][0]);
    let id = newer["id"].as_str().unwrap();
    assert!(id.len() == 23 && id.ends_with("Z-000002"), "{id}");
    assert!(world.ring_file("alice", "index.json").to_string().contains(id), "the id is the tag in the layout");

    let table = world.ring(&["log", "alice"]).success().stdout().to_owned();
    assert!(table.lines().nth(1).unwrap().starts_with("@2 ") && table.lines().count() == 3, "{table}");
}

#[test]
fn an_entry_that_is_only_sealed_has_no_digest_and_no_sizes() {
    let world = World::new("sealed");
    // A worker that is at it already keeps the one of this run from packing.
    world.run_in("alice", "touch /tmp/1").success();
    world.pack();
    let lock = std::fs::File::open(world.store().join("worker.lock")).unwrap();
    lock.lock().unwrap();
    world.run_in("alice", "touch /tmp/2").success();
    let entry = world.ring_json(&["show", "alice@2"]);
    assert_eq!(entry["state"], "sealed");
    for field in ["digest", "added_bytes", "total_bytes"] {
        assert_eq!(entry[field], Value::Null, "{field}");
    }
    assert_eq!(world.run_in("alice", "ls /tmp").success().stdout(), "1\n2\n", "it can be started from all the same");
    drop(lock);
    world.pack();
    assert_eq!(world.ring_json(&["show", "alice@2"])["state"], "packed");
}

#[test]
fn a_run_ends_with_the_status_of_its_program_and_the_log_tells_it() {
    let world = World::new("status");
    world.run_in("alice", "touch /tmp/1; exit 42").code(42);
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    let script = "touch /tmp/2; echo ready; sleep 1000";
    let command = world.command(&["run", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "sh", "-c", script]);
    let mut running = world.spawn(command);
    running.wait_for("ready");
    world.regen(&["kill", &id, "KILL"]).success();
    running.finish().code(128 + 9);
    world.run_with(&["--ring", "alice", "--wait-pack"], "touch /tmp/3").success();
    let log = world.log("alice");
    assert_eq!(log[0]["state"], "packed", "--wait-pack waits");
    let codes: Vec<_> = log.iter().map(|entry| entry["exit_code"].as_i64().unwrap()).collect();
    assert_eq!(codes, [0, 137, 42]);
    world.regen(&["run", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "no-such-program"]).code(127);
    world.regen(&["run", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "/etc/passwd"]).code(126);
    assert_eq!(world.log("alice").len(), log.len(), "a start that failed adds no entry");
}

#[test]
fn diff_tells_what_was_added_modified_and_deleted() {
    let world = World::new("diff");
    let run = |script: &str| world.run_in("alice", script).success().code;
    run(
        "mkdir -p /srv/old/deep; echo 1 > /srv/old/deep/f; echo 1 > /srv/keep; ln -s keep /srv/link; echo 1 > /srv/name",
    );
    run("rm -r /srv/old; echo file > /srv/old; echo 2 > /srv/keep; mv /srv/name /srv/renamed; rm /etc/passwd");
    run(
        "touch /srv/same; rm /srv/old; mkdir /srv/old; touch /srv/old/new; chmod 600 /srv/keep; rm /srv/link; ln -s x /srv/link",
    );
    let diff = |a: &str, b: &str| {
        let mut lines: Vec<_> = world.ring(&["diff", a, b]).success().stdout().lines().map(str::to_owned).collect();
        lines.sort();
        lines.join(", ")
    };
    assert_eq!(
        diff("alice@1", "@2"),
        "A /srv/renamed, D /etc/passwd, D /srv/name, D /srv/old/deep, D /srv/old/deep/f, M /srv/keep, M /srv/old"
    );
    assert_eq!(
        diff("alice@2", "alice@1"),
        "A /etc/passwd, A /srv/name, A /srv/old/deep, A /srv/old/deep/f, D /srv/renamed, M /srv/keep, M /srv/old"
    );
    assert_eq!(diff("alice@2", "@3"), "A /srv/old/new, A /srv/same, M /srv/keep, M /srv/link, M /srv/old");
    // A directory that was deleted and made again hides what it held before.
    assert_eq!(
        diff("alice@1", "@3"),
        "A /srv/old/new, A /srv/renamed, A /srv/same, D /etc/passwd, D /srv/name, D /srv/old/deep, D /srv/old/deep/f, \
         M /srv/keep, M /srv/link"
    );
    assert_eq!(
        diff("alice@base", "@1"),
        "A /srv, A /srv/keep, A /srv/link, A /srv/name, A /srv/old, A /srv/old/deep, A /srv/old/deep/f"
    );
    assert_eq!(diff("alice@2", "@2"), "");
    let json = world.ring_json(&["diff", "alice@2", "@3"]);
    assert!(json.as_array().unwrap().contains(&json!({"change": "A", "path": "/srv/same"})), "{json}");
    world.run_in("bob", "echo 1 > /srv").success();
    assert!(diff("alice@3", "bob@1").contains("M /srv"));
    world.ring(&["diff", "alice@1", "carol@1"]).fails_with(1, "no such ring");
}
