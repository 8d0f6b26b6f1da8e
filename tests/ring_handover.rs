//! A ring passes to a new container while the old one goes on: what each of them finds, and what becomes of what they write.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::Path;

use harness::ring::names;
use harness::{World, eventually};
use serde_json::{Value, json};

/// Prepares a hand-over, and gives what undoes it.
#[track_caller]
fn hand_over(world: &World, id: &str) -> Value {
    serde_json::from_str(world.regen(&["handover", "prepare", id]).success().stdout()).unwrap()
}

#[track_caller]
fn undo(world: &World, token: &Value) {
    world.regen(&["handover", "undo", &token.to_string()]).success();
}

/// Number, reason, whether beside the main line, and parent of each entry, newest first.
#[track_caller]
fn lines(world: &World, ring: &str) -> Vec<(u64, String, bool, Option<u64>)> {
    let line = |entry: &Value| {
        let reason = entry["reason"].as_str().unwrap().to_owned();
        (entry["seq"].as_u64().unwrap(), reason, entry["side"].as_bool().unwrap(), entry["parent"].as_u64())
    };
    world.log(ring).iter().map(line).collect()
}

fn line(seq: u64, reason: &str, side: bool, parent: Option<u64>) -> (u64, String, bool, Option<u64>) {
    (seq, reason.to_owned(), side, parent)
}

