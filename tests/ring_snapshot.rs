//! An entry of a container that goes on, and that stands still for no longer than it has to, whoever dies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use harness::{Output, World, cgroup_of, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

#[test]
fn a_snapshot_is_an_entry_of_a_container_that_goes_on() {
    let world = World::new("snapshot");
    let id = world.writer_in("web", "one");
    world.ring(&["snapshot", "other"]).fails_with(1, "no such ring");
    let entry = world.ring_json(&["snapshot", "web"]);
    assert_eq!((&entry["seq"], &entry["reason"], &entry["next"]), (&json!(1), &json!("snapshot"), &json!(true)));
    world.append(&id, "two");
    assert!(world.ring(&["snapshot", "web"]).success().stdout().starts_with("root/web: @2 "));
    assert_eq!(world.status(&id), "running");
    world.append(&id, "three");
    world.delete(&id);
    let reasons: Vec<_> = world.log("web").iter().map(|entry| entry["reason"].clone()).collect();
    assert_eq!(reasons, ["exit", "snapshot", "snapshot"]);
    for (seq, text) in [(1, "one"), (2, "one two"), (3, "one two three")] {
        assert_eq!(world.lines_found(&format!("web@{seq}")), text);
    }
    world.ring(&["snapshot", "web"]).fails_with(1, "no container runs on it");
    let idle = world.detach_in("web", "exec sleep 1000");
    assert_eq!(world.ring_json(&["snapshot", "web"]), Value::Null);
    world.delete(&idle);
    assert_eq!(world.seqs("web"), [3, 2, 1]);
}

