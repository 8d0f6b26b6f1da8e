//! Operations: what is submitted is done once, what contradicts is kept out, and nothing is lost, whatever dies in between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod count;
mod engine;
mod executor;
mod marker;
#[path = "../harness/registry_memory.rs"]
mod registry_memory;
mod sqlite;
mod trouble;

use std::sync::Arc;
use std::time::Duration;

use regen::operation::{Kind, Machine, Record, Target};
use regen::ops::operation::{Engine, Executors, Limits, Request};
use regen::registry::Registry;
use registry_memory::Memory;
use serde_json::{Value, json};

/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(30);

/// Targets of one node.
fn probes(node: &str, numbers: std::ops::Range<usize>) -> Vec<Target> {
    numbers.map(|number| format!("{node}:probe/{number}").parse().unwrap()).collect()
}

fn probe(targets: Vec<Target>, delay_ms: u64) -> Request {
    request(Kind::Probe, targets, json!({"delay_ms": delay_ms}))
}

fn request(kind: Kind, targets: Vec<Target>, parameters: Value) -> Request {
    Request { kind, targets, parameters, requester: "root".to_owned(), key: None, deadline: None }
}

/// A daemon's engine on a registry, with a store of its own.
struct Daemon {
    engine: Engine,
    store: Arc<tempfile::TempDir>,
}

impl Daemon {
    fn new(registry: &Arc<dyn Registry>, node: &str, executors: Executors) -> Self {
        Self::at(registry, node, executors, Arc::new(tempfile::tempdir().unwrap()))
    }

    fn at(registry: &Arc<dyn Registry>, node: &str, executors: Executors, store: Arc<tempfile::TempDir>) -> Self {
        let registry = Arc::clone(registry);
        let engine = Engine::open(registry, node.parse().unwrap(), store.path(), executors, Limits::default()).unwrap();
        Self { engine, store }
    }

    fn done(&self, request: Request) -> Record {
        let id = self.engine.submit(request).unwrap().id;
        self.engine.wait(&id, Some(LONG)).unwrap().expect("it does not end")
    }
}

fn memory() -> (Memory, Arc<dyn Registry>) {
    let memory = Memory::new(Arc::new(Machine));
    (memory.clone(), Arc::new(memory))
}

fn target(text: &str) -> Vec<Target> {
    vec![text.parse().unwrap()]
}

fn service(kind: Kind) -> Request {
    request(kind, target("a:service/web@1.0.0"), Value::Null)
}
