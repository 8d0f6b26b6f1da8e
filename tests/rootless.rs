//! regen of an ordinary user, who is made for the test and goes with it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;

use harness::World;
use harness::user::{Person, Subordinates};
use serde_json::Value;

fn json(output: &harness::Output) -> Value {
    serde_json::from_str(output.success().stdout()).unwrap()
}

#[test]
fn a_user_is_root_of_their_containers_and_of_nothing_else() {
    let world = World::new("rl");
    let alice = Person::new(&world, Subordinates::Some);
    let output = alice.run(&[], "id -u; cat /proc/self/uid_map; touch /f; chown 5:5 /f; stat -c %u /f; exit 3");
    let words: Vec<_> = output.code(3).stdout().split_whitespace().collect();
    assert_eq!(words[..4], ["0", "0", &alice.user.uid.to_string(), "1"], "{output:?}");
    assert_eq!(words.last(), Some(&"5"), "{output:?}");
    // Without --ring nothing stays; the root file system belongs to root and was not written.
    assert!(!world.rootfs().join("f").exists());
    alice.run(&[], "echo x > /proc/sys/kernel/hostname; mknod /dev/sda b 8 0").code(1);
    alice.run(&[], "nonesuch").code(127);
}

#[test]
fn the_state_of_an_ordinary_users_container_outlives_it() {
    let world = World::new("rr");
    let alice = Person::new(&world, Subordinates::Some);
    let script = "echo hi > /etc/motd; chown 7:7 /etc/motd; rm /bin/ls; rm -r /var; mkdir /var; echo new > /var/x";
    alice.run(&["--ring", "box"], script).success();
    let look = "cat /etc/motd; stat -c %u:%g /etc/motd; test ! -e /bin/ls && echo gone; busybox ls -A /var";
    assert_eq!(alice.run(&["--ring", "box"], look).success().stdout(), "hi\n7:7\ngone\nx\n");
    alice.run(&["--ring", "box"], "echo two > /etc/motd").success();
    alice.regen(&["ring", "pack", "box"]).success();
    let log = json(&alice.regen(&["ring", "log", "box", "--json"]));
    assert_eq!(log.as_array().unwrap().len(), 2);
    assert!(log.as_array().unwrap().iter().all(|entry| entry["state"] == "packed"), "{log}");
    let changes = alice.regen(&["ring", "diff", "box@base", "box@1"]);
    assert_eq!(changes.success().stdout(), "D /bin/ls\nA /etc/motd\nA /var/x\n");
    alice.regen(&["ring", "rollback", "box", "--to", "@1"]).success();
    assert_eq!(alice.run(&["--ring", "box"], look).success().stdout(), "hi\n7:7\ngone\nx\n");
    alice.regen(&["ring", "verify", "box"]).success();
}

#[test]
fn a_layer_that_is_gone_comes_back_from_its_pack_with_its_owners() {
    let world = World::new("rp");
    let alice = Person::new(&world, Subordinates::Some);
    alice.run(&["--ring", "box"], "echo hi > /etc/motd; chown 7:8 /etc/motd; rm -r /var; mkdir /var").success();
    alice.regen(&["ring", "pack", "box"]).success();
    for layer in world.layers() {
        fs::remove_dir_all(world.layer(&layer)).unwrap();
    }
    let output = alice.run(&["--ring", "box"], "stat -c %u:%g /etc/motd; busybox ls -A /var; ls -d /bin/ls");
    assert_eq!(output.success().stdout(), "7:8\n/bin/ls\n");
}

#[test]
fn the_verbs_reach_a_living_container_of_an_ordinary_user() {
    let world = World::new("rv");
    let alice = Person::new(&world, Subordinates::Some);
    let (rootfs, id) = (world.rootfs_text(), world.id("a"));
    // The program is of a subordinate id, which is beyond the reach of another user namespace.
    let script = ["setpriv", "--version"];
    assert!(world.finish(alice.command(script[0], &script[1..])).success().stdout().contains("util-linux"));
    let run = ["run", "--detach", "--rootfs", &rootfs, "--ring", "box", "--user", "1000", &id, "--", "sleep", "1000"];
    alice.regen(&run).success();
    let listed = json(&alice.regen(&["list", "--format", "json"]));
    assert_eq!((&listed[0]["status"], &listed[0]["owner"]), (&"running".into(), &alice.user.name.clone().into()));
    let pid = listed[0]["pid"].as_i64().unwrap();
    assert_ne!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), alice.user.uid.as_raw());
    assert_eq!(alice.regen(&["exec", &id, "id", "-u"]).success().stdout(), "1000\n");
    alice.regen(&["exec", "--user", "0", &id, "sh", "-c", "echo hi > /etc/motd"]).success();
    alice.regen(&["kill", &id, "KILL"]).success();
    harness::eventually("it has ended", || json(&alice.regen(&["state", &id]))["status"] == "stopped");
    alice.regen(&["delete", &id]).success();
    assert_eq!(alice.run(&["--ring", "box"], "cat /etc/motd").success().stdout(), "hi\n");
}

