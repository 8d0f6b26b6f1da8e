//! Rings go where the configuration says, and nothing else waits for that.

use std::net::TcpListener;

use serde_json::{Value, json};

use super::{found, pull};
use crate::harness::image_registry::{Registry, Setup};
use crate::harness::{Output, World, eventually};

/// A world whose rings go to a prefix of a registry.
struct Sending {
    world: World,
    config: String,
}

impl Sending {
    fn new(name: &str, prefix: &str) -> Self {
        let world = World::new(name);
        let config = world.base().join("config.toml").display().to_string();
        let sending = Self { world, config };
        sending.to(prefix);
        sending
    }

    fn to(&self, prefix: &str) {
        let text = format!("[ring]\nauto-push = \"{prefix}\"\nauto-push-tls-verify = false\n");
        std::fs::write(&self.config, text).unwrap();
    }

    fn regen(&self, arguments: &[&str]) -> Output {
        self.world.regen(&[&["--config", &self.config], arguments].concat())
    }

    fn run(&self, script: &str) -> Output {
        let (rootfs, id) = (self.world.rootfs_text(), self.world.fresh_id());
        self.regen(&["run", "--rootfs", &rootfs, "--ring", "Alice", &id, "--", "sh", "-c", script])
    }

    /// What `ring ls` says of the only ring.
    fn ring(&self) -> Value {
        let output = self.regen(&["ring", "ls", "--json"]);
        serde_json::from_str::<Value>(output.success().stdout()).unwrap()[0].clone()
    }

    fn packed(&self) {
        eventually("it is packed", || self.world.log("Alice").iter().all(|entry| entry["state"] == "packed"));
    }
}

/// Whoever waits for a registry that never comes is told that nothing is to go there.
impl Drop for Sending {
    fn drop(&mut self) {
        std::fs::write(&self.config, "").unwrap();
        let _ = std::fs::OpenOptions::new().write(true).open(self.world.store().join("sender.bell"));
    }
}

/// The ring's repository: registries take no capitals.
const REPOSITORY: &str = "rings/root/alice-3bc51062973c458d";

#[test]
fn each_entry_is_sent_once_it_is_packed() {
    let (target, registry) = (World::new("to"), Registry::start(Setup::Open));
    let sending = Sending::new("auto", &registry.reference("rings"));
    for line in 1..=2 {
        sending.run(&format!("echo {line} >> /tmp/f")).success();
        eventually("it is sent", || sending.ring()["behind"] == 0);
    }
    pull(&target, &registry.reference(REPOSITORY), "b");
    assert_eq!(found(&target, "b"), "1 2");
    // What moves no entry is sent as well.
    sending.world.ring(&["pin", "Alice@1"]).success();
    sending.run("echo 3 >> /tmp/f").success();
    eventually("it is sent", || sending.ring()["behind"] == 0);
    pull(&target, &registry.reference(REPOSITORY), "c");
    let pinned: Vec<_> = target.log("c").iter().map(|entry| entry["pinned"].clone()).collect();
    assert_eq!(pinned, [false, false, true].map(|pinned| json!(pinned)));
}

#[test]
fn a_registry_that_is_down_delays_nothing_and_is_caught_up_with() {
    let registry = Registry::start(Setup::Open);
    let sending = Sending::new("down", "docker://127.0.0.1:1/rings");
    sending.run("echo 1 >> /tmp/f").success();
    sending.packed();
    eventually("it was tried", || sending.ring()["behind_error"].is_string());
    let note = std::fs::read_to_string(sending.world.ring_directory("Alice").join("push.json")).unwrap();
    sending.run("echo 2 >> /tmp/f").success();
    sending.packed();
    assert_eq!(sending.ring()["behind"], 2);
    let text = sending.regen(&["ring", "ls"]);
    let line =
        "Alice: 2 entries are still to be sent: push ring 'root/Alice' to 'docker://127.0.0.1:1/rings/root/alice-";
    assert!(text.success().stdout().contains(line), "{}", text.stdout());
    sending.world.pack();
    let later = std::fs::read_to_string(sending.world.ring_directory("Alice").join("push.json")).unwrap();
    assert_eq!(later, note, "it rests for a while");
    sending.to(&registry.reference("rings"));
    sending.run("echo 3 >> /tmp/f").success();
    eventually("it is sent", || sending.ring()["behind"] == 0);
    assert!(sending.ring().get("behind_error").is_none());
    let target = World::new("to");
    pull(&target, &registry.reference(REPOSITORY), "b");
    assert_eq!(found(&target, "b"), "1 2 3");
}

#[test]
fn a_registry_that_never_answers_keeps_neither_an_exit_nor_the_worker_from_ending() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let prefix = format!("docker://{}/rings", silent.local_addr().unwrap());
    let sending = Sending::new("silent", &prefix);
    sending.run("echo 1 >> /tmp/f").success();
    sending.packed();
    let (asked, _) = silent.accept().unwrap();
    // It is being asked, and will be for long.
    sending.run("echo 2 >> /tmp/f").success();
    sending.packed();
    sending.world.pack();
    assert_eq!(sending.ring()["behind"], 2);
    drop((asked, silent));
    eventually("it was given up", || sending.ring()["behind_error"].is_string());
}

