//! Either daemon is killed at any step of a move, and started again: one node has the ring, with all that is in it, and the
//! operation says which.
//!
//! The seed of the moments is printed; with `REGEN_OCI_FAULT_SEED` they are the same again, and `REGEN_OCI_FAULT_ALL` gives
//! more rounds.

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::{BuildHasher, Hasher};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Running, eventually};
use crate::scene::{Scene, Stay};

/// When somebody is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The source has marked the ring.
    Marked,
    /// The ring's index is in the registry.
    Pushed,
    /// The destination has something of it.
    Arriving,
    /// The destination has it.
    Home,
    /// So long after it was asked for.
    After(Duration),
    /// Before the nth of these system calls of one of the victim's threads.
    Call(&'static str, u64),
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Source,
    Destination,
    Both,
}

/// What strace says then.
const KILLED: &str = "killed by SIGKILL";
/// A file that was written anew gets its name: one step is done, and the next is not begun.
const RENAMES: &str = "rename,renameat,renameat2";
/// All that others see.
const CALLS: &str =
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,fsync,connect,sendto,sendmsg,write";

/// A ring that goes back and forth.
struct Traveller {
    scene: Scene,
    home: usize,
    lines: usize,
}

#[test]
fn whoever_is_killed_at_whatever_step_one_node_has_the_ring() {
    let scene = Scene::new("crash");
    scene.run(0, "a", "head -c 6000000 /dev/urandom > /tmp/much; echo 1 > /tmp/f").success();
    let mut traveller = Traveller { scene, home: 0, lines: 1 };
    for moment in [Moment::Marked, Moment::Pushed, Moment::Arriving, Moment::Home] {
        let _ = traveller.round(moment, Victim::Both);
    }
    for victim in [Victim::Source, Victim::Destination] {
        let mut steps = 0;
        while traveller.round(Moment::Call(RENAMES, steps + 1), victim) == Struck::Yes {
            steps += 1;
        }
        assert!(steps >= 2, "{victim:?} was killed at {steps} steps");
    }
    let seed = env::var("REGEN_OCI_FAULT_SEED").ok().and_then(|text| text.parse().ok());
    let mut seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("REGEN_OCI_FAULT_SEED={seed}");
    let rounds = if env::var_os("REGEN_OCI_FAULT_ALL").is_some() { 100 } else { 5 };
    for round in 0..rounds {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = match round % 3 {
            0 => Moment::After(Duration::from_millis((seed >> 33) % 600)),
            _ => Moment::Call(CALLS, 1 + (seed >> 33) % 60),
        };
        let _ = traveller.round(moment, if round % 2 == 0 { Victim::Source } else { Victim::Destination });
    }
}

/// Whether the victim was killed where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
enum Struck {
    Yes,
    No,
}

impl Traveller {
    /// A move to the other node, while which somebody is killed and started again.
    fn round(&mut self, moment: Moment, victim: Victim) -> Struck {
        let (from, to) = (self.home, 1 - self.home);
        println!("n{from} to n{to}, {victim:?} killed at {moment:?}");
        let asked = Instant::now();
        let before = self.scene.newest(from);
        let struck = self.strike(moment, victim);
        match victim {
            Victim::Source => self.scene.crash(from),
            Victim::Destination => self.scene.crash(to),
            Victim::Both => {
                self.scene.site.end(from, Signal::SIGKILL);
                self.scene.crash(to);
                self.scene.start(from);
            }
        }
        let id = self.scene.newest(from).filter(|id| before.as_ref() != Some(id));
        if let Some(id) = id {
            self.see(&id, asked);
        }
        self.look_and_grow();
        struck
    }

    /// How an operation ends, and that it says the truth.
    fn see(&self, id: &str, asked: Instant) {
        let (from, to) = (self.home, 1 - self.home);
        eventually("the operation is over", || {
            self.scene.homes("a");
            self.is_over(from, id)
        });
        let ended = self.scene.operation(from, id);
        println!("  {} after {:?}: {}", ended["state"], asked.elapsed(), ended["error"]);
        match ended["state"].as_str().unwrap() {
            "succeeded" => assert_eq!(self.scene.homes("a"), [to], "{ended}"),
            "failed" => assert_eq!(self.scene.homes("a"), [from], "{ended}"),
            // What is missing is done when it is asked for again, if not before.
            "unknown" => {
                self.scene.await_nodes();
                let name = format!("n{to}");
                eventually("it is there", || self.scene.travel(from, "a", &["--to", &name]).code == 0);
                assert_eq!(self.scene.homes("a"), [to], "{ended}");
            }
            other => panic!("the operation is {other}"),
        }
    }

