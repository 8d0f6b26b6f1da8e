//! `ctr run --runc-binary regen`.

use std::fs;
use std::process::Command;

use crate::daemon::Containerd;
use crate::harness::{World, eventually};

/// Runs until it is asked to stop, and says when that is possible.
const SERVICE: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";

#[test]
fn ctr_runs_a_container_and_tells_its_exit_code() {
    let world = World::new("ct");
    let containerd = Containerd::new(&world);
    let run = containerd.run(&["--rm"], "a", &["sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((run.code(5).stdout(), run.stderr()), ("out\n", "err\n"));
    let missing = containerd.run(&["--rm"], "b", &["nonesuch"]);
    assert!(missing.code(1).stderr().contains("executable file not found in $PATH"), "{missing:?}");
    // What could not be started leaves nothing that would be in the way of another try.
    containerd.run(&["--rm"], "b", &["true"]).success();
}

#[test]
fn ctr_enters_signals_measures_and_removes_a_container() {
    let world = World::new("cx");
    let containerd = Containerd::new(&world);
    containerd.run(&["--detach"], "a", &["sh", "-c", SERVICE]).success();
    // Of a short command `ctr` may be too late for what it prints, under any runtime.
    containerd
        .ctr(&["tasks", "exec", "--exec-id", "e", "a", "sh", "-c", "grep -q trap /proc/1/cmdline && exit 3"])
        .code(3);
    let metrics = containerd.ctr(&["tasks", "metrics", "a"]);
    assert!(metrics.success().stdout().contains("memory.usage_in_bytes"), "{metrics:?}");
    let refused = containerd.ctr(&["tasks", "rm", "a"]);
    assert_ne!(refused.code, 0, "a running task was removed");
    containerd.ctr(&["tasks", "kill", "a"]).success();
    let stopped = || containerd.ctr(&["tasks", "ls"]).stdout().contains("STOPPED");
    eventually("the task ended", stopped);
    let removed = containerd.ctr(&["tasks", "rm", "a"]);
    assert!(removed.success().stderr().contains("exit code 7"), "{removed:?}");
    containerd.ctr(&["containers", "rm", "a"]).success();
}

#[test]
fn ctr_pauses_and_lists_the_processes_of_a_container() {
    let world = World::new("cp");
    let containerd = Containerd::new(&world);
    containerd.run(&["--detach"], "a", &["sh", "-c", SERVICE]).success();
    let shown = |state: &str| containerd.ctr(&["tasks", "ls"]).success().stdout().contains(state);
    containerd.ctr(&["tasks", "pause", "a"]).success();
    assert!(shown("PAUSED"));
    containerd.ctr(&["tasks", "resume", "a"]).success();
    assert!(shown("RUNNING"));
    let processes = containerd.ctr(&["tasks", "ps", "a"]);
    assert!(processes.success().stdout().lines().count() >= 2, "{processes:?}");
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "--all", "a"]).success();
    eventually("the task ended", || shown("STOPPED"));
    let removed = containerd.ctr(&["tasks", "rm", "a"]);
    assert!(removed.success().stderr().contains("exit code 137"), "{removed:?}");
}

#[test]
fn ctr_gives_a_container_a_terminal() {
    let world = World::new("cy");
    let containerd = Containerd::new(&world);
    // `ctr` wants a terminal itself.
    let on_terminal = |command: &Command| {
        let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).map(quoted).collect();
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
        world.finish(terminal)
    };
    let run = on_terminal(&containerd.run_command(&["--rm", "--tty"], "a", &["tty"]));
    assert!(run.success().stdout().contains("/dev/pts/0"), "{run:?}");
    containerd.run(&["--detach"], "b", &["sh", "-c", SERVICE]).success();
    let exec = ["tasks", "exec", "--tty", "--exec-id", "e", "b", "sh", "-c", "test $(tty) = /dev/pts/0 && exit 4"];
    on_terminal(&containerd.ctr_command(&exec)).code(4);
}

fn quoted(word: &std::ffi::OsStr) -> String {
    format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"))
}