#[test]
fn a_user_without_subordinate_ids_has_one_and_a_ring_all_the_same() {
    let world = World::new("rs");
    let bob = Person::new(&world, Subordinates::None);
    let output = bob.run(&["--ring", "box"], "cat /proc/self/uid_map; echo hi > /etc/motd; chown 5 /etc/motd");
    let words: Vec<_> = output.code(1).stdout().split_whitespace().collect();
    assert_eq!(words, ["0", &bob.user.uid.to_string(), "1"], "{output:?}");
    assert_eq!(bob.run(&["--ring", "box"], "cat /etc/motd").success().stdout(), "hi\n");
}

#[test]
fn snapshots_by_themselves_are_refused_where_a_user_has_no_cgroups() {
    let world = World::new("re");
    let alice = Person::new(&world, Subordinates::Some);
    let output = alice.run(&["--ring", "box", "--snapshot-every", "1s"], "true");
    output.fails_with(1, "no cgroup that could be frozen: ask for none, or let regen make cgroups");
    assert_eq!(json(&alice.regen(&["list", "--format", "json"])), serde_json::json!([]));
    assert_eq!(json(&alice.regen(&["ring", "ls", "--json"])), serde_json::json!([]));
    // By hand, too.
    let (rootfs, id) = (world.rootfs_text(), world.id("a"));
    alice.regen(&["run", "-d", "--rootfs", &rootfs, "--ring", "box", &id, "--", "sleep", "1000"]).success();
    alice.regen(&["exec", &id, "touch", "/f"]).success();
    alice.regen(&["ring", "snapshot", "box"]).fails_with(1, "no cgroup that could be frozen");
    alice.regen(&["delete", "--force", &id]).success();
    assert_eq!(json(&alice.regen(&["ring", "log", "box", "--json"]))[0]["reason"], "exit");
}

#[test]
fn without_flags_an_ordinary_users_things_are_below_their_own_directories() {
    let world = World::new("rd");
    let alice = Person::new(&world, Subordinates::Some);
    let (rootfs, id) = (world.rootfs_text(), world.id("a"));
    let run = alice.command("regen", &["run", "--rootfs", &rootfs, "--ring", "box", &id, "--", "touch", "/f"]);
    world.finish(run).success();
    let ring = alice.path("home/.local/share/regen/rings").join(&alice.user.name).join("box/ring.json");
    assert!(ring.exists(), "{}", ring.display());
    assert!(alice.path("xdg/regen").is_dir());
    let mut rings = alice.command("regen", &["ring", "pack"]);
    rings.env_remove("XDG_RUNTIME_DIR");
    world.finish(rings).fails_with(2, "XDG_RUNTIME_DIR is not set");
    world.finish(alice.command("regen", &["ring", "pack"])).success();
}

#[test]
fn a_bundle_with_its_own_user_namespace_is_run_as_it_says() {
    let world = World::new("rb");
    let bob = Person::new(&world, Subordinates::None);
    let bundle = bob.path("home/bundle");
    fs::create_dir(&bundle).unwrap();
    std::os::unix::fs::chown(&bundle, Some(bob.user.uid.as_raw()), None).unwrap();
    let text = bundle.to_str().unwrap();
    world.finish(bob.command("regen", &["spec", "--rootless", "--bundle", text])).success();
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["sh", "-c", "id -u; cat /proc/self/uid_map"]);
    spec["root"]["path"] = world.rootfs_text().into();
    fs::write(&config, spec.to_string()).unwrap();
    let output = bob.regen(&["run", "--bundle", text, &world.id("a")]);
    let words: Vec<_> = output.success().stdout().split_whitespace().collect();
    assert_eq!(words, ["0", "0", &bob.user.uid.to_string(), "1"], "{output:?}");
}

#[test]
fn a_machine_without_user_namespaces_says_how_to_get_them() {
    let world = World::new("rn");
    let alice = Person::new(&world, Subordinates::Some);
    // As root of a user namespace, in which no further one may be made.
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --reuid=1 --regid=1 --clear-groups {} \
         --root {} --store {} run --rootfs {} {} -- true",
        alice.path("bin/regen").display(),
        world.root().display(),
        world.store().display(),
        world.rootfs().display(),
        world.id("a"),
    );
    let mut command = alice.command("unshare", &["--map-root-user", "--map-auto", "sh", "-c", &script]);
    command.env("XDG_RUNTIME_DIR", alice.path("xdg"));
    world.finish(command).fails_with(1, "user.max_user_namespaces");
}
