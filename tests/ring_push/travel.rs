//! Rings that move from one node to another: one owner at any time, and nothing lost on the way.

use serde_json::{Value, json};

use super::{PLAIN, found, grow};
use crate::harness::World;
use crate::harness::image_registry::{Registry, Setup};

/// Two nodes and the registry between them.
fn nodes(name: &str) -> (World, World, Registry, String) {
    let registry = Registry::start(Setup::Open);
    let reference = registry.reference("a");
    (World::new(&format!("{name}-here")), World::new(&format!("{name}-there")), registry, reference)
}

fn give(world: &World, to: &str, reference: &str) -> Value {
    world.ring_json(&["give", "a", "--to", to, reference, PLAIN])
}

fn take(world: &World, given: &Value, reference: &str) -> crate::harness::Output {
    let (index, moves) = (given["index"].as_str().unwrap(), given["moves"].to_string());
    world.ring(&["take", reference, "a", "--index", index, "--moves", &moves, PLAIN])
}

#[test]
fn a_ring_that_moved_is_run_by_its_new_owner_alone() {
    let (here, there, _registry, reference) = nodes("move");
    grow(&here, "a", 1..=2);
    here.ring(&["pin", "a@1"]).success();
    here.ring(&["set", "a", "--depth", "3"]).success();
    let given = give(&here, "there", &reference);
    here.run_in("a", "true").fails_with(1, "start from ring 'root/a': it moved to node 'there' at ");
    here.ring(&["ls"]).success();
    assert_eq!(here.ring_json(&["ls"])[0]["elsewhere"]["to"], "there");
    take(&there, &given, &reference).success();
    assert_eq!(found(&there, "a"), "1 2");
    let state = there.ring_file("a", "ring.json");
    assert_eq!(
        (&state["depth"], &state["entries"][0]["pinned"], &state["moves"]),
        (&json!(3), &json!(true), &json!(1))
    );
    assert!(state["elsewhere"].is_null() && there.ring(&["verify"]).code == 0);
}

#[test]
fn a_ring_comes_home_whatever_has_left_it_meanwhile() {
    let (here, there, _registry, reference) = nodes("home");
    grow(&here, "a", 1..=2);
    take(&there, &give(&here, "there", &reference), &reference).success();
    for line in 3..=6 {
        there.run_with(&["--ring", "a", "--rebase"], &format!("echo {line} >> /tmp/f")).success();
    }
    there.ring(&["set", "a", "--depth", "2"]).success();
    let given = give(&there, "here", &reference);
    assert_eq!(given["moves"], 2);
    take(&here, &given, &reference).success();
    here.pack();
    assert_eq!(here.seqs("a"), there.seqs("a"));
    assert_eq!(found(&here, "a"), "1 2 3 4 5 6");
    here.ring(&["verify"]).success();
    there.run_in("a", "true").fails_with(1, "it moved to node 'here'");
}

#[test]
fn a_move_that_is_over_is_not_done_again() {
    let (here, there, _registry, reference) = nodes("late");
    grow(&here, "a", 1..=1);
    let first = give(&here, "there", &reference);
    take(&here, &first, &reference).fails_with(1, "this node itself gave it to 'there'");
    take(&there, &first, &reference).success();
    there.run_with(&["--ring", "a", "--rebase"], "echo 2 >> /tmp/f").success();
    take(&there, &first, &reference).success();
    assert_eq!(found(&there, "a"), "1 2");
    let second = give(&there, "here", &reference);
    take(&there, &first, &reference).fails_with(1, "move 1 is over");
    take(&here, &second, &reference).success();
    take(&there, &first, &reference).fails_with(1, "move 1 is over");
    there.run_in("a", "true").fails_with(1, "it moved to node 'here'");
}

