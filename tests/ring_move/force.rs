//! Rings that are taken from a node that cannot be asked.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::eventually;
use crate::harness::site::Cut;
use crate::scene::{PLAIN, Scene};

fn knows_its_loss(scene: &Scene, fork: &str) {
    eventually("the old node knows", || {
        scene.ring_file(0, "a").unwrap()["elsewhere"]["to"] == "n1" && scene.ring_file(0, fork).is_some()
    });
    eventually("it is not told again", || scene.owner("a").unwrap()["without"].is_null());
}

#[test]
fn a_container_whose_node_was_cut_off_goes_on_in_a_fork() {
    let scene = Scene::new("cut");
    scene.grow(0, "a", "1");
    scene.ring(0, &["push", "a", &scene.reference("a"), PLAIN]).success();
    scene.grow(0, "a", "2");
    let id = scene.writer(0, "a", "3");
    scene.site.cut(0, Cut::Silence);
    // What is written while etcd looks for another leader may be lost.
    let travel = |more: &[&str]| scene.travel(1, "a", more);
    eventually("it is refused", || travel(&["--from", "n0", "--to", "n1"]).stderr().contains("node 'n0'"));
    eventually("so is this", || travel(&["--to", "n1", "--force"]).stderr().contains("say so: '--from NODE'"));
    eventually("it is taken", || travel(&["--from", "n0", "--to", "n1", "--force"]).code == 0);
    assert_eq!(scene.found(1, "a"), "1");
    let owner = scene.owner("a").unwrap();
    assert_eq!((&owner["node"], &owner["moves"]), (&json!("n1"), &json!(2)), "{owner}");
    assert_eq!(owner["without"], json!([{"node": "n0", "last_seq": 1}]));
    // It does not know yet, and goes on.
    scene.site.regen(0, &["exec", &id, "sh", "-c", "echo 4 >> /tmp/f"]).success();
    scene.site.heal();
    knows_its_loss(&scene, "a-forked-2");
    assert!(
        scene.site.log(0).contains("what it has beyond goes on in ring 'root/a-forked-2'"),
        "{}",
        scene.site.log(0)
    );
    let listed = scene.site.json(0, &["ring", "ls", "--json"]);
    let fork = listed.as_array().unwrap().iter().find(|ring| ring["name"] == "a-forked-2").unwrap().clone();
    assert_eq!(fork["in_use_by"], id.as_str(), "{listed}");
    scene.site.regen(0, &["exec", &id, "sh", "-c", "echo 5 >> /tmp/f"]).success();
    scene.site.regen(0, &["delete", "--force", &id]).success();
    assert_eq!(scene.found(0, "a-forked-2"), "1 2 3 4 5");
    scene.run(0, "a", "true").fails_with(1, "it moved to node 'n1'");
    assert_eq!(scene.found(1, "a"), "1");
}

#[test]
fn a_node_that_was_dead_learns_at_its_start_what_it_has_lost() {
    let scene = Scene::new("dead");
    scene.grow(0, "a", "1");
    scene.ring(0, &["push", "a", &scene.reference("a"), PLAIN]).success();
    scene.site.end(0, Signal::SIGKILL);
    scene.grow(0, "a", "2");
    scene.travel(1, "a", &["--from", "n0", "--to", "n1"]).fails_with(1, "node 'n0'");
    let force = ["--from", "n0", "--to", "n1", "--force"];
    scene.travel(1, "a", &force).success();
    // Again: it is there.
    scene.travel(1, "a", &force).success();
    scene.grow(1, "a", "there");
    scene.start(0);
    knows_its_loss(&scene, "a-forked-2");
    assert_eq!((scene.found(0, "a-forked-2"), scene.found(1, "a")), ("1 2".to_owned(), "1 there".to_owned()));
    scene.await_nodes();
    // And it may come back, over what stayed behind.
    scene.ring(1, &["move", "a", "--to", "n0", PLAIN]).success();
    assert_eq!(scene.found(0, "a"), "1 there");
}
