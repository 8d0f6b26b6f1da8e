//! From the call to the end.

use serde_json::{Value, json};

use super::{call, list, probe, show};
use crate::harness::{World, eventually};

#[test]
fn a_verb_that_does_not_wait_prints_the_id_and_others_wait_with_it() {
    let world = World::new("op-nowait");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let printed = daemon.service(&["restart", &name, "--no-wait"]);
    let id = printed.success().stdout().trim_end().to_owned();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let waited = world.regen(&["op", "wait", &id]);
    assert_eq!(waited.success().stdout(), format!("{id} succeeded\n"));
    let shown = show(&daemon, &id);
    assert_eq!((&shown["kind"], &shown["state"]), (&json!("service-restart"), &json!("succeeded")));
    assert_eq!(shown["results"][0]["value"]["report"]["instance"], json!(format!("{name}-1.0.0-2")));
    assert_eq!(shown["results"][0]["value"]["report"]["change"], json!(id), "a change is an operation");
    assert_eq!(daemon.show(&name)["instance"], json!(format!("{name}-1.0.0-2")));
    let json = daemon.service(&["restart", &name, "--no-wait", "--json"]);
    let answer: Value = serde_json::from_str(json.success().stdout()).unwrap();
    assert_eq!(answer.as_object().unwrap().len(), 1);
    world.regen(&["op", "wait", answer["operation"].as_str().unwrap(), "--json"]).success();
    let kinds: Vec<_> = list(&daemon, &[]).iter().map(|one| one["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["service-restart", "service-restart", "service-add"], "newest first");
    assert_eq!(list(&daemon, &["--kind", "service-add"]).len(), 1);
    assert!(list(&daemon, &["--state", "failed"]).is_empty());
}

#[test]
fn what_fails_says_the_same_to_who_waits_now_and_to_who_waits_later() {
    let world = World::new("op-failed");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "2.0.0", &[]);
    let down = ["upgrade", &name, "--to", "1.0.0"];
    let words = "1.0.0 is older than 2.0.0: give --allow-downgrade if that is meant";
    let now = daemon.service(&down);
    now.fails_with(1, words);
    let id = daemon.service(&[&down[..], &["--no-wait"]].concat()).success().stdout().trim_end().to_owned();
    let later = world.regen(&["op", "wait", &id]);
    later.fails_with(1, words);
    assert_eq!(now.stderr(), later.stderr());
    let shown = show(&daemon, &id);
    assert_eq!((&shown["state"], &shown["results"][0]["reason"]), (&json!("failed"), &json!("Invalid")));
}

#[test]
fn ten_thousand_targets_are_one_operation() {
    let world = World::new("op-many");
    let daemon = world.daemon();
    let id = probe(&world, 10_000, 0);
    let waited: Value = serde_json::from_str(world.regen(&["op", "wait", &id, "--json"]).success().stdout()).unwrap();
    assert_eq!((&waited["total"], &waited["succeeded"]), (&json!(10_000), &json!(10_000)));
    assert_eq!(waited["results"].as_array().unwrap().len(), 10_000);
    let text = world.regen(&["op", "show", &id]);
    let text = text.success().stdout();
    assert!(text.contains("and 9980 more succeeded") && text.lines().count() < 40, "{text}");
    assert_eq!(show(&daemon, &id)["results"].as_array().unwrap().len(), 10_000);
    let listed = list(&daemon, &[]);
    assert_eq!((listed.len(), listed[0]["targets"].as_array().unwrap().len()), (1, 0));
}

#[test]
fn a_thousand_operations_are_listed_newest_first() {
    let world = World::new("op-thousand");
    let daemon = world.daemon();
    let ids: Vec<_> = (0..1000).map(|_| probe(&world, 1, 0)).collect();
    world.regen(&["op", "wait", ids.last().unwrap()]).success();
    eventually("all are over", || list(&daemon, &["--state", "queued"]).is_empty());
    let listed = list(&daemon, &["--limit", "2000"]);
    assert_eq!(listed.len(), 1000);
    let found: Vec<_> = listed.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert!(found.is_sorted_by(|newer, older| newer > older));
    assert_eq!(list(&daemon, &[]).len(), 100);
    assert_eq!(world.regen(&["op", "ls"]).success().stdout().lines().count(), 101);
}

#[test]
fn what_is_cancelled_is_not_begun_and_what_is_done_is_told_to_stop() {
    let world = World::new("op-cancel");
    let daemon = world.daemon();
    let id = probe(&world, 100, 600_000);
    eventually("it runs", || show(&daemon, &id)["state"] == "running");
    world.regen(&["op", "cancel", &id]).success();
    world.regen(&["op", "wait", &id, "--timeout", "30s"]).fails_with(1, "did not succeed");
    let shown = show(&daemon, &id);
    assert_eq!((&shown["state"], &shown["cancelled"]), (&json!("cancelled"), &json!(100)));
    world.regen(&["op", "cancel", &id]).fails_with(1, "it has ended already: it is cancelled");
}

#[test]
fn watchers_hear_of_every_operation_and_a_slow_one_harms_nobody() {
    let world = World::new("op-watch");
    let daemon = world.daemon();
    let watcher = world.spawn(world.command(&["op", "watch", "--json"]));
    // Nobody reads this one.
    let mut slow = regen::control::client::Client::connect(&world.root()).unwrap();
    slow.send("run.regen.Operation.Watch", &json!({}), regen::control::Mode::More).unwrap();
    let mut last = String::new();
    eventually("the watcher is heard", || {
        last = probe(&world, 1, 0);
        watcher.so_far().contains("succeeded")
    });
    for _ in 0..20 {
        last = probe(&world, 500, 0);
    }
    world.regen(&["op", "wait", &last]).success();
    eventually("the last one is told", || {
        watcher.so_far().lines().any(|line| line.contains(&last) && line.contains("succeeded"))
    });
    watcher.signal(nix::sys::signal::Signal::SIGINT);
    watcher.finish();
    let one = world.regen(&["op", "watch", &last]);
    assert_eq!(one.success().stdout(), format!("{last} probe succeeded 500/500\n"));
    drop(slow);
    assert_eq!(list(&daemon, &["--limit", "1"]).len(), 1);
}

#[test]
fn a_key_that_comes_again_is_the_same_operation() {
    let world = World::new("op-key");
    let daemon = world.daemon();
    let submission = json!({"kind": "probe", "targets": ["probe/7"], "parameters": {}, "key": "deploy-1"});
    let first = call(&world, "Submit", &submission);
    world.regen(&["op", "wait", first["operation"].as_str().unwrap()]).success();
    assert_eq!(call(&world, "Submit", &submission), first);
    assert_eq!(list(&daemon, &[]).len(), 1);
}

#[test]
fn on_all_nodes_is_on_this_one_where_there_is_no_other() {
    let world = World::new("op-on");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let output = daemon.service(&["restart", &name, "--on", "all", "--json"]);
    let results: Value = serde_json::from_str(output.success().stdout()).unwrap();
    assert_eq!((results.as_array().unwrap().len(), &results[0]["state"]), (1, &json!("succeeded")));
    let target = results[0]["target"].as_str().unwrap();
    let node = target.split_once(':').unwrap().0;
    daemon.service(&["restart", &name, "--on", &format!("node={node}")]).success();
    daemon.service(&["restart", &name, "--on", "node=nobody"]).fails_with(1, "nobody");
    daemon.service(&["restart", &name, "--on", "label=zone=a"]).fails_with(1, "no node is meant: there are ");
    daemon.service(&["restart", &name, "--on", "everywhere"]).fails_with(1, "it names none: give node=NAME");
    assert_eq!(daemon.show(&name)["instance"], json!(format!("{name}-1.0.0-3")));
}