#[test]
fn a_new_container_finds_one_moment_of_the_old_one_which_goes_on_writing() {
    let world = World::new("moment");
    // At any moment: b <= a <= the last line of the log <= b + 1, and the log has every line. Whoever begins with a copy
    // first ends the turn that the copy was taken in the middle of.
    let script = "i=$(cat /tmp/log | wc -l); while :; do echo $i > /tmp/x; mv /tmp/x /tmp/a; \
        mkdir -p /tmp/d/$((i % 50)); echo $i > /tmp/d/$((i % 50))/f; rm -rf /tmp/d/$(((i + 25) % 50)); \
        echo $i > /tmp/x; mv /tmp/x /tmp/b; i=$((i + 1)); echo $i >> /tmp/log; done";
    let mut old = world.detach_in("web", script);
    for _ in 0..4 {
        let before = format!("/proc/{}/root/tmp/b", world.pid(&old));
        eventually("it is at work", || {
            fs::read_to_string(&before).is_ok_and(|n| n.trim().parse::<u32>().unwrap() > 60)
        });
        let token = hand_over(&world, &old);
        let look = "cat /tmp/b /tmp/a; tail -n 1 /tmp/log; wc -l < /tmp/log; sort -n /tmp/log | uniq | wc -l; \
            ls /tmp/d | wc -l";
        let seen = world.run_with(&["--ring", &format!("web@{}", token["entry"])], look);
        let seen: Vec<u32> = seen.success().stdout().split_whitespace().map(|n| n.parse().unwrap()).collect();
        let [b, a, last, lines, distinct, directories] = seen[..] else { panic!("{seen:?}") };
        assert!(b <= a && a <= last && last <= b + 1, "{seen:?}");
        assert_eq!((lines, distinct), (last, last), "{seen:?}");
        assert!((25..=26).contains(&directories), "{seen:?}");
        assert_eq!(world.status(&old), "running");
        let new = world.detach_in("web", script);
        // What the old one went on to write is beside the main line, whole.
        world.delete(&old);
        let newest = &world.log("web")[0];
        assert_eq!((&newest["side"], &newest["reason"]), (&json!(true), &json!("exit")));
        // The ring is in use, so it is read where it lies.
        let top = newest["layers"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
        let log = fs::read_to_string(world.layer(&top).join("tmp/log")).unwrap();
        let later: u32 = log.lines().last().unwrap().parse().unwrap();
        assert!(later > last, "{later} after {last}");
        old = new;
    }
    world.delete(&old);
    world.pack();
    assert_eq!(world.ring(&["verify"]).success().stdout(), "");
}

#[test]
fn what_the_old_container_writes_after_the_hand_over_is_an_entry_beside_the_main_line() {
    let world = World::new("beside");
    world.run_in("web", "echo zero > /tmp/f").success();
    let old = world.writer_in("web", "one");
    let token = hand_over(&world, &old);
    assert_eq!((&token["entry"], &token["ring"]["name"]), (&json!(2), &json!("web")));
    let new = world.writer_in("web", "two");
    world.append(&old, "late");
    assert_eq!((world.lines_in(&old), world.lines_in(&new)), ("zero one late".into(), "zero one two".into()));
    let ring = &world.ring_json(&["ls"])[0];
    assert_eq!((&ring["in_use_by"], &ring["beside"]), (&json!(new), &json!([old])));
    // Nobody takes what it writes for garbage.
    world.pack();
    world.delete(&old);
    world.delete(&new);
    assert_eq!(
        lines(&world, "web"),
        [
            line(4, "exit", false, Some(2)),
            line(3, "exit", true, Some(1)),
            line(2, "snapshot", false, Some(1)),
            line(1, "exit", false, None)
        ]
    );
    let log = world.ring(&["log", "web"]);
    let beside = log.success().stdout().lines().find(|line| line.starts_with("@3 ")).unwrap();
    assert!(beside.trim_end().ends_with(" side"), "{beside}");
    world.pack();
    assert_eq!(world.lines_found("web"), "zero one two");
    assert_eq!(world.lines_found("web@3"), "zero one late", "its number finds it");
    assert_eq!(world.lines_found("web@-1"), "zero one", "counting back does not");
    assert_eq!(world.ring(&["verify"]).success().stdout(), "");
    let manifest = world.ring_json(&["show", "web@3"])["digest"].as_str().unwrap().replace("sha256:", "");
    let manifest = world.ring_file("web", &format!("blobs/sha256/{manifest}"));
    assert_eq!(manifest["annotations"]["run.regen.entry.side"], "true");
}

#[test]
fn a_side_entry_is_packed_evicted_and_rebuilt_like_others_and_pushes_none_of_them_out() {
    let world = World::new("many");
    world.run_with(&["--ring", "web", "--depth", "2"], "echo zero > /tmp/f").success();
    let mut old = world.writer_in("web", "one");
    for round in 0..4 {
        hand_over(&world, &old);
        let new = world.writer_in("web", &format!("new{round}"));
        world.append(&old, &format!("late{round}"));
        world.delete(&old);
        old = new;
    }
    world.delete(&old);
    world.pack();
    let kept = lines(&world, "web");
    let count = |beside| kept.iter().filter(|(_, _, side, _)| *side == beside).count();
    assert_eq!((count(false), count(true)), (2, 2), "{kept:?}");
    assert!(kept.iter().filter(|(_, reason, ..)| reason == "exit").count() >= 3);
    let side = kept.iter().find(|(_, _, side, _)| *side).unwrap().0;
    for layer in world.layers() {
        fs::remove_dir_all(world.store().join("layers").join(layer)).unwrap();
    }
    assert_eq!(world.lines_found(&format!("web@{side}")), "zero one new0 new1 new2 late3");
    assert_eq!(world.lines_found("web"), "zero one new0 new1 new2 new3");
}

#[test]
fn an_old_container_that_writes_nothing_more_adds_no_entry() {
    let world = World::new("nothing");
    let old = world.writer_in("web", "one");
    hand_over(&world, &old);
    let new = world.writer_in("web", "two");
    world.regen(&["exec", &old, "sh", "-c", "touch /tmp/x && rm /tmp/x && cat /tmp/f"]).success();
    world.delete(&old);
    assert_eq!(lines(&world, "web"), [line(1, "snapshot", false, None)]);
    // What is thrown away may be much: it goes by itself, while nobody waits for that.
    eventually("one run is left", || names(&world.store().join("runs")).len() == 1);
    world.delete(&new);
    assert_eq!(lines(&world, "web"), [line(2, "exit", false, Some(1)), line(1, "snapshot", false, None)]);
}

#[test]
fn content_that_changed_behind_its_time_is_an_entry_all_the_same() {
    let world = World::new("behind");
    let old = world.writer_in("web", "one");
    hand_over(&world, &old);
    let new = world.writer_in("web", "two");
    let script = "touch -r /tmp/f /tmp/x; echo ONE > /tmp/f; touch -r /tmp/x /tmp/f; rm /tmp/x";
    world.regen(&["exec", &old, "sh", "-c", script]).success();
    world.delete(&old);
    world.delete(&new);
    assert_eq!(world.lines_found("web@2"), "ONE");
    assert_eq!(world.lines_found("web"), "one two");
}

#[test]
fn an_unchanged_container_hands_its_own_start_over() {
    let world = World::new("unchanged");
    world.run_in("web", "echo zero > /tmp/f").success();
    world.run_in("web", "echo one > /tmp/f").success();
    // Not where the ring would go on, but where this container stands.
    let old = world.detach_in("web@1", "exec sleep 1000");
    let token = hand_over(&world, &old);
    assert_eq!(token["entry"], 1);
    let new = world.writer_in("web", "two");
    assert_eq!(world.lines_in(&new), "zero two");
    world.delete(&old);
    world.delete(&new);
    assert_eq!(lines(&world, "web")[0], line(3, "exit", false, Some(1)));
    assert_eq!(world.seqs("web").len(), 3);
}

#[test]
fn a_first_container_without_a_change_hands_the_bare_base_over() {
    let world = World::new("base");
    let old = world.detach_in("web", "exec sleep 1000");
    let token = hand_over(&world, &old);
    assert_eq!(token["entry"], Value::Null);
    let new = world.writer_in("web", "one");
    world.regen(&["exec", &old, "sh", "-c", "echo late > /tmp/f"]).success();
    world.delete(&old);
    // Beside a main line that has no entry yet: a look finds none, and the next run starts from the base.
    assert_eq!(lines(&world, "web"), [line(1, "exit", true, None)]);
    world.ring(&["show", "web@latest"]).fails_with(1, "no entries");
    world.pack();
    world.delete(&new);
    assert_eq!(world.lines_found("web"), "one");
    assert_eq!(world.lines_found("web@1"), "late");
}

#[test]
fn a_new_container_that_fails_leaves_the_ring_to_the_old_one_as_if_nothing_had_been() {
    let world = World::new("failed");
    world.run_in("web", "echo zero > /tmp/f").success();
    for candidate_lives in [false, true] {
        let old = world.writer_in("web", "one");
        let token = hand_over(&world, &old);
        let candidate = world.writer_in("web", "broken");
        if candidate_lives {
            undo(&world, &token);
            world.delete(&candidate);
        } else {
            world.delete(&candidate);
            undo(&world, &token);
        }
        undo(&world, &token);
        world.run_in("web", "true").fails_with(1, &format!("in use by container '{old}'"));
        assert_eq!(world.lines_in(&old), "zero one");
        world.append(&old, "late");
        world.delete(&old);
        let log = lines(&world, "web");
        assert_eq!((log[0].1.as_str(), log[0].2), ("exit", false));
        assert_eq!((log[1].1.as_str(), log[1].2), ("exit", true), "what the candidate wrote");
        assert_eq!((log[2].1.as_str(), log[2].2), ("snapshot", false));
        assert_eq!(world.lines_found("web"), "zero one late");
        assert_eq!(world.lines_found(&format!("web@{}", log[1].0)), "zero one broken");
        world.ring(&["rollback", "web", "--to", "@1"]).success();
    }
}

#[test]
fn an_old_container_that_ends_before_the_undo_is_the_newest_of_the_main_line() {
    let world = World::new("early");
    let old = world.writer_in("web", "one");
    let token = hand_over(&world, &old);
    let candidate = world.writer_in("web", "broken");
    world.append(&old, "last");
    world.delete(&old);
    undo(&world, &token);
    world.delete(&candidate);
    assert_eq!(
        lines(&world, "web"),
        [line(3, "exit", true, Some(1)), line(2, "exit", false, None), line(1, "snapshot", false, None)]
    );
    assert_eq!(world.lines_found("web"), "one last");
}

#[test]
fn a_hand_over_that_nobody_followed_changes_nothing_for_the_old_container() {
    let world = World::new("nobody");
    let rootfs = world.rootfs_text();
    // Its successor could not even be created: there is no such program's directory to stand on.
    let (old, fresh) = (world.writer_in("web", "one"), world.fresh_id());
    hand_over(&world, &old);
    world.regen(&["run", "--rootfs", "/nonexistent", "--ring", "web", &fresh, "--", "true"]).code(1);
    world.regen(&["run", "--rootfs", &rootfs, "--ring", "web", &fresh, "--", "/no/such/program"]).code(127);
    world.append(&old, "late");
    world.delete(&old);
    let log = lines(&world, "web");
    assert_eq!(log, [line(2, "exit", false, None), line(1, "snapshot", false, None)]);
    assert_eq!(world.lines_found("web"), "one late");
}

#[test]
fn a_hand_over_is_prepared_again_as_long_as_nobody_followed() {
    let world = World::new("again");
    let old = world.writer_in("web", "one");
    hand_over(&world, &old);
    world.append(&old, "two");
    let token = hand_over(&world, &old);
    assert_eq!(token["entry"], 2);
    let new = world.writer_in("web", "three");
    assert_eq!(world.lines_in(&new), "one two three");
    world.regen(&["handover", "prepare", &old]).fails_with(1, "has handed it over already");
    world.delete(&old);
    world.delete(&new);
}

#[test]
fn several_old_containers_go_on_beside_one_main_line() {
    let world = World::new("several");
    let mut all = vec![world.writer_in("web", "0")];
    for n in 1..4 {
        hand_over(&world, all.last().unwrap());
        all.push(world.writer_in("web", &n.to_string()));
    }
    let ring = &world.ring_json(&["ls"])[0];
    assert_eq!((&ring["in_use_by"], &ring["beside"]), (&json!(all[3]), &json!(all[..3])));
    for id in &all {
        world.append(id, "late");
    }
    world.pack();
    // In an order of their own.
    for index in [1, 3, 0, 2] {
        world.delete(&all[index]);
    }
    let sides = lines(&world, "web").iter().filter(|(_, _, side, _)| *side).count();
    assert_eq!(sides, 3);
    assert_eq!(world.lines_found("web"), "0 1 2 3 late");
    world.pack();
    assert_eq!(world.ring(&["verify"]).success().stdout(), "");
}

#[test]
fn an_old_container_that_dies_without_a_delete_is_recovered_beside_the_main_line() {
    for verb in ["recover", "rollback", "run"] {
        let world = World::new(&format!("dead-{verb}"));
        let old = world.writer_in("web", "one");
        hand_over(&world, &old);
        let new = world.writer_in("web", "two");
        world.append(&old, "late");
        kill_now(world.pid(&old));
        // A collection in between takes nothing of it.
        world.pack();
        if verb != "recover" {
            world.delete(&new);
        }
        match verb {
            "recover" => {
                assert!(world.ring(&["recover"]).success().stdout().contains("root/web: adopted entry @2"));
                world.delete(&new);
            }
            "rollback" => drop(world.ring(&["rollback", "web", "--to", "@latest"]).success()),
            _ => {}
        }
        assert_eq!(world.lines_found("web"), "one two");
        let recovered: Vec<_> = lines(&world, "web").into_iter().filter(|line| line.1 == "recovered").collect();
        assert_eq!(recovered.len(), 1);
        assert_eq!((recovered[0].2, recovered[0].3), (true, None));
        assert_eq!(world.lines_found(&format!("web@{}", recovered[0].0)), "one late");
        // The late delete finds that there is nothing left to save.
        world.delete(&old);
        assert_eq!(lines(&world, "web").len(), 3);
    }
}

fn kill_now(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let stat = format!("/proc/{pid}/stat");
    eventually("it dies", || {
        fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
    });
}

#[test]
fn a_ring_is_not_removed_under_a_container_that_goes_on_beside_it() {
    let world = World::new("rm");
    let old = world.writer_in("web", "one");
    hand_over(&world, &old);
    let words = format!("in use by container '{old}'");
    world.ring(&["rm", "web", "--dry-run"]).fails_with(1, &words);
    world.ring(&["rm", "web"]).fails_with(1, &words);
    // But whoever wants to run on it may.
    world.run_in("web", "true").success();
    world.delete(&old);
    world.ring(&["rm", "web"]).success();
}

#[test]
fn containers_without_a_ring_and_those_that_have_ended_hand_nothing_over() {
    let world = World::new("none");
    let plain = world.sleeper("plain");
    assert_eq!(hand_over(&world, &plain), Value::Null);
    let ended = world.detach_in("web", "echo one > /tmp/f");
    eventually("it ends", || world.status(&ended) == "stopped");
    assert_eq!(hand_over(&world, &ended), Value::Null);
    undo(&world, &Value::Null);
    world.regen(&["handover", "prepare", "nobody"]).fails_with(1, "does not exist");
    world.delete(&plain);
    assert_eq!(world.lines_found("web"), "one");
    world.delete(&ended);
}

#[test]
fn a_container_that_cannot_be_frozen_keeps_its_ring() {
    let world = World::new("nocgroup");
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    let script = "echo one > /tmp/f; exec sleep 1000";
    let run = ["--cgroup-manager", "disabled", "run", "-d", "--rootfs", &rootfs, "--ring", "web", &id, "--"];
    world.regen(&[&run[..], &["sh", "-c", script]].concat()).success();
    eventually("it writes", || Path::new(&format!("/proc/{}/root/tmp/f", world.pid(&id))).exists());
    world.regen(&["handover", "prepare", &id]).fails_with(1, "has no cgroup that could be frozen");
    world.run_in("web", "true").fails_with(1, "in use by container");
    assert_eq!(world.seqs("web"), [0_u64; 0]);
    world.delete(&id);
    assert_eq!(world.lines_found("web"), "one");
    world.pack();
    assert_eq!(names(&world.store().join("runs")), [""; 0], "the copy is gone");
}

#[test]
fn a_copy_that_does_not_fit_is_given_up() {
    let world = World::new("full");
    let script = "dd if=/dev/zero of=/tmp/big bs=1M count=20; echo one > /tmp/f; exec sleep 1000";
    let id = world.detach_in("web", script);
    eventually("it writes", || Path::new(&format!("/proc/{}/root/tmp/f", world.pid(&id))).exists());
    let config = world.base().join("config.toml");
    fs::write(&config, "[store]\nmin-free = \"100%\"\n").unwrap();
    let arguments = ["--config", config.to_str().unwrap(), "handover", "prepare", &id];
    world.regen(&arguments).fails_with(1, "free that much, then try again");
    assert_eq!(world.status(&id), "running");
    world.delete(&id);
    assert_eq!(world.lines_found("web"), "one");
}
