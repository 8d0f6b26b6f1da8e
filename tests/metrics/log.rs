//! The log says what each line is about.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::World;

/// What a line says of a field: itself, or a span that it is in.
fn field<'a>(line: &'a Value, name: &str) -> Option<&'a str> {
    let spans = line["spans"].as_array().into_iter().flatten();
    spans.chain([line]).find_map(|part| part[name].as_str())
}

#[test]
fn every_line_about_a_change_has_its_operation_container_and_request() {
    let world = World::new("metrics-log");
    let log = world.base().join("log");
    let mut daemon = world.daemon();
    daemon.end(Signal::SIGTERM).success();
    let mut command = world.command(&["--log"]);
    command.arg(&log).args(["--log-format", "json", "--debug", "serve"]);
    daemon.start_as(command);
    let name = daemon.name("web");
    let report = daemon.add(&name, "1.0.0", &[]);
    assert_ne!(daemon.service(&["upgrade", &name, "--to", "1.1.0", "--", "false"]).code, 0);
    daemon.service(&["rm", &name]).success();
    let lines: Vec<Value> =
        fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |words: &str| {
        let found = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains(words)));
        found.unwrap_or_else(|| panic!("no line has '{words}': {lines:#?}"))
    };
    let serves = find("serves");
    assert_eq!(field(serves, "operation"), report["change"].as_str());
    assert_eq!(field(serves, "container"), report["instance"].as_str());
    assert_eq!(field(serves, "method"), Some("run.regen.Service.Add"));
    let undone = find("upgrade was undone");
    for name in ["operation", "container", "request"] {
        assert!(field(undone, name).is_some(), "{name}: {undone}");
    }
    assert_ne!(field(undone, "operation"), field(serves, "operation"));
    assert_ne!(field(undone, "request"), field(serves, "request"));
    assert!(field(find("is removed"), "operation").is_some());
    // Each request is told once, with who asked and how long it took.
    let answered: Vec<_> = lines.iter().filter(|line| line["message"] == "answered").collect();
    let of_add: Vec<_> =
        answered.iter().filter(|line| field(line, "method") == Some("run.regen.Service.Add")).collect();
    assert_eq!(of_add.len(), 1);
    assert_eq!((&of_add[0]["peer"], &of_add[0]["outcome"]), (&"user 0".into(), &"ok".into()));
    assert!(of_add[0]["ms"].as_f64().unwrap() > 0.0 && of_add[0]["pid"].is_i64(), "{}", of_add[0]);
    let mut requests: Vec<_> = answered.iter().map(|line| field(line, "request").unwrap()).collect();
    requests.sort_unstable();
    requests.dedup();
    assert_eq!(requests.len(), answered.len(), "two requests have one id");
}

#[test]
fn a_daemon_without_a_file_logs_json_to_standard_error_if_that_was_asked_for() {
    let world = World::new("metrics-log-stderr");
    let mut daemon = world.daemon();
    daemon.end(Signal::SIGTERM).success();
    daemon.start_as(world.command(&["--log-format", "json", "serve"]));
    let log = daemon.log();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"serving".into()));
}
