//! Moves that are done, and moves that are refused.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::scene::{PLAIN, Scene};

#[test]
fn a_ring_goes_to_another_node_and_comes_back() {
    let scene = Scene::new("there");
    (1..=3).for_each(|line| scene.grow(0, "a", &line.to_string()));
    scene.ring(0, &["pin", "a@1"]).success();
    scene.ring(0, &["set", "a", "--depth", "5"]).success();
    scene.ring(0, &["rollback", "a", "--to", "@2"]).success();
    scene.ring(0, &["pack"]).success();
    let before = scene.facts(0, "a");
    let value: Value =
        serde_json::from_str(scene.travel(0, "a", &["--to", "n1", "--json"]).success().stdout()).unwrap();
    let told = json!({"ring": "root/a", "from": "n0", "to": "n1", "moves": 1, "entries": 3, "last_seq": 3});
    assert_eq!(value, told);
    assert_eq!(scene.facts(1, "a"), before);
    assert_eq!(scene.ring_file(1, "a").unwrap()["depth"], 5);
    let owner = scene.owner("a").unwrap();
    assert_eq!((&owner["node"], &owner["moves"]), (&json!("n1"), &json!(1)), "{owner}");
    scene.run(0, "a", "true").fails_with(1, "it moved to node 'n1'");
    assert_eq!(scene.found(1, "a"), "1 2");
    scene.grow(1, "a", "there");
    let operation = &scene.site.json(1, &["op", "ls", "--kind", "ring-move", "--json"])[0];
    assert_eq!((&operation["state"], &operation["node"]), (&json!("succeeded"), &json!("n0")), "{operation}");
    // Nobody says by which registry, and it is asked of the node that does not have it.
    scene
        .ring(0, &["move", "a", "--to", "n0", PLAIN])
        .fails_with(1, "node 'n1' has it: 'regen ring move root/a --from n1 --to n0'");
    scene.ring(0, &["move", "a", "--from", "n1", "--to", "n0", PLAIN]).success();
    assert_eq!(scene.found(0, "a"), "1 2 there");
    scene.run(1, "a", "true").fails_with(1, "it moved to node 'n0'");
    // Again: it is there.
    scene.ring(0, &["move", "a", "--to", "n0", PLAIN]).success();
    assert_eq!(scene.owner("a").unwrap()["moves"], 2);
    for index in 0..2 {
        scene.ring(index, &["verify"]).success();
    }
}

#[test]
fn a_move_that_is_refused_leaves_the_ring_where_it_was() {
    let scene = Scene::new("refused");
    scene.grow(0, "a", "1");
    let refused = |more: &[&str], words: &str| {
        scene.travel(0, "a", more).fails_with(1, words);
        assert_eq!(scene.homes("a"), [0], "{more:?}");
    };
    refused(&["--to", "n7"], "there is no such node");
    scene.ring(0, &["move", "a", "--to", "n1"]).fails_with(1, "--via");
    scene.ring(0, &["move", "nobodys", "--to", "n1"]).fails_with(1, "there is no such ring on this node");
    scene
        .ring(0, &["move", "a", "--to", "n1", "--via", &format!("{}:x", scene.reference("a"))])
        .fails_with(1, "tag 'x'");
    let id = scene.writer(0, "a", "2");
    refused(&["--to", "n1"], &format!("in use by container '{id}'"));
    assert_eq!(scene.owner("a"), None, "nothing was begun");
    scene.site.regen(0, &["delete", "--force", &id]).success();
    scene.site.regen(0, &["node", "drain", "n1"]).success();
    refused(&["--to", "n1"], "that node is drained");
    scene.site.regen(0, &["node", "drain", "n1", "--undo"]).success();
    scene.grow(1, "a", "other");
    scene.travel(0, "a", &["--to", "n1"]).fails_with(1, "this node has a ring of that name");
    assert_eq!((scene.found(0, "a"), scene.found(1, "a")), ("1 2".to_owned(), "other".to_owned()));
    scene.ring(1, &["rm", "a"]).success();
    // Its first step is done, and undone: nobody listens at that port.
    let nowhere = format!("docker://{}:1/a", scene.site.host(2).address);
    scene.ring(0, &["move", "a", "--to", "n1", "--via", &nowhere, PLAIN]).fails_with(1, "reach registry");
    assert_eq!(scene.homes("a"), [0]);
    let failed = &scene.site.json(0, &["op", "ls", "--kind", "ring-move", "--json"])[0];
    assert_eq!(failed["state"], "failed", "{failed}");
    scene.grow(0, "a", "3");
    scene.site.end(1, Signal::SIGTERM);
    refused(&["--to", "n1"], "node 'n1'");
    scene.start(1);
    eventually("it is there again", || scene.travel(0, "a", &["--to", "n1"]).code == 0);
    assert_eq!(scene.found(1, "a"), "1 2 3");
}

#[test]
fn a_ring_that_was_removed_stays_so_and_its_name_may_be_used_again() {
    let scene = Scene::new("removed");
    scene.grow(0, "a", "old");
    scene.travel(0, "a", &["--to", "n1"]).success();
    scene.ring(1, &["rm", "a"]).success();
    scene.grow(1, "a", "new");
    scene.travel(1, "a", &["--to", "n0"]).success();
    assert_eq!((scene.found(0, "a"), scene.homes("a")), ("new".to_owned(), vec![0]));
    assert_eq!(scene.owner("a").unwrap()["moves"], 2);
    scene.ring(0, &["rm", "a"]).success();
    scene.crash(0);
    eventually("it is forgotten", || scene.owner("a").is_none());
    assert_eq!((scene.ring_file(0, "a"), scene.homes("a")), (None, vec![]));
}
