//! Forks: rings that begin with an entry of another, and containers that start from a ring without having it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use harness::ring::names;
use harness::{World, eventually};
use serde_json::{Value, json};

/// Three entries: `/tmp/f` has the lines 1 to 3.
fn alice(world: &World) {
    for n in 1..=3 {
        world.run_in("alice", &format!("echo {n} >> /tmp/f; head -c 100000 /dev/zero > /tmp/{n}")).success();
    }
}

/// Runs a script in the container `id` of its own fork of a ring.
fn fork_run(world: &World, target: &str, id: &str, script: &str) -> harness::Output {
    world.regen(&["run", "--rootfs", &world.rootfs_text(), "--ring", target, "--fork", id, "--", "sh", "-c", script])
}

/// A container that is started with these annotations and waits until it is deleted; gives its id.
fn annotated(world: &World, annotations: &Value, script: &str) -> String {
    let script = format!("{script}; touch /dev/done; exec sleep 1000");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["annotations"] = annotations.clone();
    });
    let id = world.fresh_id();
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    let done = PathBuf::from(format!("/proc/{}/root/dev/done", world.pid(&id)));
    eventually("it is at work", || done.exists());
    id
}

fn ring_names(world: &World) -> Vec<String> {
    names(&world.store().join("rings/root"))
}

#[test]
fn a_fork_begins_with_an_entry_and_goes_its_own_way() {
    let world = World::new("fork");
    alice(&world);
    world.pack();
    let forked = world.ring_json(&["fork", "alice@2", "bob"]);
    let (seq, reason, parent) = (&forked["seq"], &forked["reason"], &forked["parent"]);
    assert_eq!((seq, reason, parent), (&json!(1), &json!("fork"), &Value::Null));
    assert_eq!((&forked["state"], &forked["forked_from"]), (&json!("packed"), &json!("root/alice@2")));
    assert_eq!(world.layers_of("bob"), world.layers_of("alice@2"));
    assert_eq!(world.lines_found("bob"), "1 2");
    world.run_in("bob", "echo bob >> /tmp/f").success();
    assert_eq!((world.lines_found("bob"), world.lines_found("alice")), ("1 2 bob".into(), "1 2 3".into()));
    assert_eq!((world.seqs("bob"), world.seqs("alice")), (vec![2, 1], vec![3, 2, 1]));

    // The fork's manifest is its own, and what it was made from is not needed any more.
    world.pack();
    let digest = world.ring_json(&["show", "bob@1"])["digest"].as_str().unwrap().replace("sha256:", "");
    let manifest = world.ring_file("bob", &format!("blobs/sha256/{digest}"));
    let said = |name: &str| manifest["annotations"][name].as_str().unwrap().to_owned();
    assert_eq!(said("run.regen.ring"), "root/bob");
    assert_eq!(said("run.regen.entry.forked-from"), "root/alice@2");
    world.ring(&["verify"]).success();
    world.ring(&["rm", "alice"]).success();
    world.pack();
    for layer in world.layers() {
        fs::remove_dir_all(world.store().join("layers").join(layer)).unwrap();
    }
    assert_eq!(world.lines_found("bob"), "1 2 bob");
    world.ring(&["verify"]).success();
}

#[test]
fn several_rings_are_forked_at_once_all_or_none() {
    let world = World::new("forks");
    alice(&world);
    world.pack();
    let output = world.ring(&["fork", "alice@2", "bob", "carol", "root/dave", "--json"]);
    let told: Vec<Value> = output.success().stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(told.len(), 3, "one line for each: {told:?}");
    for (name, told) in ["bob", "carol", "dave"].iter().zip(&told) {
        assert_eq!(*told, world.ring_json(&["show", name]));
        assert_eq!(world.lines_found(name), "1 2");
    }
    assert_ne!(told[0]["digest"], told[1]["digest"], "a manifest names its ring");
    world.pack();

    let (before, rings) = (world.picture(), ring_names(&world));
    world.ring(&["fork", "alice", "eve", "frank", "eve"]).fails_with(2, "'root/eve'");
    world.ring(&["fork", "alice", "eve", "frank", "carol"]).fails_with(1, "there is a ring of that name");
    world.ring(&["fork", "alice", "eve", "a/b/c"]).fails_with(1, "check name");
    assert_eq!(world.picture(), before);

    // What fails only while it is made takes along what was made before it.
    let in_the_way = world.store().join("rings/root/frank");
    fs::write(&in_the_way, "").unwrap();
    world.ring(&["fork", "alice", "eve", "frank"]).fails_with(1, "ring 'root/frank'");
    fs::remove_file(&in_the_way).unwrap();
    assert_eq!(ring_names(&world), rings);
}

