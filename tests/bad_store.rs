//! Stores that cannot be used: of a newer format, on the wrong file system, or full.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::enclosure::Enclosure;
use harness::ring::picture;
use harness::{Output, World, eventually};
use serde_json::{Value, json};

fn run(world: &World, enclosure: &Enclosure<'_>, script: &str) -> Output {
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    enclosure.regen(&["run", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "sh", "-c", script])
}

fn log(enclosure: &Enclosure<'_>) -> Vec<Value> {
    let output = enclosure.regen(&["ring", "log", "alice", "--json"]);
    serde_json::from_str::<Value>(output.success().stdout()).unwrap().as_array().unwrap().clone()
}

#[test]
fn a_store_of_a_newer_format_is_not_touched() {
    let world = World::new("newer");
    world.run_in("alice", "touch /tmp/1").success();
    world.pack();
    let file = world.store().join("format.json");
    let good = fs::read_to_string(&file).unwrap();
    let change = |field: &str, value: Value| {
        let mut format: Value = serde_json::from_str(&good).unwrap();
        format[field] = value;
        format.to_string()
    };
    let cases = [
        (change("version", json!(2)), "it has format version 2, this regen knows 1"),
        (change("incompatible", json!(["erofs"])), "features that this regen does not know: erofs"),
        (change("read_only_compatible", json!(["parity"])), "features that this regen does not know: parity"),
        ("{".to_owned(), "format.json"),
        ("{}".to_owned(), "format.json"),
    ];
    for (text, words) in cases {
        fs::write(&file, text).unwrap();
        let before = world.picture();
        world.run_in("alice", "true").fails_with(1, words);
        world.ring(&["ls"]).fails_with(1, words);
        world.ring(&["rm", "alice"]).fails_with(1, words);
        world.ring(&["pack"]).fails_with(1, words);
        assert_eq!(world.picture(), before);
    }
    // Features that only a newer regen profits from are no reason.
    fs::write(&file, change("compatible", json!(["hints"]))).unwrap();
    world.run_in("alice", "test -e /tmp/1").success();
    fs::write(&file, good).unwrap();

    world.edit_ring_file("alice", "ring.json", |ring| ring["version"] = json!(7));
    let before = world.picture();
    world.run_in("alice", "true").fails_with(1, "format version 7, this regen knows 1");
    world.ring(&["log", "alice"]).fails_with(1, "use the regen that wrote it, or a newer one");
    assert_eq!(world.picture(), before);
    world.edit_ring_file("alice", "ring.json", |ring| ring["version"] = json!(1));
}

#[test]
fn a_store_on_an_overlay_says_so_and_names_a_better_place() {
    let world = World::new("overlay");
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(world.base().join(name)).unwrap();
    }
    let mount = "mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work merged";
    let enclosure = Enclosure::new(&world, mount);
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    for store in ["merged", "merged/below/it"] {
        let store = world.base().join(store);
        let root = world.root();
        let global = [harness::REGEN, "--root", root.to_str().unwrap(), "--store", store.to_str().unwrap()];
        let run = ["run", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "true"];
        let output = enclosure.run(&[&global[..], &run].concat());
        output.fails_with(1, "it lies on overlay, on which the kernel makes no writable overlay");
        assert!(output.stderr().contains("use '--store /"), "{}", output.stderr());
    }
    assert_eq!(enclosure.shell("ls -A merged"), "", "nothing was made");
    assert!(!world.state_directory(&id).exists());
}

#[test]
fn a_full_disk_leaves_the_entry_sealed_and_a_later_pack_completes_it() {
    let world = World::new("full");
    fs::create_dir(world.store()).unwrap();
    let enclosure = Enclosure::new(&world, "mount -t tmpfs -o size=24m none store");
    run(&world, &enclosure, "dd if=/dev/urandom of=/tmp/big bs=1M count=14 2>/dev/null; sha256sum /tmp/big > /tmp/sum")
        .success();
    let refused = enclosure.regen(&["ring", "pack"]);
    refused.fails_with(1, "bytes are missing");
    assert!(refused.stderr().contains("pack entry @1 of ring 'root/alice'"), "{}", refused.stderr());
    let entry = &log(&enclosure)[0];
    assert_eq!((&entry["state"], &entry["digest"]), (&json!("sealed"), &Value::Null));
    assert_eq!(enclosure.shell("ls -A store/rings/root/alice/blobs/sha256"), "");
    assert_eq!(enclosure.shell("find store -name '.tmp-*'"), "");
    // It is a good start all the same.
    run(&world, &enclosure, "sha256sum -c -s /tmp/sum").success();
    assert!(enclosure.regen(&["ring", "verify"]).success().stdout().is_empty());

    let missing: u64 =
        refused.stderr().split(" bytes are missing").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let size = 24 * 1024 * 1024 + missing + 64 * 1024;
    // The floor grows with the file system: 5 % of what is added.
    enclosure.shell(&format!("mount -o remount,size={} store", size + size / 10));
    enclosure.regen(&["ring", "pack"]).success();
    assert_eq!(log(&enclosure)[0]["state"], "packed");
    run(&world, &enclosure, "sha256sum -c -s /tmp/sum").success();
    assert!(enclosure.regen(&["ring", "verify"]).success().stdout().is_empty());
}

