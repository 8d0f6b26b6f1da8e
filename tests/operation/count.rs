//! What becomes of operations, and of requests to the registry, is counted.

use std::sync::Arc;

use regen::error::Kind as Fault;
use regen::metrics::{Snapshot, page};
use regen::operation::{Kind, Machine};
use regen::registry::{Counted, Registry};
use serde_json::Value;

use super::executor::{Gate, Recorder};
use super::registry_memory::Memory;
use super::{Daemon, LONG, request};

/// No other test here uses this kind: all of them count in one process.
const KIND: Kind = Kind::RingUnpin;

fn told(daemon: &Daemon) -> String {
    page(Snapshot { work: daemon.engine.backlog(), ..Snapshot::default() }).unwrap()
}

#[track_caller]
fn has(page: &str, line: &str) {
    assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
}

#[test]
fn operations_are_counted_by_kind_and_end_and_conflicts_by_kind() {
    let memory = Memory::new(Arc::new(Machine));
    let registry: Arc<dyn Registry> = Arc::new(Counted::new(Arc::new(memory.clone())));
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let daemon = Daemon::new(&registry, "a", recorder.executors());
    let unpin = |ring: &str| request(KIND, vec![format!("a:ring/root/{ring}").parse().unwrap()], Value::Null);
    let holder = daemon.engine.submit(unpin("counted")).unwrap().id;
    gate.wait_for(1);
    assert_eq!(daemon.engine.submit(unpin("counted")).unwrap_err().kind(), Fault::Busy);
    assert_eq!(daemon.engine.submit(request(KIND, Vec::new(), Value::Null)).unwrap_err().kind(), Fault::Usage);
    has(&told(&daemon), "regen_operations{state=\"running\"} 1");
    gate.open();
    daemon.engine.wait(&holder, Some(LONG)).unwrap().unwrap();
    let page = told(&daemon);
    has(&page, "regen_operations{state=\"running\"} 0");
    has(&page, "regen_operations_accepted_total{kind=\"ring-unpin\"} 1");
    has(&page, "regen_operation_conflicts_total{kind=\"ring-unpin\"} 1");
    has(&page, "regen_operation_duration_seconds_count{kind=\"ring-unpin\",state=\"succeeded\"} 1");
    assert!(page.contains("regen_operations_refused_total{reason=\"no-target\"} "), "{page}");
    // Two of them at least: at the beginning and at the end.
    assert!(page.contains("regen_registry_request_duration_seconds_count{call=\"apply\"} "), "{page}");
    memory.leave();
    assert!(daemon.engine.submit(unpin("other")).is_err());
    let page = told(&daemon);
    assert!(page.contains("sort=\"unavailable\"") && page.contains("regen_registry_failures_total{call="), "{page}");
}
