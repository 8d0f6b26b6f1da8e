//! Rings go to a registry and come from it: to and from Debian's, with skopeo as the other reader and writer, and from
//! one that lies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod auto;
#[path = "../harness/mod.rs"]
mod harness;
mod hostile;
mod liar;
mod line;
mod resume;
mod travel;
mod trouble;

use std::fs;
use std::process::Command;

use harness::image_registry::{Registry, Setup};
use harness::{Output, World};
use serde_json::{Value, json};

const PLAIN: &str = "--tls-verify=false";

/// Appends a line to the file that tells the state, in so many runs.
fn grow(world: &World, ring: &str, lines: std::ops::RangeInclusive<u32>) {
    for line in lines {
        world.run_in(ring, &format!("echo {line} >> /tmp/f")).success();
    }
}

/// What the next run in a ring finds; the base is another directory than the one that it was made over.
fn found(world: &World, ring: &str) -> String {
    let output = world.run_with(&["--ring", ring, "--rebase"], "cat /tmp/f");
    output.success().stdout().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn push(world: &World, target: &str, reference: &str) -> Value {
    world.ring_json(&["push", target, reference, PLAIN])
}

fn pull(world: &World, reference: &str, ring: &str) -> Value {
    world.ring_json(&["pull", reference, ring, PLAIN])
}

/// What of an entry has to be the same everywhere.
fn facts(world: &World, ring: &str) -> Vec<Value> {
    let fields = ["seq", "id", "parent", "created", "reason", "exit_code", "base", "pinned", "next", "side", "digest"];
    let facts = |entry: &Value| fields.iter().map(|field| ((*field).to_owned(), entry[*field].clone())).collect();
    world.log(ring).iter().map(|entry| Value::Object(facts(entry))).collect()
}

fn skopeo(arguments: &[&str]) -> Output {
    let world = World::new("skopeo");
    let mut command = Command::new("skopeo");
    command.args(arguments);
    world.finish(command)
}

#[test]
fn a_pushed_ring_is_pulled_with_all_that_it_knows() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    grow(&source, "a", 1..=3);
    source.run_in("a", "echo x > /tmp/x; exit 3").code(3);
    source.pack();
    source.ring(&["pin", "a@1"]).success();
    source.ring(&["set", "a", "--depth", "5"]).success();
    source.ring(&["rollback", "a", "--to", "@3"]).success();
    let reference = registry.reference("team/a");
    let pushed = push(&source, "a", &reference);
    assert_eq!((&pushed["sent_blobs"], &pushed["present_blobs"]), (&json!(8), &json!(0)), "{pushed}");
    let again = push(&source, "a", &reference);
    assert_eq!((&again["sent_blobs"], &again["present_blobs"]), (&json!(0), &json!(8)), "{again}");
    let pulled = pull(&target, &reference, "b");
    assert_eq!((&pulled["entries"], &pulled["fetched_blobs"]), (&json!([1, 2, 3, 4]), &json!(4)), "{pulled}");
    target.pack();
    assert_eq!(facts(&target, "b"), facts(&source, "a"));
    assert_eq!(target.ring_file("b", "ring.json")["depth"], 5);
    target.ring(&["verify"]).success();
    let again = pull(&target, &reference, "b");
    assert_eq!((&again["entries"], &again["fetched_blobs"]), (&json!([]), &json!(0)), "{again}");
    assert_eq!(found(&target, "b"), "1 2 3");
    target.run_in("b", "true").fails_with(1, "it was made over dir:");
}

#[test]
fn only_what_is_new_goes_over() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    let reference = registry.reference("a");
    grow(&source, "a", 1..=2);
    push(&source, "a", &reference);
    pull(&target, &reference, "a");
    grow(&source, "a", 3..=3);
    let pushed = push(&source, "a", &reference);
    assert_eq!(pushed["sent_blobs"], 2, "a layer and a config: {pushed}");
    let pulled = pull(&target, &reference, "a");
    assert_eq!((&pulled["entries"], &pulled["fetched_blobs"]), (&json!([3]), &json!(1)), "{pulled}");
    assert_eq!(target.layers_of("a@3")[..2], target.layers_of("a@2"));
    assert_eq!(found(&target, "a"), "1 2 3");
}