    /// Asks for the move, and waits for the moment to kill somebody.
    fn strike(&self, moment: Moment, victim: Victim) -> Struck {
        let (from, to) = (self.home, 1 - self.home);
        // The index of the move before is under the same tag.
        let _ = std::fs::remove_file(self.scene.tag("a"));
        let hand = match moment {
            Moment::Call(calls, number) => {
                Some(self.hand(if victim == Victim::Source { from } else { to }, calls, number))
            }
            Moment::Marked | Moment::Pushed | Moment::Arriving | Moment::Home | Moment::After(_) => None,
        };
        let id = self.scene.send(from, "a", to);
        let (asked, mut looked) = (Instant::now(), Instant::now());
        let mut struck = Struck::No;
        while struck == Struck::No {
            self.scene.homes("a");
            if hand.as_ref().map_or_else(|| self.is_so(moment, asked, to), |hand| hand.complaints().contains(KILLED)) {
                struck = Struck::Yes;
            } else if looked.elapsed() > Duration::from_millis(300) {
                looked = Instant::now();
                // Who was killed while it answered has begun it or not.
                if id.as_ref().is_none_or(|id| self.is_over(from, id)) {
                    break;
                }
            }
        }
        if let Some(hand) = hand {
            // Whom it traced goes on, if it lives.
            hand.signal(Signal::SIGKILL);
            hand.finish();
        }
        struck
    }

    /// All that was ever written is there, on one node.
    fn look_and_grow(&mut self) {
        self.home = self.scene.homes("a")[0];
        let lines: Vec<_> = (1..=self.lines).map(|line| line.to_string()).collect();
        assert_eq!(self.scene.found(self.home, "a"), lines.join(" "));
        assert_ne!(self.scene.run(1 - self.home, "a", "true").code, 0, "it runs on both nodes");
        eventually("nothing is half there", || {
            self.scene.ring_file(1 - self.home, "a").is_none_or(|state| state["elsewhere"]["state"] == "away")
        });
        self.lines += 1;
        self.scene.grow(self.home, "a", &self.lines.to_string());
        self.scene.await_nodes();
    }

    /// Strace, which kills the daemon of a host when one of its threads comes to the nth of some calls.
    fn hand(&self, index: usize, calls: &str, number: u64) -> Running {
        let mut command = Command::new("strace");
        command.args(["-f", "-s", "0", "-p", &self.scene.site.pid(index).to_string(), "-e", "signal=KILL"]);
        command.args(["-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={calls}:signal=SIGKILL:when={number}")]);
        let hand = self.scene.site.world().spawn(command);
        eventually("strace is there", || hand.complaints().contains("attached"));
        hand
    }

    fn is_so(&self, moment: Moment, asked: Instant, to: usize) -> bool {
        match moment {
            Moment::Marked => self.scene.stay(1 - to, "a") == Stay::Not,
            Moment::Pushed => self.scene.tag("a").exists(),
            Moment::Arriving => {
                let blobs = self.scene.site.host(to).store().join("rings/root/a/blobs");
                self.scene.tag("a").exists() && blobs.exists()
            }
            Moment::Home => self.scene.stay(to, "a") == Stay::Home,
            Moment::After(time) => asked.elapsed() >= time,
            Moment::Call(..) => false,
        }
    }

    /// The moment was missed.
    fn is_over(&self, index: usize, id: &str) -> bool {
        let shown = self.scene.site.regen(index, &["op", "show", id, "--json"]);
        let shown: Value = serde_json::from_str(shown.stdout()).unwrap_or_default();
        shown["state"].as_str().is_some_and(|state| !["queued", "running"].contains(&state))
    }
}