/// What the newest layer of an entry holds, as `KIND PATH`.
fn own_layer(world: &World, seq: u64) -> Vec<String> {
    let entry = world.ring_json(&["show", &format!("web@{seq}")]);
    let layer = entry["layers"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let root = world.store().join("layers").join(layer).join("diff");
    let found = Command::new("find").arg(&root).args(["-mindepth", "1", "-printf", "%y %P\n"]).output().unwrap();
    let mut lines: Vec<_> = String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn exec(world: &World, id: &str, script: &str) -> Output {
    world.regen(&["exec", id, "sh", "-c", script])
}

fn layers(world: &World, seq: u64) -> Vec<Value> {
    world.ring_json(&["show", &format!("web@{seq}")])["layers"].as_array().unwrap().clone()
}

#[test]
fn the_next_snapshot_holds_what_changed_since_and_lies_over_the_one_before() {
    let world = World::new("delta");
    world.run_in("web", "mkdir /tmp/old; echo old > /tmp/old/f").success();
    let id = world.detach_in(
        "web",
        "mkdir /tmp/d; for i in 1 2 3; do echo $i > /tmp/d/$i; done; echo 0 > /tmp/f; exec sleep 1000",
    );
    eventually("it has written", || exec(&world, &id, "cat /tmp/f").code == 0);
    // So that the change does not count as one of just now.
    std::thread::sleep(std::time::Duration::from_millis(300));
    world.ring(&["snapshot", "web"]).success();
    assert_eq!(world.ring_json(&["snapshot", "web"]), Value::Null, "nothing has changed since");
    exec(&world, &id, "rm /tmp/d/2; echo new > /tmp/d/3; rm -r /tmp/old").success();
    world.ring(&["snapshot", "web"]).success();
    assert_eq!(own_layer(&world, 3), ["c tmp/d/2", "c tmp/old", "d tmp", "d tmp/d", "f tmp/d/3"]);
    assert_eq!(layers(&world, 3)[..2], layers(&world, 2)[..]);
    let diff = world.ring(&["diff", "web@2", "@3"]);
    assert_eq!(
        diff.success().stdout().lines().collect::<Vec<_>>(),
        ["D /tmp/d/2", "M /tmp/d/3", "D /tmp/old", "D /tmp/old/f"]
    );
    world.pack();
    world.ring(&["verify", "web"]).success();
    exec(&world, &id, "mkdir /tmp/old; echo again > /tmp/old/g; mv /tmp/d /tmp/e").success();
    world.ring(&["snapshot", "web"]).success();
    world.delete(&id);
    // Each of them is a start, also from its packs alone.
    world.pack();
    for layer in layers(&world, 4) {
        fs::remove_dir_all(world.store().join("layers").join(layer.as_str().unwrap())).unwrap();
    }
    let shown = "cd /tmp; find . -type f | sort | while read f; do echo $f $(cat $f); done";
    let states = [
        (2, "./d/1 1\n./d/2 2\n./d/3 3\n./f 0\n./old/f old\n"),
        (3, "./d/1 1\n./d/3 new\n./f 0\n"),
        (4, "./e/1 1\n./e/3 new\n./f 0\n./old/g again\n"),
    ];
    for (seq, expected) in states {
        assert_eq!(world.run_in(&format!("web@{seq}"), shown).success().stdout(), expected, "@{seq}");
    }
    world.ring(&["verify", "web"]).success();
}

#[test]
fn a_snapshot_over_one_that_cannot_be_found_any_more_is_a_whole_one() {
    let world = World::new("whole");
    let id = world.writer_in("web", "one");
    world.ring(&["snapshot", "web"]).success();
    let run = world.ring_file("web", "ring.json")["run"].as_str().unwrap().to_owned();
    let known = world.store().join("runs").join(run).join("snapshot.known");
    for (seq, damage) in [(2, &b"{}\n"[..]), (3, b""), (4, b"\n\n\n")] {
        fs::write(&known, damage).unwrap();
        world.append(&id, "more");
        world.ring(&["snapshot", "web"]).success();
        assert_eq!(layers(&world, seq).len(), 1, "after {damage:?}");
    }
    world.append(&id, "last");
    world.ring(&["snapshot", "web"]).success();
    assert_eq!(layers(&world, 5).len(), 2);
    world.delete(&id);
    assert_eq!(world.lines_found("web@5"), "one more more more last");
}

#[test]
fn snapshots_are_made_by_themselves_where_something_changed_until_the_container_ends() {
    let world = World::new("every");
    let rootfs = world.rootfs_text();
    let script = "echo one >> /tmp/f; exec sleep 1000";
    let flags = ["--ring", "web", "--snapshot-every", "1s"];
    world
        .regen(&[&["run", "-d", "--rootfs", &rootfs][..], &flags, &["box", "--", "sh", "-c", script]].concat())
        .success();
    let reached = |seq: u64| world.seqs("web").first().is_some_and(|newest| *newest >= seq);
    eventually("what it wrote is an entry", || reached(1));
    world.await_looks("web");
    assert_eq!(world.seqs("web"), [1], "nothing changed since");
    world.append("box", "two");
    eventually("so is what it wrote later", || reached(2));
    world.await_looks("web");
    assert_eq!(world.seqs("web"), [2, 1]);
    assert_eq!(layers(&world, 2).len(), 2);
    assert!(world.makes_snapshots());
    world.delete("box");
    eventually("who made them has ended", || !world.makes_snapshots());
    assert_eq!(world.lines_found("web"), "one two");
    for bad in ["0s", "", "often"] {
        let run = ["run", "--rootfs", &rootfs, "--ring", "web", "--snapshot-every", bad, "box", "--", "true"];
        world.regen(&run).fails_with(1, "read interval");
    }
}

#[test]
fn a_paused_container_is_copied_and_stays_paused() {
    let world = World::new("paused");
    let id = world.writer_in("web", "one");
    world.regen(&["pause", &id]).success();
    world.ring(&["snapshot", "web"]).success();
    assert_eq!(world.status(&id), "paused");
    world.regen(&["resume", &id]).success();
    world.delete(&id);
}

#[test]
fn a_container_that_waits_for_its_start_is_copied_and_goes_on_to_wait() {
    let world = World::new("created");
    let id = world.fresh_id();
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "echo one > /tmp/f; exec sleep 1000"]);
        spec["annotations"] = json!({"run.regen.ring": "web"});
    });
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    assert_eq!(world.ring_json(&["snapshot", "web"]), Value::Null, "nothing has changed yet");
    let upper = world.store().join("runs").join(world.ring_file("web", "ring.json")["run"].as_str().unwrap());
    fs::write(upper.join("upper/early"), "early").unwrap();
    assert_eq!(world.ring_json(&["snapshot", "web"])["seq"], 1);
    assert_eq!(world.status(&id), "created");
    world.regen(&["start", &id]).success();
    eventually("it writes", || exec(&world, &id, "cat /tmp/f").code == 0);
    assert_eq!(world.ring_json(&["snapshot", "web"])["seq"], 2);
    world.delete(&id);
    assert_eq!(world.lines_found("web@2"), "one");
}