#[test]
fn a_fork_copies_no_byte() {
    let world = World::new("links");
    alice(&world);
    world.pack();
    world.ring(&["fork", "alice", "bob"]).success();
    let packs = fs::read_dir(world.ring_directory("bob").join("blobs/sha256")).unwrap();
    let mut links: Vec<_> = packs.map(|pack| pack.unwrap().metadata().unwrap().nlink()).collect();
    links.sort_unstable();
    assert_eq!(links, [1, 1, 2, 2, 2], "manifest and config; the packs of three layers, under a second name each");
    // What is only sealed when it is forked is packed once.
    world.run_in("alice", "echo 4 >> /tmp/f").success();
    world.ring(&["fork", "alice", "carol"]).success();
    world.pack();
    let sealed = world.layers_of("alice").pop().unwrap();
    let pack = world.ring_file("carol", "ring.json")["layers"][&sealed]["packs"][0]["digest"].clone();
    assert_eq!(pack, world.ring_file("alice", "ring.json")["layers"][&sealed]["packs"][0]["digest"]);
    let hex = pack.as_str().unwrap().replace("sha256:", "");
    let inode = |ring: &str| fs::metadata(world.ring_directory(ring).join("blobs/sha256").join(&hex)).unwrap().ino();
    assert_eq!(inode("alice"), inode("carol"));
    world.ring(&["verify"]).success();
}

#[test]
fn a_fork_of_what_is_packed_is_packed_and_one_of_what_is_sealed_will_be() {
    let world = World::new("packed");
    alice(&world);
    world.pack();
    world.ring(&["set", "alice", "--depth", "5", "--max-bytes", "1GiB", "--keep-hourly", "24"]).success();
    world.ring(&["fork", "alice@2", "bob"]).success();
    let layout = world.ring_directory("bob");
    let (digest, tag) = {
        let shown = world.ring_json(&["show", "bob@1"]);
        (shown["digest"].as_str().unwrap().to_owned(), shown["id"].clone())
    };
    let listed = world.ring_file("bob", "index.json")["manifests"][0].clone();
    assert_eq!(listed["digest"].as_str().unwrap(), digest);
    assert_eq!(listed["annotations"]["org.opencontainers.image.ref.name"], tag);
    // The same to the last byte as what a worker writes.
    let (index, manifest) = ("index.json".to_owned(), format!("blobs/sha256/{}", digest.replace("sha256:", "")));
    let before = [&index, &manifest].map(|name| fs::read_to_string(layout.join(name)).unwrap());
    fs::remove_file(layout.join(&manifest)).unwrap();
    world.edit_ring_file("bob", &index, |index| index["manifests"] = json!([]));
    world.edit_ring_file("bob", "ring.json", |state| state["entries"][0]["manifest"] = Value::Null);
    world.pack();
    assert_eq!([&index, &manifest].map(|name| fs::read_to_string(layout.join(name)).unwrap()), before);
    // What holds for one holds for the other.
    for rule in ["depth", "max_bytes", "keep", "incompatible"] {
        assert_eq!(world.ring_file("bob", "ring.json")[rule], world.ring_file("alice", "ring.json")[rule], "{rule}");
    }
    assert_eq!(world.ring_file("bob", "ring.json")["keep"]["hourly"], 24);

    world.run_in("alice", "echo 4 >> /tmp/f").success();
    world.ring(&["fork", "alice", "carol"]).success();
    // A worker comes.
    eventually("it is packed", || world.ring_json(&["show", "carol@1"])["state"] == "packed");
    world.pack();
    world.ring(&["verify"]).success();
}

/// Makes a fork one that the machine went down after: its files but `ring.json` may be gone or torn.
fn cut_power(world: &World, ring: &str) {
    let here = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    world.edit_ring_file(ring, "ring.json", |state| {
        assert_eq!(state["unflushed"], here.trim());
        state["unflushed"] = json!("another boot");
    });
}

