//! Rings under Docker, by the entry of the runtime.

use crate::docker::Docker;
use crate::harness::{World, eventually};

#[test]
fn a_runtime_entry_of_docker_has_a_ring_that_outlives_its_containers() {
    let world = World::new("dr");
    let docker = Docker::new(&world, &[&["--ring", "alice", "--depth", "2"]]);
    let alice = |script: &str| docker.run("regen-alice", &["--rm"], &["sh", "-c", script]);
    for run in ["1", "2", "3"] {
        alice(&format!("echo {run} > /root/state; rm -f /bin/ls")).success();
    }
    assert_eq!(alice("cat /root/state; test ! -e /bin/ls").success().stdout(), "3\n");
    docker.run("regen", &["--rm"], &["test", "-e", "/root/state"]).code(1);
    world.regen(&["ring", "pack", "alice"]).success();
    let log = world.ring_json(&["log", "alice"]);
    let numbers: Vec<_> = log.as_array().unwrap().iter().map(|entry| entry["seq"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [3, 2], "what docker puts into a container is no change, and the oldest entry left");
    let diff = world.regen(&["ring", "diff", "alice@base", "alice@latest"]);
    assert_eq!(diff.success().stdout(), "D /bin/ls\nA /root/state\n");
    world.regen(&["ring", "rollback", "alice", "--to", "@-1"]).success();
    assert_eq!(alice("cat /root/state").success().stdout(), "2\n");
}

#[test]
fn a_second_container_of_a_docker_entry_is_refused_and_a_restart_keeps_the_ring() {
    let world = World::new("d2");
    let docker = Docker::new(&world, &[&["--ring", "alice"]]);
    let script = "trap 'exit 0' TERM; echo run >> /root/runs; echo up; while :; do sleep 0.05; done";
    let name = docker.start("regen-alice", &[], script);
    let id = docker.inspect(&name, "{{.Id}}");
    let refused = docker.run("regen-alice", &["--rm"], &["true"]);
    assert!(refused.code(125).stderr().contains(&format!("in use by container '{id}'")), "{refused:?}");
    docker.call(&["restart", "--time", "30", &name]).success();
    eventually("it is up again", || docker.call(&["logs", &name]).stdout().matches("up\n").count() == 2);
    assert_eq!(docker.call(&["exec", &name, "cat", "/root/runs"]).success().stdout(), "run\nrun\n");
    // What kills everything at once loses nothing either.
    docker.call(&["rm", "--force", &name]).success();
    let runs = docker.run("regen-alice", &["--rm"], &["cat", "/root/runs"]);
    assert_eq!(runs.success().stdout(), "run\nrun\n");
}
