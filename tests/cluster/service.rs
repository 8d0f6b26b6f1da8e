//! Services, templates, rings and clones of other nodes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::eventually;
use crate::node::Nodes;

#[test]
fn a_service_that_is_added_on_another_node_is_found_and_reached_from_a_third() {
    let nodes = Nodes::new("found");
    let mut command = nodes.command(0, &["resolve", "web", "--watch"]);
    command.stdin(std::process::Stdio::null());
    let watching = nodes.world().spawn(command);
    let server = nodes.world().server();
    let add = |index: usize, on: &str| {
        let arguments = ["service", "add", "web", "--version", "1.0.0", "--listen", "tcp://0.0.0.0:8080"];
        let more = ["--bundle", server.text(), "--on", on, "--json"];
        nodes.regen(index, &[&arguments[..], &more].concat()).success();
    };
    add(0, "node=n1");
    eventually("it is found", || nodes.resolve(2, "web").is_some());
    let found = nodes.resolve(2, "web").unwrap();
    assert_eq!((&found["node"], &found["address"]), (&json!("n1"), &json!("tcp://10.77.0.2:8080")));
    assert_eq!(found.get("stale_ms"), None);
    let talk = "echo hi >&3; cat <&3";
    let said = nodes.regen(2, &["resolve", "web", "--connect", "--", "busybox", "sh", "-c", talk]);
    assert_eq!(said.success().stdout(), "hello");
    // The own node is preferred, others take turns.
    add(1, "label=zone=z2");
    assert_eq!(nodes.resolve(2, "web").unwrap().get("node"), None);
    let turns: BTreeSet<String> =
        (0..4).map(|_| nodes.resolve(0, "web").unwrap()["node"].as_str().unwrap().to_owned()).collect();
    assert_eq!(turns, BTreeSet::from(["n1".to_owned(), "n2".to_owned()]));
    let restarted = nodes.regen(0, &["service", "restart", "web", "--on", "all", "--json"]);
    assert_eq!(restarted.code, 1, "n0 has none");
    let restarted: Value = serde_json::from_str(restarted.stdout()).unwrap();
    let states: Vec<_> = restarted.as_array().unwrap().iter().map(|result| &result["state"]).collect();
    assert_eq!(states, ["failed", "succeeded", "succeeded"]);
    nodes.regen(0, &["service", "rm", "web", "--on", "node=n1"]).success();
    eventually("only one is left", || nodes.resolve(0, "web").is_some_and(|found| found["node"] == "n2"));
    nodes.regen(0, &["service", "rm", "web", "--on", "node=n2"]).success();
    for index in 0..3 {
        eventually("nobody is left", || nodes.resolve(index, "web").is_none());
    }
    eventually("all of it was told", || watching.so_far().lines().filter(|line| line.starts_with('-')).count() == 2);
    let told = watching.so_far();
    let told: Vec<&str> = told.lines().collect();
    let place = |index: usize| format!("web 1.0.0 tcp://10.77.0.{}:8080 on n{index}", index + 1);
    let expected =
        [format!("+ {}", place(1)), format!("+ {}", place(2)), format!("- {}", place(1)), format!("- {}", place(2))];
    assert_eq!(told, expected);
    watching.signal(nix::sys::signal::Signal::SIGTERM);
    watching.finish();
}

#[test]
fn templates_clones_and_rings_are_made_and_changed_where_they_are_asked_for() {
    let nodes = Nodes::new("things");
    let bundle = nodes.world().python("", |spec| {
        spec["process"]["args"] = json!(["/usr/bin/python3", "-m", "regen_zygote"]);
    });
    let create = ["template", "create", "py", "--bundle", bundle.text(), "--pool", "1", "--on", "all", "--json"];
    nodes.regen(0, &create).success();
    eventually("they are counted", || (0..3).all(|index| nodes.node(0, &format!("n{index}"))["templates"] == 1));
    let script = ["-d", "--on", "node=n2", "--", "python3", "-c", "import time; time.sleep(1000)"];
    nodes.regen(0, &[&["clone", "py", "copy"], &script[..]].concat()).success();
    assert_eq!(nodes.json(2, &["state", "copy"])["status"], "running");
    nodes.regen(2, &["delete", "--force", "copy"]).success();
    nodes.regen(1, &["template", "rm", "py", "--on", "all"]).success();
    for index in 0..3 {
        assert_eq!(nodes.json(index, &["template", "ls", "--json"]), json!([]));
    }
    let rootfs = nodes.world().rootfs();
    for index in [0, 1] {
        let run = ["run", "--rootfs", rootfs.to_str().unwrap(), "--ring", "alice", "--depth", "5", "box", "--"];
        nodes.regen(index, &[&run[..], &["touch", "/root/x"]].concat()).success();
        nodes.regen(index, &[&run[..], &["touch", "/root/y"]].concat()).success();
    }
    let ring = |verb: &[&str], on: &[&str]| {
        let on = on.iter().flat_map(|on| ["--on", *on]).collect::<Vec<_>>();
        nodes.regen(2, &[&["ring"], verb, &on].concat())
    };
    ring(&["set", "alice", "--depth", "3"], &["node=n0", "node=n1"]).success();
    ring(&["pack", "alice"], &["label=zone=z0", "label=zone=z1"]).success();
    ring(&["pin", "alice@latest"], &["node=n0"]).success();
    ring(&["unpin", "alice@latest"], &["node=n0"]).success();
    ring(&["rollback", "alice", "--to", "@-1"], &["node=n1"]).success();
    let log = nodes.json(1, &["ring", "log", "alice", "--json"]);
    let next: Vec<_> = log.as_array().unwrap().iter().map(|entry| entry["next"] == true).collect();
    assert_eq!(next, [false, true], "{log}");
    let output = ring(&["pack", "alice"], &["all"]);
    assert_eq!(output.code, 1);
    assert!(output.stdout().contains("n2:ring/root/alice failed: "), "{}", output.stdout());
    ring(&["rm", "alice"], &["node=n0", "node=n1"]).success();
    assert_eq!(nodes.json(0, &["ring", "ls", "--json"]), json!([]));
}