#[test]
fn what_a_power_cut_took_from_beside_a_forks_state_is_made_anew() {
    let world = World::new("power");
    alice(&world);
    world.pack();
    for lost in ["index.json", "oci-layout", "blobs", "manifest", "config"] {
        world.ring(&["fork", "alice@2", "bob"]).success();
        let (directory, before) = (world.ring_directory("bob"), world.ring_file("bob", "index.json"));
        let blobs = world.blobs("bob");
        let place = |digest: &Value| format!("blobs/sha256/{}", digest.as_str().unwrap().replace("sha256:", ""));
        let manifest = place(&before["manifests"][0]["digest"]);
        let config = place(&world.ring_file("bob", &manifest)["config"]["digest"]);
        match lost {
            "index.json" => fs::write(directory.join(lost), "").unwrap(),
            "oci-layout" => fs::remove_file(directory.join(lost)).unwrap(),
            "manifest" => fs::write(directory.join(manifest), [0; 100]).unwrap(),
            "config" => fs::write(directory.join(config), "").unwrap(),
            _ => fs::remove_dir_all(directory.join("blobs")).unwrap(),
        }
        world.ring(&["verify"]).code(1);
        cut_power(&world, "bob");
        world.ring(&["verify"]).success();
        assert_eq!(world.blobs("bob"), blobs, "without {lost}");
        assert_eq!(world.ring_file("bob", "index.json"), before);
        assert_eq!(world.ring_file("bob", "ring.json")["unflushed"], Value::Null);
        assert_eq!(world.lines_found("bob"), "1 2");
        world.ring(&["rm", "bob"]).success();
    }
    // Where the ring that it came from is gone as well, it is packed anew.
    world.ring(&["fork", "alice@2", "bob"]).success();
    world.ring(&["rm", "alice"]).success();
    fs::remove_dir_all(world.ring_directory("bob").join("blobs")).unwrap();
    cut_power(&world, "bob");
    world.ring(&["recover"]).success();
    world.pack();
    assert_eq!(world.ring_json(&["show", "bob@1"])["state"], "packed");
    world.ring(&["verify"]).success();
    for layer in world.layers() {
        fs::remove_dir_all(world.store().join("layers").join(layer)).unwrap();
    }
    assert_eq!(world.lines_found("bob"), "1 2");
}

#[test]
fn a_fork_that_a_worker_has_flushed_is_not_looked_at_after_a_power_cut() {
    let world = World::new("flushed");
    alice(&world);
    world.pack();
    world.ring(&["fork", "alice", "bob"]).success();
    world.run_in("bob", "echo more >> /tmp/f").success();
    world.pack();
    assert_eq!(world.ring_file("bob", "ring.json")["unflushed"], Value::Null);
}

#[test]
fn a_worker_passes_over_rings_of_which_nothing_has_changed() {
    let world = World::new("seen");
    alice(&world);
    world.pack();
    world.ring(&["fork", "alice", "idle"]).success();
    let seen = || fs::read_to_string(world.store().join("worker.seen")).unwrap_or_default();
    eventually("nothing is left to do", || {
        world.regen(&["worker"]).success();
        ["alice", "idle"].iter().all(|name| seen().contains(&format!("root/{name}")))
    });
    // Whoever looks at it, fails.
    let index = world.ring_directory("idle").join("index.json");
    let whole = fs::read(&index).unwrap();
    fs::write(&index, "").unwrap();
    world.regen(&["worker"]).success();
    world.run_in("alice", "echo 4 >> /tmp/f").success();
    eventually("the other one is packed", || world.ring_json(&["show", "alice@4"])["state"] == "packed");
    world.regen(&["worker"]).success();
    world.ring(&["pack"]).fails_with(1, "index.json");
    fs::write(&index, whole).unwrap();
    world.pack();
    // Anything that changes there is seen.
    eventually("it is passed over again", || {
        world.regen(&["worker"]).success();
        seen().contains("root/idle")
    });
    fs::write(&index, "").unwrap();
    fs::set_permissions(world.ring_directory("idle").join("ring.json"), fs::Permissions::from_mode(0o600)).unwrap();
    world.regen(&["worker"]).fails_with(1, "index.json");
    assert!(!seen().contains("root/idle"));
    world.ring(&["recover"]).success();
    world.pack();
}