#[test]
fn a_ring_that_is_in_use_is_not_given_away() {
    let (here, _there, _registry, reference) = nodes("busy");
    let id = here.writer_in("a", "1");
    let refused = here.ring(&["give", "a", "--to", "there", &reference, PLAIN]);
    refused.fails_with(1, &format!("in use by container '{id}'"));
    here.delete(&id);
    assert_eq!(here.lines_found("a"), "1");
}

#[test]
fn a_move_that_is_called_off_leaves_the_ring_where_it_was() {
    let (here, _there, _registry, reference) = nodes("off");
    grow(&here, "a", 1..=1);
    // Nobody is there to be pushed to; the mark stays, because nobody knows whether it arrived.
    here.ring(&["give", "a", "--to", "there", "docker://127.0.0.1:1/a", PLAIN]).fails_with(1, "reach registry");
    here.run_in("a", "true").fails_with(1, "it moved to node 'there'");
    here.ring(&["give", "a", "--to", "other", &reference, PLAIN]).fails_with(1, "it moved to node 'there'");
    here.ring(&["keep", "a", "--to", "other"]).fails_with(1, "it moved to node 'there'");
    here.ring(&["keep", "a", "--to", "there"]).success();
    here.ring(&["keep", "a", "--to", "there"]).success();
    grow(&here, "a", 2..=2);
    assert_eq!(here.lines_found("a"), "1 2");
}

#[test]
fn a_ring_without_entries_moves_too() {
    let (here, there, _registry, reference) = nodes("empty");
    here.run_in("a", "true").success();
    take(&there, &give(&here, "there", &reference), &reference).success();
    assert_eq!(there.ring_json(&["ls"])[0]["entries"], 0);
    there.run_in("a", "echo 1 > /tmp/f").success();
}

#[test]
fn a_container_whose_ring_is_taken_from_it_goes_on_in_a_fork() {
    let (here, there, _registry, reference) = nodes("fork");
    grow(&here, "a", 1..=1);
    let id = here.writer_in("a", "2");
    let given = here.ring_json(&["give", "a", "--to", "there", &reference, PLAIN, "--force"]);
    assert_eq!(given["fork"], json!({"owner": "root", "name": "a-forked-1"}));
    here.append(&id, "3");
    here.ring(&["snapshot", "a-forked-1"]).success();
    here.append(&id, "4");
    here.delete(&id);
    here.pack();
    take(&there, &given, &reference).success();
    assert_eq!((here.lines_found("a-forked-1").as_str(), found(&there, "a").as_str()), ("1 2 3 4", "1"));
    here.ring(&["verify"]).success();
    assert_eq!(here.seqs("a"), [1]);
}

#[test]
fn a_node_that_was_out_of_reach_keeps_what_it_wrote_in_a_fork() {
    let (here, there, _registry, reference) = nodes("cut");
    grow(&here, "a", 1..=2);
    here.ring(&["push", "a", &reference, PLAIN]).success();
    grow(&here, "a", 3..=3);
    let taken = there.ring_json(&["take", &reference, "a", "--force", PLAIN]);
    assert_eq!((&taken["last_seq"], &taken["moves"]), (&json!(2), &json!(1)));
    let disown = || here.ring_json(&["disown", "a", &reference, "--to", "there", "--last-seq", "2", "--moves", "1"]);
    assert_eq!(disown()["fork"]["name"], "a-forked-1");
    assert_eq!(disown()["fork"], Value::Null, "it knows already");
    here.run_in("a", "true").fails_with(1, "it moved to node 'there'");
    assert_eq!((here.lines_found("a-forked-1").as_str(), found(&there, "a").as_str()), ("1 2 3", "1 2"));
    // What is nobody's line any more gives way when the ring comes back.
    there.run_with(&["--ring", "a", "--rebase"], "echo there >> /tmp/f").success();
    take(&here, &give(&there, "here", &reference), &reference).success();
    assert_eq!(found(&here, "a"), "1 2 there");
    here.pack();
    here.ring(&["verify"]).success();
}
