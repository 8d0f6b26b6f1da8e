//! What cannot be done, and how that is said.

use nix::sys::signal::Signal;
use regen::sys::credential::with_those_of;
use serde_json::{Value, json};

use super::{call, claim, list, probe, show};
use crate::harness::{World, eventually};

#[test]
fn an_id_that_is_none_or_belongs_to_nobody_is_refused() {
    let world = World::new("op-noid");
    let _daemon = world.daemon();
    let nobody = "0".repeat(32);
    for verb in ["show", "wait", "cancel", "watch"] {
        world.regen(&["op", verb, "12"]).fails_with(2, "it has to be 32 lower-case hex digits");
        world.regen(&["op", verb, &nobody]).fails_with(1, "there is none, or it is collected");
    }
    world.regen(&["op", "ls", "--state", "done"]).fails_with(2, "there is no such state");
    world.regen(&["op", "ls", "--kind", "restart"]).fails_with(2, "there is no such kind");
}

#[test]
fn who_stops_waiting_is_told_the_id_and_the_operation_goes_on() {
    let world = World::new("op-patience");
    let daemon = world.daemon();
    let id = probe(&world, 1, 600_000);
    let output = world.regen(&["op", "wait", &id, "--timeout", "50ms"]);
    output.fails_with(1, &format!("it goes on: 'regen op wait {id}' tells what came of it"));
    assert_eq!(show(&daemon, &id)["state"], "running");
    call(&world, "Cancel", &json!({"id": id}));
    let (name, server) = (daemon.name("web"), world.server());
    let add = ["add", &name, "--version", "1.0.0", "--listen", "auto", "--bundle", server.text()];
    let late = [&add[..], &["--ready", "notify", "--ready-timeout", "1h", "--timeout", "100ms"]].concat();
    let output = daemon.service(&late);
    output.fails_with(1, "it is running after 0.1 s: it goes on: 'regen op wait ");
    let running = list(&daemon, &["--state", "running"]);
    assert_eq!((running.len(), &running[0]["kind"]), (1, &json!("service-add")));
    eventually("its instance is there", || !daemon.show(&name)["instances"].as_array().unwrap().is_empty());
    eventually("and runs", || runs(&world, &format!("{name}-1.0.0-1")));
    world.delete(&format!("{name}-1.0.0-1"));
    world.regen(&["op", "wait", running[0]["id"].as_str().unwrap()]).fails_with(1, "before it was ready");
}

/// Whether there is such a container, and it runs.
fn runs(world: &World, id: &str) -> bool {
    let state = world.regen(&["state", id]);
    state.code == 0 && serde_json::from_str::<Value>(state.stdout()).unwrap()["status"] == "running"
}

#[test]
fn of_two_restarts_at_once_the_second_is_refused_with_the_id_of_the_first() {
    let world = World::new("op-twice");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let slow = ["upgrade", &name, "--to", "1.1.0", "--ready", "notify", "--ready-timeout", "1h", "--no-wait"];
    let id = daemon.service(&slow).success().stdout().trim_end().to_owned();
    let restart = daemon.service(&["restart", &name]);
    restart.fails_with(1, &format!("operation {id} has it: service-upgrade, on node "));
    assert!(
        restart.stderr().trim_end().ends_with(&format!("wait for it: 'regen op wait {id}'")),
        "{}",
        restart.stderr()
    );
    daemon.service(&["restart", &name, "--no-wait"]).fails_with(1, &id);
    eventually("its instance is there", || daemon.show(&name)["instances"].as_array().unwrap().len() == 2);
    eventually("and runs", || runs(&world, &format!("{name}-1.1.0-2")));
    world.delete(&format!("{name}-1.1.0-2"));
    world.regen(&["op", "wait", &id]).fails_with(1, "before it was ready");
    daemon.service(&["restart", &name]).success();
}

#[test]
fn a_removal_that_drains_is_hurried_by_force() {
    let world = World::new("op-hurry");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--drain-timeout", "1h"]);
    let open = std::net::TcpStream::connect(("127.0.0.1", daemon.port(&name))).unwrap();
    let first = world.spawn(world.command(&["service", "rm", &name]));
    eventually("it goes", || daemon.show(&name)["state"] == "removing");
    daemon.service(&["rm", &name]).fails_with(1, "has it: service-remove");
    daemon.service(&["rm", "--force", &name]).success();
    first.finish().success();
    drop(open);
    assert!(daemon.list().is_empty());
}

