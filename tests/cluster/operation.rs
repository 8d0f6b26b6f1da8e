//! Operations that other nodes have, or carry out.

use serde_json::{Value, json};

use crate::harness::eventually;
use crate::node::Nodes;

/// A probe that another node carries out, or this one.
fn probe(nodes: &Nodes, index: usize, target: &str, delay_ms: u64) -> String {
    nodes.submit(index, "probe", &json!([target]), &json!({"delay_ms": delay_ms}))
}

#[test]
fn operations_of_another_node_are_listed_shown_waited_for_and_watched() {
    let nodes = Nodes::new("foreign");
    let id = probe(&nodes, 0, "n1:probe/1", 1500);
    let shown = nodes.operation(2, &id);
    assert_eq!((&shown["node"], &shown["kind"]), (&json!("n0"), &json!("probe")), "{shown}");
    assert_eq!(shown["results"][0]["target"], "n1:probe/1");
    let mut command = nodes.command(1, &["op", "watch", &id, "--json"]);
    command.stdin(std::process::Stdio::null());
    let watching = nodes.world().spawn(command);
    let short = nodes.regen(2, &["op", "wait", &id, "--timeout", "100ms"]);
    short.fails_with(1, "it goes on");
    nodes.regen(2, &["op", "wait", &id]).success();
    let shown = nodes.operation(2, &id);
    assert_eq!(shown["state"], "succeeded");
    assert!(shown["results"][0]["value"]["token"].is_u64(), "{shown}");
    let watched = watching.finish();
    let last: Value = serde_json::from_str(watched.success().stdout().lines().last().unwrap()).unwrap();
    assert_eq!(last["operation"]["state"], "succeeded", "{last}");
    let listed = nodes.json(1, &["op", "ls", "--kind", "probe", "--json"]);
    assert_eq!((&listed[0]["id"], &listed[0]["targets"]), (&json!(id), &json!(["n1:probe/1"])));
    nodes.regen(1, &["op", "cancel", &id]).fails_with(1, "it has ended already");
}

#[test]
fn an_operation_is_cancelled_by_whichever_node_is_asked() {
    let nodes = Nodes::new("cancel");
    let id = probe(&nodes, 0, "n0:probe/1", 600_000);
    nodes.regen(2, &["op", "cancel", &id]).success();
    nodes.regen(1, &["op", "wait", &id]).fails_with(1, "it was cancelled");
    // What another node carries out is given up there.
    let id = probe(&nodes, 0, "n1:probe/2", 600_000);
    eventually("it is begun", || nodes.operation(0, &id)["state"] == "running");
    nodes.regen(2, &["op", "cancel", &id]).success();
    nodes.regen(2, &["op", "wait", &id]).fails_with(1, "it was cancelled");
    assert_eq!(nodes.operation(1, &id)["state"], "cancelled");
}

#[test]
fn what_contradicts_is_refused_whichever_node_is_asked() {
    let nodes = Nodes::new("conflict");
    let first = probe(&nodes, 0, "n1:probe/1", 600_000);
    let submit = ["call", "run.regen.Operation.Submit", "kind=probe", "targets=[\"n1:probe/1\"]"];
    let refused = nodes.regen(2, &submit);
    refused.fails_with(1, &format!("operation {first} has it: probe, on node 'n0', for "));
    probe(&nodes, 2, "n2:probe/1", 0);
    nodes.regen(2, &["op", "cancel", &first]).success();
    eventually("it is over", || nodes.operation(2, &first)["state"] == "cancelled");
    nodes.regen(2, &submit).success();
}

#[test]
fn what_a_killed_daemon_had_is_taken_up_by_its_next_one() {
    let nodes = Nodes::new("takeup");
    nodes.add_sleeper(1, ("web", "1.0.0", 8080), &[]).success();
    let long = probe(&nodes, 0, "n1:probe/1", 2000);
    let queued = nodes.submit(0, "service-restart", &json!(["n1:service/web@1.0.0"]), &json!({"name": "web"}));
    nodes.crash(0);
    for id in [&long, &queued] {
        nodes.regen(2, &["op", "wait", id]).success();
    }
    // The one who carries it out dies: asked again, the next one does what was not begun.
    let long = probe(&nodes, 0, "n1:probe/2", 1000);
    eventually("it is begun", || nodes.operation(0, &long)["state"] == "running");
    nodes.crash(1);
    nodes.regen(0, &["op", "wait", &long]).success();
}