#[test]
fn a_container_that_has_ended_has_no_snapshot() {
    let world = World::new("ended");
    let id = world.writer_in("web", "one");
    world.regen(&["kill", &id, "KILL"]).success();
    eventually("it has ended", || world.status(&id) == "stopped");
    let before = world.ring_file("web", "ring.json");
    world.ring(&["snapshot", "web"]).fails_with(1, "no container runs on it");
    assert_eq!(world.ring_file("web", "ring.json"), before);
    world.delete(&id);
    assert_eq!(world.lines_found("web"), "one");
}

/// A file system in user space whose server never answers: who looks at it sleeps, and nothing but its end wakes them.
struct Silent {
    point: PathBuf,
    _server: File,
}

impl Silent {
    fn mount(point: PathBuf) -> Self {
        fs::create_dir(&point).unwrap();
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("regen"), &point, Some("fuse"), MsFlags::MS_NOSUID, Some(options.as_str())).unwrap();
        Self { point, _server: server }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        umount2(&self.point, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_container_of_which_a_process_does_not_stop_goes_on_without_a_snapshot() {
    let world = World::new("restless");
    let id = world.writer_in("web", "one");
    let before = world.ring_file("web", "ring.json");
    let runs = || fs::read_dir(world.store().join("runs")).unwrap().count();
    assert_eq!(runs(), 1);
    let silent = Silent::mount(world.base().join("silent"));
    let (file, _) = freezer(&world, &id);
    // Who waits for the server can be frozen all the same, but holds the directory's lock, and who waits for that cannot.
    let is = |pid: u32, what: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(what);
    let mut first = Command::new("stat").arg(silent.point.join("x")).stderr(Stdio::null()).spawn().unwrap();
    eventually("it waits for the server", || is(first.id(), "(stat) D"));
    let script = r#"echo $$ > "$1/cgroup.procs"; exec mkdir "$2/y""#;
    let mut asleep = Command::new("sh");
    asleep.args(["-c", script, "sh"]).arg(file.parent().unwrap()).arg(&silent.point);
    let mut asleep = asleep.stderr(Stdio::null()).spawn().unwrap();
    eventually("it sleeps", || is(asleep.id(), "(mkdir) D"));
    world.ring(&["snapshot", "web"]).fails_with(1, "a process does not stop; all of them go on");
    assert_eq!(world.status(&id), "running");
    assert_eq!(world.ring_file("web", "ring.json"), before);
    assert_eq!(runs(), 1, "the copy is gone");
    world.append(&id, "two");
    drop(silent);
    assert!(!first.wait().unwrap().success() && !asleep.wait().unwrap().success());
    world.ring(&["snapshot", "web"]).success();
    world.delete(&id);
    assert_eq!(world.lines_found("web@1"), "one two");
}

/// Programs that write all the while: each writes the next number into one file after another, the last of which is never
/// ahead of the first.
#[test]
fn a_snapshot_is_one_moment_of_programs_that_go_on_writing() {
    let world = World::new("moment");
    let script = "mkdir /tmp/d; for i in $(seq 4000); do echo > /tmp/d/$i; done
        write() { n=0; while :; do n=$((n+1)); for f in 1 2 3; do echo $n > /tmp/$1$f.new; mv /tmp/$1$f.new /tmp/$1$f; done
            rm -f /tmp/d/$n; echo $n >> /tmp/d/log$1; done; }
        write a & write b & exec sleep 1000";
    let id = world.detach_in("web", script);
    eventually("it writes", || exec(&world, &id, "cat /tmp/d/loga /tmp/d/logb").code == 0);
    for _ in 0..6 {
        world.ring(&["snapshot", "web"]).success();
    }
    world.delete(&id);
    let numbers = |text: &str| -> Vec<u64> { text.split_ascii_whitespace().map(|n| n.parse().unwrap()).collect() };
    let mut latest = 0;
    for seq in 1..=6 {
        let show = "cd /tmp; for w in a b; do echo $(cat ${w}1 ${w}2 ${w}3; tail -n 1 d/log$w); done; ls d | sort -n | grep -v log | head -n 1";
        let shown = world.run_in(&format!("web@{seq}"), show);
        let lines: Vec<_> = shown.success().stdout().lines().map(numbers).collect();
        let [a, b, rest @ ..] = &lines[..] else { panic!("{lines:?}") };
        for line in [a, b] {
            let [one, two, three, logged] = line[..] else { panic!("{line:?}") };
            let in_order = one >= two && two >= three && three >= logged && one <= logged + 1;
            assert!(in_order, "@{seq}: {lines:?}");
            latest = latest.max(one);
        }
        // Each has removed the files up to its number, if any are left.
        assert!(rest.iter().all(|first| first[0] > a[3].max(b[3])), "@{seq}: {lines:?}");
    }
    assert!(latest > 3, "they wrote");
}

/// Where a container's freezer is, and the word for standing still.
fn freezer(world: &World, id: &str) -> (PathBuf, &'static str) {
    let pid = world.pid(id);
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let legacy = table.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path));
    match legacy {
        Some(path) => (PathBuf::from(format!("/sys/fs/cgroup/freezer{path}/freezer.state")), "FROZEN"),
        None => (cgroup_of(pid).join("cgroup.freeze"), "1"),
    }
}

