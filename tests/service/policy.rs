//! What happens when an instance ends by itself.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::life::{greeting, load};
use crate::harness::{World, eventually};

/// Ends a process, and waits until it has ended.
pub fn end(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
    eventually("it has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    });
}

#[test]
fn an_instance_that_is_killed_gets_a_successor_and_clients_wait_for_it() {
    let world = World::new("svc-killed");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let (port, first) = (daemon.port(&name), daemon.instance_pid(&name));
    end(first, Signal::SIGKILL);
    // Nobody serves now: who connects waits in the socket, which outlives the instance.
    assert_eq!(greeting(port), "hello");
    let show = daemon.await_state(&name, "serving");
    assert_eq!((&show["restarts"], &show["instance"]), (&json!(1), &json!(format!("{name}-1.0.0-2"))));
    assert_eq!(daemon.port(&name), port);
    daemon.await_rest(&name);
}

#[test]
fn an_instance_that_is_deleted_from_outside_gets_a_successor() {
    let world = World::new("svc-deleted");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    world.delete(&format!("{name}-1.0.0-1"));
    eventually("its successor serves", || daemon.show(&name)["instance"] == format!("{name}-1.0.0-2"));
    assert_eq!(greeting(daemon.port(&name)), "hello");
    daemon.await_rest(&name);
}

#[test]
fn an_instance_whose_keeper_is_killed_is_replaced() {
    let world = World::new("svc-keeper");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let keeper = daemon.show(&name)["instances"][0]["keeper"].as_i64().unwrap();
    end(i32::try_from(keeper).unwrap(), Signal::SIGKILL);
    eventually("its successor serves", || daemon.show(&name)["instance"] == format!("{name}-1.0.0-2"));
    assert_eq!(greeting(daemon.port(&name)), "hello");
    daemon.await_rest(&name);
    assert_eq!(daemon.keepers(), [format!("{name}-1.0.0-2")]);
    assert!(!world.state_directory(&format!("{name}-1.0.0-1")).exists());
}

#[test]
fn policy_no_leaves_a_service_ended_until_somebody_restarts_it() {
    let world = World::new("svc-no");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--restart", "no"]);
    end(daemon.instance_pid(&name), Signal::SIGKILL);
    let show = daemon.await_state(&name, "ended");
    assert_eq!((&show["outcome"]["exit_code"], &show["pid"]), (&json!(137), &json!(null)));
    eventually("nothing of it is left", || daemon.keepers().is_empty());
    daemon.crash();
    assert_eq!(daemon.show(&name)["state"], "ended", "the next daemon leaves it so");
    daemon.service(&["restart", &name]).success();
    assert_eq!(greeting(daemon.port(&name)), "hello");
}

#[test]
fn a_good_end_is_the_end_on_failure_and_none_always() {
    let world = World::new("svc-good");
    let daemon = world.daemon();
    let (failure, always) = (daemon.name("failure"), daemon.name("always"));
    daemon.add(&failure, "1.0.0", &["--restart", "on-failure"]);
    daemon.add(&always, "1.0.0", &["--restart", "always"]);
    for name in [&failure, &always] {
        end(daemon.instance_pid(name), Signal::SIGTERM);
    }
    assert_eq!(daemon.await_state(&failure, "ended")["outcome"]["exit_code"], 0);
    eventually("its successor serves", || {
        let show = daemon.show(&always);
        show["restarts"] == 1 && show["state"] == "serving"
    });
}

#[test]
fn a_service_that_crashes_again_and_again_is_tried_more_and_more_rarely() {
    let world = World::new("svc-loop");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--ready", "none", "--", "/usr/bin/python3", "-c", CRASHING]);
    eventually("it was tried four times", || daemon.show(&name)["restarts"].as_u64() >= Some(4));
    let show = daemon.await_state(&name, "waiting");
    assert!(show["error"].as_str().unwrap().contains("it ended with status 3"), "{show}");
    let log = daemon.log();
    for wait in [100, 200, 400, 800] {
        assert!(log.contains(&format!("its successor is started in {wait} ms")), "{log}");
    }
    // An operator does not have to wait.
    daemon.service(&["rm", &name]).success();
}

/// Comes up, and ends a moment later.
const CRASHING: &str = "import time; time.sleep(0.05); raise SystemExit(3)";

#[test]
fn crashes_under_load_lose_only_what_the_instance_had_in_hand() {
    let world = World::new("svc-storm");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let load = load(daemon.port(&name), &["hello"]);
    for count in 1..4 {
        load.wait_for(200 * count);
        end(daemon.instance_pid(&name), Signal::SIGKILL);
        eventually("its successor serves", || {
            let show = daemon.show(&name);
            show["restarts"] == count && show["state"] == "serving"
        });
    }
    load.wait_for(1000);
    let outcome = load.stop();
    // Connections that it had accepted die with it, one for each client at most; nobody is refused.
    assert!(!outcome.reasons.keys().any(|reason| reason.contains("refused")), "{outcome}");
}
