//! What must be so after any crash, once the next commands have run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::World;
use crate::harness::ring::names;

/// Everything that is there and that nothing needs.
pub fn find_litter(world: &World) -> Vec<String> {
    // Workers in the background are given the time to end.
    let mut litter = world.leaks();
    let store = world.store();
    let mut needed_layers = BTreeSet::new();
    for ring in names(&store.join("rings/root")) {
        let directory = store.join("rings/root").join(&ring);
        if ring.starts_with('.') {
            litter.push(format!("half a ring {ring}"));
            continue;
        }
        // A ring whose creation was cut short has no state, and is completed by the next run in it.
        if !directory.join("ring.json").exists() {
            continue;
        }
        let state = read(&directory.join("ring.json"));
        needed_layers.extend(strings(&state["entries"], "layers"));
        let needed = needed_blobs(&directory, &state);
        let unneeded = names(&directory.join("blobs/sha256")).into_iter().filter(|name| !needed.contains(name));
        litter.extend(unneeded.map(|name| format!("blob {name} in ring {ring}")));
    }
    let layers = names(&store.join("layers")).into_iter().filter(|name| !needed_layers.contains(name));
    litter.extend(layers.map(|name| format!("layer {name}")));
    litter.extend(names(&store.join("runs")).into_iter().map(|name| format!("run {name}")));
    litter
        .extend(names(&world.root()).into_iter().filter(|name| name != "@rootfs").map(|name| format!("state {name}")));
    litter.extend(names(&store.join("transfers")).into_iter().map(|name| format!("half a transfer {name}")));
    if store.join("worker.json").exists() {
        litter.push("a worker's report".into());
    }
    litter
}

/// The blobs that the ring's index and its state lead to.
fn needed_blobs(directory: &Path, state: &Value) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let hex = |value: &Value| value.as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    for descriptor in read(&directory.join("index.json"))["manifests"].as_array().unwrap() {
        let digest = hex(&descriptor["digest"]);
        let manifest = read(&directory.join("blobs/sha256").join(&digest));
        needed.insert(hex(&manifest["config"]["digest"]));
        needed.extend(manifest["layers"].as_array().unwrap().iter().map(|layer| hex(&layer["digest"])));
        needed.insert(digest);
    }
    for layer in state["layers"].as_object().unwrap().values() {
        needed.extend(layer["packs"].as_array().unwrap().iter().map(|pack| hex(&pack["digest"])));
    }
    needed
}

fn strings(entries: &Value, field: &str) -> Vec<String> {
    let lists = entries.as_array().unwrap().iter().map(|entry| entry[field].as_array().unwrap());
    lists.flatten().map(|value| value.as_str().unwrap().to_owned()).collect()
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