#[test]
fn a_fork_of_what_cannot_be_forked_changes_nothing() {
    let world = World::new("refuse");
    alice(&world);
    world.ring(&["fork", "alice", "bob"]).success();
    world.pack();
    let before = world.picture();
    world.ring(&["fork", "alice", "bob"]).fails_with(1, "there is a ring of that name");
    world.ring(&["fork", "alice@9", "carol"]).fails_with(1, "fork 'root/alice@9': ");
    world.ring(&["fork", "alice@base", "carol"]).fails_with(1, "the base is no entry");
    world.ring(&["fork", "dave", "carol"]).fails_with(1, "there is no such ring");
    world.ring(&["fork", "alice", "../carol"]).fails_with(1, "check name");
    world.ring(&["fork", "alice", "alice"]).fails_with(1, "there is a ring of that name");
    assert_eq!(world.picture(), before);
}

#[test]
fn a_ring_is_forked_while_a_container_has_it() {
    let world = World::new("busy");
    alice(&world);
    let id = world.writer_in("alice", "4");
    world.ring(&["fork", "alice", "bob"]).success();
    assert_eq!(world.lines_found("bob"), "1 2 3");
    world.delete(&id);
    assert_eq!(world.lines_found("alice"), "1 2 3 4");
}

#[test]
fn a_fork_is_made_where_the_making_of_a_ring_was_cut_short() {
    let world = World::new("skeleton");
    alice(&world);
    fs::create_dir_all(world.ring_directory("bob").join("blobs/sha256")).unwrap();
    fs::write(world.ring_directory("bob").join("lock"), "").unwrap();
    // And what was left of a fork is swept, but not one that is being made.
    let left = world.store().join("rings/root/.tmp-0123");
    fs::create_dir_all(left.join("blobs")).unwrap();
    world.ring(&["fork", "alice", "bob"]).success();
    assert_eq!(world.lines_found("bob"), "1 2 3");
    world.ring(&["rm", "bob"]).success();
    let making = world.store().join("rings/root/.tmp-4567");
    fs::create_dir(&making).unwrap();
    let lock = fs::File::create(making.join("lock")).unwrap();
    lock.lock().unwrap();
    world.pack();
    assert_eq!(ring_names(&world), [".tmp-4567", "alice"]);
    drop(lock);
    world.pack();
    assert_eq!(ring_names(&world), ["alice"]);
}

#[test]
fn containers_run_at_once_from_one_entry_each_in_a_ring_of_its_own() {
    let world = World::new("many");
    alice(&world);
    let keeper = world.writer_in("alice", "keeper");
    let start = |n: u32| {
        let (id, rootfs) = (world.id(&format!("c{n}")), world.rootfs_text());
        let script = format!("echo {n} >> /tmp/f; touch /dev/done; exec sleep 1000");
        let arguments =
            ["run", "-d", "--rootfs", &rootfs, "--ring", "alice@2", "--fork", &id, "--", "sh", "-c", &script];
        (id.clone(), world.spawn(world.command(&arguments)))
    };
    let ids: Vec<_> = (0..5).map(start).collect();
    let ids: Vec<_> = ids
        .into_iter()
        .map(|(id, running)| {
            running.finish().success();
            let done = PathBuf::from(format!("/proc/{}/root/dev/done", world.pid(&id)));
            eventually("it writes", || done.exists());
            id
        })
        .collect();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(world.lines_in(id), format!("1 2 {n}"));
        world.delete(id);
        let ring = format!("alice.{id}");
        assert_eq!(world.seqs(&ring), [2, 1]);
        assert_eq!(world.ring_json(&["show", &format!("{ring}@1")])["forked_from"], "root/alice@2");
        // The next run of that container goes on in its ring, wherever the other one is by now.
        let seen = fork_run(&world, "alice", id, "cat /tmp/f; echo more >> /tmp/f");
        assert_eq!(seen.success().stdout(), format!("1\n2\n{n}\n"));
        assert_eq!(world.seqs(&ring), [3, 2, 1]);
    }
    world.delete(&keeper);
    assert_eq!(world.lines_found("alice"), "1 2 3 keeper");
    world.pack();
    world.ring(&["verify"]).success();
}