#[test]
fn a_ring_that_has_diverged_takes_nothing() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    let reference = registry.reference("a");
    grow(&source, "a", 1..=1);
    push(&source, "a", &reference);
    pull(&target, &reference, "a");
    grow(&source, "a", 2..=2);
    push(&source, "a", &reference);
    target.run_with(&["--ring", "a", "--rebase"], "echo other >> /tmp/f").success();
    target.pack();
    let before = facts(&target, "a");
    target.ring(&["pull", &reference, "a", PLAIN]).fails_with(1, "the two have diverged: @2 is another entry there");
    assert_eq!(facts(&target, "a"), before);
    pull(&target, &reference, "b");
    assert_eq!((found(&target, "a"), found(&target, "b")), ("1 other".into(), "1 2".into()));
}

#[test]
fn a_ring_that_is_in_use_takes_nothing() {
    let (world, registry) = (World::new("busy"), Registry::start(Setup::Open));
    let id = world.writer_in("a", "1");
    world.ring(&["snapshot", "a"]).success();
    let reference = registry.reference("a");
    push(&world, "a", &reference);
    world.ring(&["pull", &reference, "a", PLAIN]).fails_with(1, &format!("in use by container '{id}'"));
    world.delete(&id);
}

#[test]
fn what_was_evicted_does_not_come_back() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    let reference = registry.reference("a");
    grow(&source, "a", 1..=3);
    push(&source, "a", &reference);
    source.ring(&["set", "a", "--depth", "1"]).success();
    push(&source, "a", &reference);
    assert_eq!(pull(&target, &reference, "a")["entries"], json!([3]));
    assert_eq!(found(&target, "a"), "1 2 3");
}

#[test]
fn a_ring_that_was_rolled_back_to_its_base_starts_there() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    grow(&source, "a", 1..=1);
    source.ring(&["rollback", "a", "--to", "@base"]).success();
    push(&source, "a", &registry.reference("a"));
    pull(&target, &registry.reference("a"), "a");
    target.run_in("a", "test ! -e /tmp/f").success();
}

