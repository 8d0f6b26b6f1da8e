//! Entries leave the store as images that everybody reads, and come back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod base;
#[path = "../harness/mod.rs"]
mod harness;
mod hostile;
mod life;
#[allow(dead_code, reason = "only a part of it is used here")]
#[path = "../engine_podman/podman.rs"]
mod podman;
mod refusal;
#[path = "../tree/mod.rs"]
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Output, World};
use serde_json::Value;
use tree::Node;
use tree::overlay::Overlay;

const PLAIN: &str = "--tls-verify=false";

/// What a run does that has one of everything: what is new, changed and gone; links, holes, owners, attributes.
const CHANGES: &str = "mkdir -p /srv/d/e; echo new > /srv/d/f; ln /srv/d/f /srv/d/hard; ln -s f /srv/d/soft; \
    chmod 2750 /srv/d; chown 70000:70001 /srv/d/f; rm /bin/vi; rm -r /root; mkdir /root; echo real > /root/.wh.x; \
    dd if=/dev/zero of=/srv/sparse bs=1 count=1 seek=1000000 2>&-; mkfifo /srv/pipe; touch -d @12345 /srv/d/e";

/// A ring of two entries; the newer one builds on the older.
fn grow(world: &World, flags: &[&str]) {
    world.run_with(&[&["--ring", "a"], flags].concat(), CHANGES).success();
    world
        .run_with(&[&["--ring", "a"], flags].concat(), "rm /srv/d/hard; echo more >> /srv/d/f; echo 2 > /srv/two")
        .success();
    world.pack();
}

/// Runs a tool to its end.
fn tool(program: &str, arguments: &[&str]) -> Output {
    let world = World::new("tool");
    let mut command = Command::new(program);
    command.args(arguments);
    world.finish(command)
}

/// What an entry shows over a base, uppermost directory first.
fn shown(world: &World, target: &str, base: &[&Path]) -> BTreeMap<PathBuf, Node> {
    let layers: Vec<_> = world.layers_of(target).iter().rev().map(|layer| world.layer(layer)).collect();
    let lowers: Vec<_> = layers.iter().map(PathBuf::as_path).chain(base.iter().copied()).collect();
    let mut nodes = tree::read(&Overlay::read_only(&lowers).root());
    // The root of an overlay is that of its uppermost layer, and has its times.
    nodes.remove(Path::new(""));
    nodes
}

/// As tools see it that know neither holes nor the names that regen gives to files that look like whiteouts; and, where
/// several layers touch a directory, whose time it has then is each tool's own affair.
fn plainly(mut nodes: BTreeMap<PathBuf, Node>) -> BTreeMap<PathBuf, Node> {
    nodes.retain(|path, node| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        node.kind != 'w' && !name.starts_with(".wh.") && !name.starts_with(".regen.wh-")
    });
    for node in nodes.values_mut() {
        node.has_holes = false;
        node.attributes.remove(b"trusted.overlay.opaque".as_slice());
        if node.kind == 'd' {
            node.mtime = (0, 0);
        }
    }
    nodes
}

fn export(world: &World, arguments: &[&str]) -> Value {
    world.ring_json(&[&["export"], arguments].concat())
}

fn import(world: &World, from: &str, ring: &str) -> Value {
    world.ring_json(&["import", from, ring, PLAIN])
}

fn inspect(reference: &str) -> Value {
    serde_json::from_str(tool("skopeo", &["inspect", PLAIN, reference]).success().stdout()).unwrap()
}