#[test]
fn a_ring_outlives_the_containers_of_ctr() {
    let world = World::new("cr");
    let containerd = Containerd::new(&world);
    let alice = ["--rm", "--annotation", "run.regen.ring=alice"];
    containerd.run(&alice, "a", &["sh", "-c", "echo hi >/etc/motd; rm /bin/ls"]).success();
    let read = containerd.run(&alice, "b", &["sh", "-c", "cat /etc/motd; test ! -e /bin/ls"]);
    assert_eq!(read.success().stdout(), "hi\n");
    containerd.run(&["--rm"], "c", &["test", "-e", "/etc/motd"]).code(1);
    assert_eq!(world.seqs("alice"), [1], "a run that changed nothing adds no entry");
    containerd.run(&alice, "d", &["sh", "-c", "echo bad >/etc/motd; exit 1"]).code(1);
    world.ring(&["rollback", "alice", "--to", "@1"]).success();
    assert_eq!(containerd.run(&alice, "e", &["cat", "/etc/motd"]).success().stdout(), "hi\n");
    let refused = containerd.run(&["--rm", "--annotation", "run.regen.rign=alice"], "f", &["true"]);
    assert!(refused.code(1).stderr().contains("run.regen.rign"), "{refused:?}");
}

#[test]
fn volumes_of_ctr_belong_to_the_ring_if_an_annotation_says_so() {
    let world = World::new("cv");
    let containerd = Containerd::new(&world);
    let sources = ["one", "two"].map(|name| world.base().join(name));
    for source in &sources {
        fs::create_dir(source).unwrap();
        fs::write(source.join("f"), "source\n").unwrap();
    }
    let [one, two] = sources.each_ref().map(|source| source.display());
    let mounts = [(one, "/data"), (two, "/more")];
    let [one, two] = mounts.map(|(source, place)| format!("type=bind,src={source},dst={place},options=rbind:rw"));
    let ring = ["--rm", "--annotation", "run.regen.ring=alice"];
    let volumes = ["--annotation", "run.regen.ring.volumes=/data,/more", "--mount", &one, "--mount", &two];
    let flags = [&ring[..], &volumes].concat();
    let script = "cat /data/f /more/f; echo mine >/data/f; rm /more/f; echo new >/more/g; echo root >/etc/motd";
    assert_eq!(containerd.run(&flags, "a", &["sh", "-c", script]).success().stdout(), "source\nsource\n");
    let look = ["sh", "-c", "cat /data/f /more/* /etc/motd"];
    assert_eq!(containerd.run(&flags, "b", &look).success().stdout(), "mine\nnew\nroot\n");
    assert_eq!(world.seqs("alice"), [1]);
    let refused = containerd.run(&ring, "c", &["true"]);
    assert!(refused.code(1).stderr().contains("a volume that this container has not"), "{refused:?}");
    world.ring(&["rollback", "alice", "--to", "@base"]).success();
    assert_eq!(containerd.run(&flags, "d", &["cat", "/data/f", "/more/f"]).success().stdout(), "source\nsource\n");
    for source in &sources {
        assert_eq!(fs::read_to_string(source.join("f")).unwrap(), "source\n");
    }
}

#[test]
fn snapshots_of_a_container_of_ctr_are_made_by_themselves_until_it_ends() {
    let world = World::new("ck");
    let containerd = Containerd::new(&world);
    let every = ["--annotation", "run.regen.ring=alice", "--annotation", "run.regen.ring.snapshot-every=1s"];
    let script = "echo one >/etc/motd; while :; do sleep 0.05; done";
    containerd.run(&[&every[..], &["--detach"]].concat(), "a", &["sh", "-c", script]).success();
    let has = |text: &str| world.ring(&["cat", "alice", "/etc/motd"]).stdout() == text;
    eventually("what it wrote is an entry", || has("one\n"));
    let before = world.seqs("alice");
    world.await_looks("alice");
    assert_eq!(world.seqs("alice"), before, "nothing has changed since");
    let write = ["tasks", "exec", "--exec-id", "e", "a", "sh", "-c", "echo two >>/etc/motd"];
    containerd.ctr(&write).success();
    eventually("so is what it wrote later", || has("one\ntwo\n"));
    let before = world.seqs("alice");
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "a"]).success();
    eventually("the task ended", || containerd.ctr(&["tasks", "ls"]).stdout().contains("STOPPED"));
    eventually("who made them has ended", || !world.makes_snapshots());
    containerd.ctr(&["tasks", "rm", "a"]);
    containerd.ctr(&["containers", "rm", "a"]).success();
    // What it ended as is an entry of its own.
    let log = world.log("alice");
    let (end, others) = log.split_first().unwrap();
    assert!(end["reason"] == "exit" && others.iter().all(|entry| entry["reason"] == "snapshot"), "{log:?}");
    assert_eq!(world.seqs("alice")[1..], before);
    let next = ["--rm", "--annotation", "run.regen.ring=alice"];
    assert_eq!(containerd.run(&next, "b", &["cat", "/etc/motd"]).success().stdout(), "one\ntwo\n");
}
