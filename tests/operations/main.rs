//! Operations, as an operator has them: the real daemon, the real verbs, and what becomes of both when something dies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod crash;
mod life;
mod page;

use serde_json::{Value, json};

use harness::World;
use harness::daemon::Daemon;

/// A method of the daemon, by its connection; the answer.
#[track_caller]
fn call(world: &World, method: &str, parameters: &Value) -> Value {
    let mut client = regen::control::client::Client::connect(&world.root()).unwrap();
    client.call::<Value>(&format!("run.regen.Operation.{method}"), parameters).unwrap().0
}

/// Tasks that wait so long; the operation's id.
#[track_caller]
fn probe(world: &World, targets: usize, delay_ms: u64) -> String {
    let answer = call(world, "Probe", &json!({"targets": targets, "delay_ms": delay_ms}));
    answer["operation"].as_str().unwrap().to_owned()
}

/// A task on something that others may want, too.
fn claim(world: &World, subject: &str, delay_ms: u64) -> regen::error::Result<String> {
    let mut client = regen::control::client::Client::connect(&world.root())?;
    let submission = json!({"kind": "probe", "targets": [subject], "parameters": {"delay_ms": delay_ms}});
    let (answer, _) = client.call::<Value>("run.regen.Operation.Submit", &submission)?;
    Ok(answer["operation"].as_str().unwrap().to_owned())
}

/// `op show`, parsed.
#[track_caller]
fn show(daemon: &Daemon<'_>, id: &str) -> Value {
    serde_json::from_str(daemon.world().regen(&["op", "show", id, "--json"]).success().stdout()).unwrap()
}

/// `op ls`, parsed.
#[track_caller]
fn list(daemon: &Daemon<'_>, more: &[&str]) -> Vec<Value> {
    let output = daemon.world().regen(&[&["op", "ls", "--json"], more].concat());
    let list: Value = serde_json::from_str(output.success().stdout()).unwrap();
    list.as_array().unwrap().clone()
}
