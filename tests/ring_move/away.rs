//! What becomes of a move while etcd is away, or while the destination stands still.

use std::env;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::eventually;
use crate::scene::{Scene, Stay};

impl Scene {
    fn is_over(&self, id: &str) -> bool {
        let shown = self.site.regen(0, &["op", "show", id, "--json"]);
        let shown: Value = serde_json::from_str(shown.stdout()).unwrap_or_default();
        shown["state"].as_str().is_some_and(|state| !["queued", "running"].contains(&state))
    }

    /// A ring that has enough in it to be seen on its way, and its move to the other node.
    fn set_out(&self) -> String {
        self.run(0, "a", "head -c 20000000 /dev/urandom > /tmp/much; echo 1 > /tmp/f").success();
        self.ring(0, &["pack"]).success();
        self.send(0, "a", 1).unwrap()
    }
}

#[test]
fn a_move_that_etcd_deserts_ends_with_one_owner_when_it_is_back() {
    let scene = Scene::new("deserted");
    let id = scene.set_out();
    eventually("it is marked", || scene.stay(0, "a") == Stay::Not);
    for member in [1, 2] {
        scene.site.pause_member(member);
    }
    eventually("all is fetched, or it is given up", || {
        scene.homes("a");
        scene.ring_file(1, "a").is_some() || scene.stay(0, "a") == Stay::Home
    });
    // So that it comes to the key, or to the end of somebody's patience.
    std::thread::sleep(Duration::from_secs(3));
    for member in [1, 2] {
        scene.site.resume_member(member);
    }
    eventually("it is over", || {
        scene.homes("a");
        scene.is_over(&id)
    });
    let ended = scene.operation(0, &id);
    println!("{}: {}", ended["state"], ended["error"]);
    scene.await_nodes();
    // Whatever it came to.
    eventually("it is there", || scene.travel(0, "a", &["--to", "n1"]).code == 0);
    assert_eq!((scene.homes("a"), scene.found(1, "a")), (vec![1], "1".to_owned()));
}

/// It takes more than a minute until the source gives the destination up, so this is done only with `REGEN_OCI_FAULT_ALL`.
#[test]
fn a_destination_that_stood_still_comes_too_late() {
    if env::var_os("REGEN_OCI_FAULT_ALL").is_none() {
        return;
    }
    let scene = Scene::new("late");
    let id = scene.set_out();
    eventually("it is on its way", || scene.ring_file(1, "a").is_some());
    scene.site.signal(1, Signal::SIGSTOP);
    assert_eq!(scene.homes("a"), [0; 0], "it was stopped too late");
    let begun = Instant::now();
    while !scene.is_over(&id) && begun.elapsed().as_secs() < 200 {
        std::thread::sleep(Duration::from_millis(500));
    }
    let ended = scene.operation(0, &id);
    assert_eq!((scene.homes("a"), &ended["state"]), (vec![0], &Value::from("failed")), "{ended}");
    scene.grow(0, "a", "2");
    scene.site.signal(1, Signal::SIGCONT);
    eventually("it gives up", || scene.ring_file(1, "a").is_none());
    assert_eq!((scene.homes("a"), scene.found(0, "a")), (vec![0], "1 2".to_owned()));
    eventually("it may be asked again", || scene.travel(0, "a", &["--to", "n1"]).code == 0);
    assert_eq!(scene.found(1, "a"), "1 2");
}

#[test]
fn a_move_that_is_cancelled_while_the_destination_is_dead_leaves_nothing_there() {
    let scene = Scene::new("cancelled");
    let id = scene.set_out();
    eventually("it is on its way", || scene.ring_file(1, "a").is_some());
    scene.site.end(1, Signal::SIGKILL);
    assert_eq!(scene.homes("a"), [0; 0], "it was killed too late");
    scene.site.regen(0, &["op", "cancel", &id]).success();
    eventually("it is over", || scene.is_over(&id));
    let ended = scene.operation(0, &id);
    assert_ne!(ended["state"], "succeeded", "{ended}");
    assert_eq!(scene.homes("a"), [0], "{ended}");
    scene.grow(0, "a", "2");
    scene.start(1);
    eventually("what is half there goes", || scene.ring_file(1, "a").is_none());
    assert_eq!((scene.homes("a"), scene.found(0, "a")), (vec![0], "1 2".to_owned()));
}