#[test]
fn a_container_goes_on_by_itself_if_whoever_froze_it_is_killed() {
    let world = World::new("waker");
    let id = world.writer_in("web", "one");
    let (file, _) = freezer(&world, &id);
    let before = world.ring_file("web", "ring.json");
    let command = world.command(&["ring", "snapshot", "web"]);
    // It looks there whether the container is paused, which is two reads, freezes it, and is killed as it looks again.
    let looked_at = if file.ends_with("cgroup.freeze") { file.with_file_name("cgroup.events") } else { file };
    let mut strace = Command::new("strace");
    strace
        .args(["-o", "/dev/null", "-e", "trace=read", "-e", "inject=read:signal=SIGKILL:when=3", "-P"])
        .arg(looked_at);
    strace.arg(command.get_program()).args(command.get_args());
    assert_eq!(world.finish(strace).code, 1009, "it is killed");
    eventually("it goes on", || world.status(&id) == "running");
    eventually("the ring is as before", || world.ring_file("web", "ring.json") == before);
    world.append(&id, "two");
    world.ring(&["snapshot", "web"]).success();
    world.delete(&id);
    assert_eq!(world.lines_found("web@1"), "one two");
}

#[test]
fn the_next_command_lets_a_container_go_on_that_was_frozen_by_the_dead() {
    for verb in [&["ring", "verify"][..], &["ring", "recover"], &["ring", "pin", "web@1"]] {
        let world = World::new(&format!("thaw-{}", verb[1]));
        world.run_in("web", "echo zero > /tmp/f").success();
        let id = world.writer_in("web", "one");
        world.pack();
        let (file, word) = freezer(&world, &id);
        world.edit_ring_file("web", "ring.json", |ring| ring["frozen"] = ring["run"].clone());
        fs::write(&file, word).unwrap();
        eventually("it stands still", || world.status(&id) == "paused");
        world.regen(verb).success();
        eventually("it goes on", || world.status(&id) == "running");
        assert!(world.ring_file("web", "ring.json").get("frozen").is_none());
        world.delete(&id);
        assert_eq!(world.lines_found("web"), "zero one");
    }
}