#[test]
fn what_is_submitted_has_to_fit_its_kind() {
    let world = World::new("op-fit");
    let _daemon = world.daemon();
    let refused = |submission: Value| {
        let mut client = regen::control::client::Client::connect(&world.root()).unwrap();
        client.call::<Value>("run.regen.Operation.Submit", &submission).unwrap_err().to_string()
    };
    let of = |kind: &str, targets: Value| refused(json!({"kind": kind, "targets": targets, "parameters": {}}));
    assert!(of("restart", json!([])).contains("unknown variant `restart`"));
    assert!(of("probe", json!([])).contains("target"));
    assert!(of("probe", json!(["service/web"])).contains("it is about probe/NUMBER"));
    assert!(of("service-restart", json!(["service/../x"])).contains("it is about service/NAME"));
    assert!(of("probe", json!(["nobody:probe/1"])).contains("nobody"));
    assert!(of("probe", json!(["probe/1", "probe/1"])).contains("probe/1"));
    assert!(refused(json!({"kind": "ring-pin"})).contains("'ring'"));
    assert!(of("ring-move", json!(["ring/root/a"])).contains("have no 'to'"));
    let alone = json!({"kind": "ring-move", "targets": ["ring/root/a"], "parameters": {"to": "n1"}});
    let nobodys = call(&world, "Submit", &alone);
    world.regen(&["op", "wait", nobodys["operation"].as_str().unwrap()]).fails_with(1, "this node is alone");
    claim(&world, "probe/1", 0).unwrap();
}

#[test]
fn members_of_the_group_may_look_but_see_no_parameters_and_change_nothing() {
    let world = World::new("op-group");
    let daemon = world.daemon();
    let name = daemon.name("web");
    let server = world.server();
    let add =
        ["add", &name, "--version", "1.0.0", "--listen", "auto", "--bundle", server.text(), "--env", "SECRET=hush"];
    daemon.service(&add).success();
    let id = list(&daemon, &[])[0]["id"].as_str().unwrap().to_owned();
    assert!(show(&daemon, &id).to_string().contains("hush"), "root sees all");
    let Some(group) = nix::unistd::Group::from_name("regen").unwrap() else { return };
    let connect = || {
        with_those_of(12345, &[12345, group.gid.as_raw()], || regen::control::client::Client::connect(&world.root()))
    };
    let of = |method: &str, parameters: Value| {
        connect()
            .unwrap()
            .unwrap()
            .call::<Value>(&format!("run.regen.Operation.{method}"), &parameters)
            .map(|(answer, _)| answer)
    };
    let shown = of("Show", json!({"id": id})).unwrap();
    assert_eq!(shown["operation"]["id"], json!(id));
    assert!(!shown.to_string().contains("hush"), "{shown}");
    assert!(!of("List", json!({})).unwrap().to_string().contains("hush"));
    for (method, parameters) in
        [("Cancel", json!({"id": id})), ("Probe", json!({})), ("Submit", json!({"kind": "probe", "parameters": {}}))]
    {
        let error = of(method, parameters).unwrap_err().to_string();
        assert!(error.contains("PermissionDenied"), "{method}: {error}");
    }
}

#[test]
fn a_daemon_that_ends_tells_its_waiters_the_id() {
    let world = World::new("op-end");
    let mut daemon = world.daemon();
    let id = probe(&world, 1, 600_000);
    let waiting = world.spawn(world.command(&["op", "wait", &id]));
    eventually("it runs", || show(&daemon, &id)["state"] == "running");
    daemon.end(Signal::SIGTERM).success();
    waiting
        .finish()
        .fails_with(1, &format!("once 'regen serve' runs again, 'regen op wait {id}' tells what came of it"));
    daemon.start();
    world.regen(&["op", "cancel", &id]).success();
    world.regen(&["op", "wait", &id, "--timeout", "30s"]).fails_with(1, "it was cancelled");
}