#[test]
fn a_prefix_that_names_no_repository_is_refused_by_whoever_reads_it() {
    let sending = Sending::new("prefix", "registry.example/rings");
    sending.run("true").fails_with(1, "ring.auto-push");
    sending.to("docker://registry.example/Rings");
    sending.run("echo 1 > /tmp/f").success();
    sending.packed();
    let output = sending.regen(&["ring", "ls"]);
    assert!(output.code(1).stdout().contains("read 'ring.auto-push' of the configuration"), "{output:?}");
}

/// The processes that send rings of a store.
fn senders(sending: &Sending) -> Vec<u32> {
    let store = sending.world.store().display().to_string();
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_sender = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&store) && line.trim_end().ends_with(" sender")
    };
    pids.filter(is_sender).collect()
}

/// Has a ring's next try be due now.
fn hurry(sending: &Sending) {
    let file = sending.world.ring_directory("Alice").join("push.json");
    let mut note: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    note["not_before"] = json!("2026-01-01T00:00:00Z");
    std::fs::write(file, note.to_string()).unwrap();
    drop(std::fs::OpenOptions::new().write(true).open(sending.world.store().join("sender.bell")).unwrap());
}

#[test]
fn a_registry_that_comes_later_gets_the_ring_without_another_run() {
    let target = World::new("to");
    let mut registry = Registry::start(Setup::Open);
    let sending = Sending::new("later", &registry.reference("rings"));
    registry.stop();
    sending.run("echo 1 >> /tmp/f").success();
    sending.packed();
    eventually("it was tried", || sending.ring()["behind_error"].is_string());
    let [waiting] = senders(&sending)[..] else { panic!("{:?}", senders(&sending)) };
    // Others who come meanwhile go again.
    sending.run("echo 2 >> /tmp/f").success();
    sending.packed();
    eventually("one waits", || senders(&sending) == [waiting]);
    // It sleeps: nothing but a ring or its time wakes it.
    let sleeps = || std::fs::read_to_string(format!("/proc/{waiting}/stat")).unwrap().contains(") S ");
    eventually("it sleeps", sleeps);
    registry.resume();
    hurry(&sending);
    eventually("it is sent", || sending.ring()["behind"] == 0);
    eventually("nobody waits any more", || senders(&sending).is_empty());
    pull(&target, &registry.reference(REPOSITORY), "b");
    assert_eq!(found(&target, "b"), "1 2");
}

#[test]
fn a_store_that_is_removed_and_a_registry_that_is_named_no_more_end_the_waiting() {
    for remove in [true, false] {
        let sending = Sending::new("end", "docker://127.0.0.1:1/rings");
        sending.run("echo 1 >> /tmp/f").success();
        sending.packed();
        eventually("it was tried", || sending.ring()["behind_error"].is_string());
        sending.world.pack();
        if remove {
            std::fs::remove_dir_all(sending.world.store()).unwrap();
        } else {
            std::fs::write(&sending.config, "").unwrap();
            drop(std::fs::OpenOptions::new().write(true).open(sending.world.store().join("sender.bell")).unwrap());
        }
        eventually("it ends", || senders(&sending).is_empty());
    }
}

#[test]
fn a_sender_that_was_killed_is_followed_by_the_next_workers() {
    let registry = Registry::start(Setup::Open);
    let sending = Sending::new("killed", "docker://127.0.0.1:1/rings");
    sending.run("echo 1 >> /tmp/f").success();
    sending.packed();
    eventually("one waits", || sending.ring()["behind_error"].is_string() && senders(&sending).len() == 1);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(senders(&sending)[0]).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is dead", || senders(&sending).is_empty());
    // The ring rests, but somebody has to wait for its time.
    sending.run("echo 2 >> /tmp/f").success();
    eventually("another one waits", || senders(&sending).len() == 1);
    sending.to(&registry.reference("rings"));
    sending.run("echo 3 >> /tmp/f").success();
    eventually("it is sent", || sending.ring()["behind"] == 0);
}

#[test]
fn what_a_fork_shares_with_its_ring_is_not_sent_again() {
    let (target, registry) = (World::new("to"), Registry::start(Setup::Open));
    let sending = Sending::new("fork", &registry.reference("rings"));
    sending.run("head -c 20000000 /dev/urandom > /noise; echo 1 >> /tmp/f").success();
    eventually("it is sent", || sending.ring()["behind"] == 0);
    sending.world.ring(&["fork", "Alice", "bob"]).success();
    sending.world.run_in("bob", "echo 2 >> /tmp/f").success();
    sending.world.pack();
    let reference = registry.reference("elsewhere/bob");
    let pushed = sending.world.ring_json(&["push", "bob", &reference, "--tls-verify=false"]);
    assert!(pushed["sent_bytes"].as_u64().unwrap() < 1_000_000, "{pushed}");
    // Of another registry nothing can be taken.
    let other = Registry::start(Setup::Open);
    let all = sending.world.ring_json(&["push", "bob", &other.reference("bob"), "--tls-verify=false"]);
    assert!(all["sent_bytes"].as_u64().unwrap() > 20_000_000, "{all}");
    for reference in [reference, other.reference("bob")] {
        pull(&target, &reference, "b");
        assert_eq!(found(&target, "b"), "1 2");
        target.ring(&["rm", "b"]).success();
    }
}
