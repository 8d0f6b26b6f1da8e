//! What podman carries into containers and out of them.

use std::fs;

use crate::harness::World;
use crate::podman::Podman;

#[test]
fn podman_copies_files_in_and_out_of_a_running_container() {
    let world = World::new("pc");
    let podman = Podman::new(&world);
    let name = podman.start(&[], "echo out > /root/from; echo up; exec sleep 1000");
    let (inside, outside) = (podman.path("inside"), podman.path("outside"));
    fs::write(&inside, "in\n").unwrap();
    podman.call(&["cp", inside.to_str().unwrap(), &format!("{name}:/root/to")]).success();
    assert_eq!(podman.call(&["exec", &name, "cat", "/root/to"]).success().stdout(), "in\n");
    podman.call(&["cp", &format!("{name}:/root/from"), outside.to_str().unwrap()]).success();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "out\n");
    podman.call(&["rm", "--force", "--time", "0", &name]).success();
}

#[test]
fn podman_brings_secrets_and_volumes_and_a_ring_saves_neither() {
    let world = World::new("px");
    let podman = Podman::new(&world);
    let secret = podman.path("secret");
    fs::write(&secret, "s3cret").unwrap();
    podman.call(&["secret", "create", "sec", secret.to_str().unwrap()]).success();
    podman.call(&["volume", "create", "vol"]).success();
    let options = ["--rm", "--annotation", "run.regen.ring=alice", "--secret", "sec", "--volume", "vol:/data"];
    let script = "cat /run/secrets/sec; echo kept > /data/f; echo saved > /root/f";
    assert_eq!(podman.run(&options, &["sh", "-c", script]).success().stdout(), "s3cret");
    let script = "cat /data/f; echo x > /data/g || echo refused";
    let output = podman.run(&["--rm", "--volume", "vol:/data:ro"], &["sh", "-c", script]);
    assert_eq!(output.success().stdout(), "kept\nrefused\n");
    let diff = world.regen(&["ring", "diff", "alice@base", "alice@latest"]);
    let lines: Vec<_> = diff.success().stdout().lines().collect();
    assert!(lines.contains(&"A /root/f"), "{lines:?}");
    // The places at which they were mounted are there, and empty.
    assert!(!lines.iter().any(|line| line.starts_with("A /data/") || line.starts_with("A /run/secrets/")), "{lines:?}");
}

#[test]
fn podman_asks_after_the_health_of_a_container() {
    let world = World::new("pk");
    let podman = Podman::new(&world);
    // Without an interval there is no timer, for which podman would need systemd.
    let health = ["--health-cmd", "test -e /root/well", "--health-interval", "disable"];
    let name = podman.start(&health, "echo up; exec sleep 1000");
    podman.call(&["healthcheck", "run", &name]).code(1);
    podman.call(&["exec", &name, "touch", "/root/well"]).success();
    podman.call(&["healthcheck", "run", &name]).success();
    podman.call(&["rm", "--force", "--time", "0", &name]).success();
}

#[test]
fn podman_clears_away_what_has_ended() {
    let world = World::new("pz");
    let podman = Podman::new(&world);
    podman.run(&["--annotation", "run.regen.ring=alice"], &["sh", "-c", "echo kept > /root/f"]).success();
    let pruned = podman.call(&["system", "prune", "--force", "--volumes"]);
    assert!(pruned.success().stdout().contains("Deleted Containers"), "{pruned:?}");
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).success().stdout(), "");
    let again = podman.run(&["--rm", "--annotation", "run.regen.ring=alice"], &["cat", "/root/f"]);
    assert_eq!(again.success().stdout(), "kept\n");
}
