//! What happens is counted.

use std::io::Write;
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::World;
use crate::page::{address, await_sum, fetch, scrape, start};

const CHANGES: &str = "regen_service_changes_total";

#[test]
fn changes_of_services_cut_connections_and_resolutions_are_counted() {
    let world = World::new("metrics-services");
    let daemon = start(&world);
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--drain-timeout", "1s"]);
    // It is there when the new instance takes over, and stays.
    let port = daemon.port(&name);
    let mut held = TcpStream::connect(("127.0.0.1", port)).unwrap();
    crate::harness::eventually("the server has the connection", || {
        held.write_all(b"").is_ok() && daemon.service(&["restart", &name]).code == 0
    });
    await_sum(&daemon, "regen_service_cut_connections_total", &[("service", &name)], 1.0);
    assert_ne!(daemon.service(&["upgrade", &name, "--to", "1.1.0", "--", "false"]).code, 0);
    kill(Pid::from_raw(daemon.instance_pid(&name)), Signal::SIGKILL).unwrap();
    daemon.service(&["restart", &name]);
    world.regen(&["resolve", &format!("{name}@^1")]).success();
    assert_ne!(world.regen(&["resolve", &format!("{name}@^9")]).code, 0);
    let page = scrape(&daemon);
    let changes = |change, outcome| page.sum(CHANGES, &[("service", &name), ("change", change), ("outcome", outcome)]);
    assert_eq!((changes("add", "done"), changes("upgrade", "failed")), (1.0, 1.0));
    assert!(changes("restart", "done") >= 1.0);
    assert_eq!(page.sum("regen_services", &[]), 1.0);
    assert_eq!(page.sum("regen_resolves_total", &[("outcome", "found")]), 1.0);
    assert_eq!(page.sum("regen_resolves_total", &[("outcome", "unmatched")]), 1.0);
    assert_eq!(page.sum("regen_calls_total", &[("method", "run.regen.Service.Resolve"), ("outcome", "NotFound")]), 1.0);
    drop(held);
}

#[test]
fn a_service_that_ends_and_comes_back_is_counted() {
    let world = World::new("metrics-recover");
    let daemon = start(&world);
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--restart", "always"]);
    kill(Pid::from_raw(daemon.instance_pid(&name)), Signal::SIGKILL).unwrap();
    await_sum(&daemon, CHANGES, &[("service", &name), ("change", "recover"), ("outcome", "done")], 1.0);
    daemon.await_rest(&name);
    assert_eq!(scrape(&daemon).sum("regen_services", &[("state", "serving")]), 1.0);
}

#[test]
fn packs_and_evictions_of_other_processes_are_counted_and_outlive_the_daemon() {
    let world = World::new("metrics-rings");
    let mut daemon = start(&world);
    for round in 0..4 {
        world.run_in("alice", &format!("echo {round} > /round")).success();
    }
    world.pack();
    world.ring(&["set", "alice", "--depth", "2"]).success();
    // A verb's process has told before it ended, a worker soon after.
    let page = await_sum(&daemon, "regen_pack_duration_seconds_count", &[], 4.0);
    assert_eq!(page.sum("regen_ring_evictions_total", &[]), 2.0);
    assert!(
        page.sum("regen_pack_read_bytes_total", &[]) > 0.0 && page.sum("regen_pack_written_bytes_total", &[]) > 0.0
    );
    assert_eq!(page.sum("regen_ring_scan_complete", &[]), 1.0);
    let page = await_sum(&daemon, "regen_rings", &[("owner", "root")], 1.0);
    assert!(page.sum("regen_ring_bytes", &[("owner", "root")]) > 0.0);
    crate::harness::eventually("the entries that left are gone from the page", || {
        scrape(&daemon).sum("regen_ring_entries", &[("owner", "root")]) == 2.0
    });
    daemon.end(Signal::SIGTERM).success();
    daemon.start_as(world.command(&["serve", "--metrics", "tcp://127.0.0.1:0"]));
    let page = scrape(&daemon);
    assert_eq!(
        (page.sum("regen_ring_evictions_total", &[]), page.sum("regen_pack_duration_seconds_count", &[])),
        (2.0, 4.0)
    );
    // A file that cannot be read is begun anew.
    std::fs::write(world.store().join("metrics.json"), "{").unwrap();
    assert_eq!(scrape(&daemon).sum("regen_ring_evictions_total", &[]), 0.0);
    world.ring(&["set", "alice", "--depth", "1"]).success();
    assert_eq!(scrape(&daemon).sum("regen_ring_evictions_total", &[]), 1.0);
}

#[test]
fn clones_are_counted_over_the_death_of_their_keeper() {
    let world = World::new("metrics-clones");
    let daemon = start(&world);
    let name = daemon.name("py");
    daemon.create(&name, &["--pool", "2"]);
    let clone = |id: &str| {
        let id = world.id(id);
        world.regen(&["clone", &name, &id, "--", "python3", "-c", "pass"]).success();
    };
    let labels: &[(&str, &str)] = &[("template", &name)];
    let count = |page: &crate::page::Page| page.sum("regen_clone_duration_seconds_count", labels);
    clone("a");
    clone("b");
    let page = scrape(&daemon);
    assert_eq!(count(&page), 2.0);
    assert!(page.sum("regen_clone_duration_seconds_sum", labels) > 0.0);
    assert_eq!(page.sum("regen_template_sandboxes_wanted", labels), 2.0);
    assert_eq!(page.sum("regen_templates", &[("state", "ready")]), 1.0);
    let keeper = daemon.templates()[0]["keeper"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(keeper).unwrap()), Signal::SIGKILL).unwrap();
    // While there is none, and with the next one, nothing is lost.
    let mut last = 2.0;
    crate::harness::eventually("the next keeper is ready", || {
        let page = scrape(&daemon);
        assert!(count(&page) >= last, "it went down");
        last = count(&page);
        let now = &daemon.templates()[0];
        now["state"] == "ready" && now["generation"] == 2 && page.sum("regen_template_restarts_total", labels) == 1.0
    });
    clone("c");
    assert_eq!(count(&scrape(&daemon)), 3.0);
}

#[test]
fn calls_and_connections_are_counted_and_what_callers_make_up_is_not_told_apart() {
    let world = World::new("metrics-calls");
    let daemon = start(&world);
    for method in ["run.regen.Control.GetStatus", "run.regen.Control.Nonsense1", "org.example.Nonsense2"] {
        let _ = world.regen(&["call", method]);
    }
    let page = scrape(&daemon);
    let calls = |method, outcome| page.sum("regen_calls_total", &[("method", method), ("outcome", outcome)]);
    assert!(calls("run.regen.Control.GetStatus", "ok") >= 1.0);
    assert_eq!(calls("unknown", "MethodNotFound"), 1.0);
    assert_eq!(calls("unknown", "InterfaceNotFound"), 1.0);
    assert!(!fetch(&address(&daemon)).contains("Nonsense"), "a name that somebody has made up is on the page");
}
