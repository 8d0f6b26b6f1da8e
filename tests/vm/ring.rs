//! Rings under a user namespace.

use serde_json::{Value, json};

use crate::harness::World;

fn map(first: u32) -> Value {
    json!([{"containerID": 0, "hostID": first, "size": 65536}])
}

/// Runs a script in the ring, in a user namespace whose ids begin here on the host.
fn run(world: &World, first: u32, script: &str) -> crate::harness::Output {
    let id = world.fresh_id();
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["annotations"] = json!({"run.regen.ring": "alice"});
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        spec["linux"]["uidMappings"] = map(first);
        spec["linux"]["gidMappings"] = map(first);
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &id]);
    let _ = world.regen(&["delete", "--force", &id]);
    output
}

#[test]
fn another_id_map_is_refused_with_both_and_the_first_one_still_works() {
    let world = World::new("idmap");
    // What a container may write to: its root's files are the host's root's.
    let mut chmod = std::process::Command::new("chmod");
    chmod.arg("777").arg(world.rootfs().join("tmp")).arg(world.base());
    world.finish(chmod).success();
    run(&world, 100_000, "echo one > /tmp/f").success();
    let refused = run(&world, 300_000, "cat /tmp/f");
    refused.fails_with(1, "100000");
    assert!(refused.stderr().contains("300000"), "{refused:?}");
    assert_eq!(run(&world, 100_000, "cat /tmp/f; echo two >> /tmp/f").success().stdout(), "one\n");
    assert_eq!(run(&world, 100_000, "cat /tmp/f").success().stdout(), "one\ntwo\n");
}