#[test]
fn one_entry_goes_under_the_tag_that_is_given() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    grow(&source, "a", 1..=3);
    let tagged = registry.reference("a:good");
    assert_eq!(push(&source, "a@2", &tagged)["entries"][0]["tag"], "good");
    assert_eq!(pull(&target, &tagged, "a")["entries"], json!([2]));
    assert_eq!(found(&target, "a"), "1 2");
    assert_eq!(push(&source, "a", &registry.reference("b:newest"))["entries"][0]["seq"], 3);
    source.ring(&["push", "a@base", &tagged, PLAIN]).fails_with(2, "the base is no entry");
    source.ring(&["push", "a@2", &registry.reference("a:regen-ring"), PLAIN]).fails_with(2, "for the ring itself");
    target.ring(&["pull", &registry.reference("a:absent"), "c", PLAIN]).fails_with(1, "look for tag 'absent'");
    target.ring(&["pull", &registry.reference("absent"), "c", PLAIN]).fails_with(1, "there is no ring");
    assert_eq!(target.ring_json(&["ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn skopeo_reads_what_was_pushed() {
    let (world, registry) = (World::new("from"), Registry::start(Setup::Open));
    grow(&world, "a", 1..=2);
    let reference = registry.reference("a");
    let entries = push(&world, "a", &reference)["entries"].clone();
    let tag = entries[1]["tag"].as_str().unwrap();
    let one = format!("{reference}:{tag}");
    let seen: Value = serde_json::from_str(skopeo(&["inspect", PLAIN, &one]).success().stdout()).unwrap();
    assert_eq!((&seen["Digest"], seen["Layers"].as_array().unwrap().len()), (&entries[1]["digest"], 2));
    let copy = world.base().join("copy");
    let to = format!("oci:{}:x", copy.display());
    skopeo(&["copy", "--src-tls-verify=false", &one, &to]).success();
    let index: Value = serde_json::from_slice(&fs::read(copy.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], entries[1]["digest"]);
}

#[test]
fn a_ring_that_skopeo_copied_entry_by_entry_is_pulled() {
    let (source, target, registry) = (World::new("from"), World::new("to"), Registry::start(Setup::Open));
    grow(&source, "a", 1..=3);
    source.pack();
    let reference = registry.reference("a");
    for entry in source.log("a") {
        let id = entry["id"].as_str().unwrap();
        let from = format!("oci:{}:{id}", source.ring_directory("a").display());
        skopeo(&["copy", "--dest-tls-verify=false", &from, &format!("{reference}:{id}")]).success();
    }
    skopeo(&[
        "copy",
        PLAIN.replace("--", "--src-").as_str(),
        "--dest-tls-verify=false",
        &format!("{reference}:{}", source.log("a")[0]["id"].as_str().unwrap()),
        &format!("{reference}:latest"),
    ])
    .success();
    assert_eq!(pull(&target, &reference, "a")["entries"], json!([1, 2, 3]));
    target.pack();
    assert_eq!(facts(&target, "a"), facts(&source, "a"));
    assert_eq!(found(&target, "a"), "1 2 3");
}

#[test]
fn credentials_are_those_that_login_wrote() {
    let (world, registry) = (World::new("auth"), Registry::start(Setup::Guarded));
    grow(&world, "a", 1..=1);
    let (reference, file) = (registry.reference("a"), world.base().join("auth.json"));
    let attempt = |auth: &str| {
        fs::write(&file, json!({"auths": {registry.host(): {"auth": auth}}}).to_string()).unwrap();
        let mut command = world.command(&["ring", "push", "a", &reference, PLAIN]);
        command.env("REGISTRY_AUTH_FILE", &file);
        world.finish(command)
    };
    attempt("dTp3cm9uZw==").fails_with(1, "does not accept the credentials");
    attempt("?").fails_with(1, "is no base64");
    attempt("dTpw").success();
    let mut without = world.command(&["ring", "push", "a", &reference, PLAIN]);
    without.env("REGISTRY_AUTH_FILE", "").env("HOME", world.base()).env("XDG_RUNTIME_DIR", world.base());
    world.finish(without).fails_with(1, "log in: 'podman login");
}

#[test]
fn a_registry_has_to_prove_who_it_is() {
    let (world, registry) = (World::new("tls"), Registry::start(Setup::Tls));
    grow(&world, "a", 1..=1);
    let reference = registry.reference("a");
    world.ring(&["push", "a", &reference]).fails_with(1, "invalid peer certificate");
    let mut trusting = world.command(&["ring", "push", "a", &reference]);
    trusting.env("SSL_CERT_FILE", registry.certificate());
    world.finish(trusting).success();
    world.ring(&["push", "a", &reference, PLAIN]).success();
    let plain = Registry::start(Setup::Open);
    world.ring(&["push", "a", &plain.reference("a")]).fails_with(1, "give '--tls-verify=false'");
}

#[test]
fn a_reference_that_cannot_be_used_is_refused() {
    let (world, registry) = (World::new("bad"), Registry::start(Setup::Open));
    grow(&world, "a", 1..=1);
    world.ring(&["push", "a", "oci:/x"]).fails_with(1, "docker://HOST[:PORT]/REPOSITORY[:TAG]");
    world.ring(&["push", "none", &registry.reference("a"), PLAIN]).fails_with(1, "there is no such ring");
    world.ring(&["push", "a", "docker://127.0.0.1:1/a", PLAIN]).fails_with(1, "reach registry '127.0.0.1:1'");
    let silent = world.ring(&["pull", "docker://127.0.0.1:1/a", "b", PLAIN]);
    silent.fails_with(1, "reach registry '127.0.0.1:1'").fails_with(1, "see whether it runs there");
}