#[test]
fn a_container_that_changed_nothing_leaves_no_fork() {
    let world = World::new("nothing");
    alice(&world);
    let id = world.id("c");
    assert_eq!(fork_run(&world, "alice@1", &id, "cat /tmp/f").success().stdout(), "1\n");
    assert_eq!(ring_names(&world), ["alice"]);
    // Nor does one that could not be made.
    let missing =
        world.regen(&["run", "--rootfs", &world.rootfs_text(), "--ring", "alice", "--fork", &id, "--", "/nope"]);
    assert_eq!((missing.code, ring_names(&world)), (127, vec!["alice".to_owned()]));
    // From the bare base there is no entry to begin with.
    assert_eq!(fork_run(&world, "alice@base", &id, "ls /tmp; touch /tmp/x").success().stdout(), "");
    assert_eq!(world.seqs(&format!("alice.{id}")), [1]);
}

#[test]
fn a_fork_is_refused_where_a_start_is() {
    let world = World::new("runrefuse");
    let id = world.id("c");
    fork_run(&world, "alice", &id, "true").fails_with(1, "there is no such ring");
    assert!(!world.store().join("rings/root/alice").exists());
    alice(&world);
    fork_run(&world, "alice@9", &id, "true").fails_with(1, "start from ring 'root/alice'");
    world.ring(&["fork", "alice", &format!("alice.{id}")]).success();
    fork_run(&world, "alice", &id, "true").fails_with(1, "which was not made for that");
    world.regen(&["run", "--rootfs", &world.rootfs_text(), "--fork", &id, "--", "true"]).code(2);
    assert_eq!(ring_names(&world), ["alice".to_owned(), format!("alice.{id}")]);
}

#[test]
fn an_annotation_chooses_the_mode() {
    let world = World::new("mode");
    let mode = |mode: &str| json!({"run.regen.ring": "alice", "run.regen.ring.mode": mode});
    for absent in ["fork", "readonly"] {
        let bundle = world.bundle(|spec| spec["annotations"] = mode(absent));
        world.regen(&["run", "--bundle", bundle.text(), &world.fresh_id()]).fails_with(1, "there is no such ring");
    }
    alice(&world);
    let owner = annotated(&world, &mode("exclusive"), "echo owner >> /tmp/f");
    let forks = [(); 2].map(|()| annotated(&world, &mode("fork"), "echo fork >> /tmp/f"));
    let readers = [(); 2].map(|()| annotated(&world, &mode("readonly"), "echo reader >> /tmp/f"));
    for reader in &readers {
        assert_eq!(world.lines_in(reader), "1 2 3 reader");
    }
    // The layers that a reader stands on stay, whatever becomes of the ring.
    for id in forks.iter().chain([&owner]) {
        world.delete(id);
    }
    world.ring(&["rm", "alice"]).success();
    for id in &forks {
        assert_eq!(world.lines_found(&format!("alice.{id}")), "1 2 3 fork");
        world.ring(&["rm", &format!("alice.{id}")]).success();
    }
    world.pack();
    for reader in &readers {
        assert_eq!(world.regen(&["exec", reader, "cat", "/tmp/f"]).success().stdout(), "1\n2\n3\nreader\n");
        assert_eq!(world.regen(&["exec", reader, "wc", "-c", "/tmp/1"]).success().stdout(), "100000 /tmp/1\n");
        world.delete(reader);
    }
    world.pack();
    assert_eq!((world.layers(), names(&world.store().join("runs"))), (Vec::new(), Vec::new()), "nothing is left");
    assert_eq!(world.ring_json(&["ls"]), json!([]));
}

#[test]
fn what_a_dead_container_left_is_in_the_fork() {
    let world = World::new("dead");
    alice(&world);
    let id = world.writer_in("alice", "dead");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(world.pid(&id)), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is dead", || world.status(&id) == "stopped");
    world.ring(&["fork", "alice@3", "before"]).success();
    world.ring(&["fork", "alice", "after"]).success();
    assert_eq!((world.lines_found("before"), world.lines_found("after")), ("1 2 3".into(), "1 2 3 dead".into()));
    world.delete(&id);
}