#[test]
fn a_disk_that_fills_up_while_packing_is_told_and_leaves_nothing_behind() {
    let world = World::new("filling");
    fs::create_dir(world.store()).unwrap();
    let config = world.base().join("config.toml");
    fs::write(&config, "[store]\nmin-free = 0\n").unwrap();
    let enclosure = Enclosure::new(&world, "mount -t tmpfs -o size=24m none store");
    // Empty files with names that do not compress take no space before they are packed.
    let script = "cd /tmp; i=0; while test $i -lt 3000; do n=$(head -c 90 /dev/urandom | od -An -tx1 | tr -d ' \\n'); : > $n; i=$((i+1)); done";
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    let config = ["--config", config.to_str().unwrap()];
    let run = ["run", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "sh", "-c"];
    let lock = enclosure.regen(&[&config[..], &run, &["true"]].concat());
    lock.success();
    enclosure
        .shell("dd if=/dev/zero of=store/filler bs=1k count=30000 2>/dev/null || true; truncate -s -100k store/filler");
    enclosure.regen(&[&config[..], &run, &[script]].concat()).success();
    let full = enclosure.regen(&[&config[..], &["ring", "pack"]].concat());
    full.fails_with(1, "pack entry @1 of ring 'root/alice'");
    assert!(
        full.stderr().contains("no space left") && full.stderr().contains("bytes more, then run 'regen ring pack'"),
        "{}",
        full.stderr()
    );
    assert!(!full.stderr().contains("about 0 bytes"), "{}", full.stderr());
    assert_eq!(log(&enclosure)[0]["state"], "sealed");
    let leftovers = "find store -name '.tmp-*'; ls -A store/rings/root/alice/blobs/sha256";
    // The worker of the run tries as well.
    eventually("both have given up", || enclosure.shell(leftovers).is_empty());
    enclosure.shell("rm store/filler");
    enclosure.regen(&["ring", "pack"]).success();
    assert_eq!(log(&enclosure)[0]["state"], "packed");
    assert!(enclosure.regen(&["ring", "verify"]).success().stdout().is_empty());
}

#[test]
fn a_container_that_fills_the_disk_itself_loses_nothing() {
    let world = World::new("filled");
    fs::create_dir(world.store()).unwrap();
    let enclosure = Enclosure::new(&world, "mount -t tmpfs -o size=16m none store");
    run(&world, &enclosure, "echo one > /tmp/f").success();
    enclosure.regen(&["ring", "pack"]).success();
    let filled = run(&world, &enclosure, "echo two > /tmp/f; dd if=/dev/zero of=/tmp/fill bs=4k 2>/dev/null; exit 7");
    filled.fails_with(7, "regen: warning: save container ");
    filled.fails_with(7, "no space left on device: nothing is lost, what it changed is in '/");
    let told = filled.stderr().split_once("is in '").unwrap().1.split_once("': make room").unwrap();
    assert_eq!(enclosure.shell(&format!("cat {}/tmp/f", told.0)), "two\n");
    assert!(told.1.contains("'regen ring recover'"), "{}", filled.stderr());
    let before = picture(&world.rootfs());
    run(&world, &enclosure, "true").code(1);
    enclosure.shell("mount -o remount,size=64m store");
    assert_eq!(run(&world, &enclosure, "cat /tmp/f").success().stdout(), "two\n");
    assert_eq!(log(&enclosure).len(), 2);
    enclosure.regen(&["ring", "pack"]).success();
    assert!(enclosure.regen(&["ring", "verify"]).success().stdout().is_empty());
    assert_eq!(picture(&world.rootfs()), before);
    assert_eq!(enclosure.shell("ls -A store/runs; find store -name '.tmp-*'"), "");
}

#[test]
fn a_ring_is_removed_where_nothing_can_be_written() {
    let world = World::new("fullrm");
    fs::create_dir(world.store()).unwrap();
    let ext4 = "truncate -s 24M disk; mkfs.ext4 -q -m 0 disk; mount -o loop disk store";
    let known = fs::read_to_string("/proc/filesystems").unwrap().contains("\text4\n");
    for mount in ["mount -t tmpfs -o size=16m none store", ext4].iter().take(1 + usize::from(known)) {
        let enclosure = Enclosure::new(&world, mount);
        run(&world, &enclosure, "echo one > /tmp/f").success();
        enclosure.regen(&["ring", "pack"]).success();
        let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
        let script = "echo two > /tmp/f; exec sleep 1000";
        enclosure
            .regen(&["run", "-d", "--rootfs", &rootfs, "--ring", "alice", &id, "--", "sh", "-c", script])
            .success();
        // What is set aside for data that is not on the disk yet comes free once more.
        enclosure
            .shell("for n in 1 2 3 4; do dd if=/dev/zero of=store/filler$n bs=1k 2>/dev/null || sync -f store; done");
        enclosure.regen(&["ring", "rm", "alice"]).fails_with(1, &format!("in use by container '{id}'"));
        enclosure.regen(&["kill", &id, "KILL"]).success();
        eventually("it is dead", || world.status(&id) == "stopped");
        // A run has to save first what the dead one left.
        let refused = run(&world, &enclosure, "true");
        assert!(refused.code(1).stderr().contains("no space left on device"), "{mount}: {}", refused.stderr());
        let planned = enclosure.regen(&["ring", "rm", "alice", "--dry-run"]);
        assert!(planned.success().stdout().contains("1 entries"), "{}", planned.stdout());
        assert!(enclosure.regen(&["ring", "rm", "alice"]).success().stdout().ends_with(" removed\n"));
        let left = "find store/runs store/layers store/rings/root -mindepth 1";
        eventually("all of it is collected", || enclosure.shell(left).is_empty());
        enclosure.regen(&["delete", "--force", &id]).success();
        enclosure.shell("rm store/filler*");
        assert_eq!(run(&world, &enclosure, "test ! -e /tmp/f && echo new").success().stdout(), "new\n");
        enclosure.regen(&["ring", "pack"]).success();
        assert!(enclosure.regen(&["ring", "verify"]).success().stdout().is_empty());
    }
}
