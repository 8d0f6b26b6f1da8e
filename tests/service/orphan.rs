//! Instances whose keeper is killed: they serve on, until a successor does.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::life::{greeting, load};
use super::policy::end;
use crate::harness::daemon::Daemon;
use crate::harness::port::free_port;
use crate::harness::{World, eventually};

/// Kills the keeper of the instance that serves.
fn kill_keeper(daemon: &Daemon<'_>, name: &str) {
    let keeper = daemon.show(name)["instances"][0]["keeper"].as_i64().unwrap();
    end(i32::try_from(keeper).unwrap(), Signal::SIGKILL);
}

/// Kills an instance and its keeper.
fn kill_both(daemon: &Daemon<'_>, name: &str) {
    let pid = daemon.instance_pid(name);
    let keeper = daemon.show(name)["instances"][0]["keeper"].as_i64().unwrap();
    let keeper = i32::try_from(keeper).unwrap();
    // Stopped, it cannot see the end of its instance before its own.
    kill(Pid::from_raw(keeper), Signal::SIGSTOP).unwrap();
    end(pid, Signal::SIGKILL);
    end(keeper, Signal::SIGKILL);
}

#[test]
fn an_instance_without_a_keeper_serves_until_its_successor_does() {
    let world = World::new("svc-orphan");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let (port, load) = (daemon.port(&name), load(daemon.port(&name), &["hello"]));
    for generation in 2..5 {
        load.wait_for(200 * (generation - 1));
        kill_keeper(&daemon, &name);
        let successor = format!("{name}-1.0.0-{generation}");
        eventually("its successor serves", || daemon.show(&name)["instance"] == successor);
        daemon.await_rest(&name);
        assert_eq!(daemon.keepers(), [successor]);
    }
    load.wait_for(1500);
    let outcome = load.stop();
    assert!(!outcome.reasons.keys().any(|reason| reason.contains("refused")), "{outcome}");
    assert_eq!(daemon.port(&name), port);
    let containers = world.regen(&["list", "--quiet"]);
    assert_eq!(containers.success().stdout().lines().count(), 1, "the others are gone");
}

#[test]
fn an_instance_without_a_keeper_goes_on_as_long_as_no_successor_comes_up() {
    let world = World::new("svc-orphan-alone");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    let server = world.server();
    let (config, broken) = (server.path().join("config.json"), world.base().join("broken"));
    let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let test = format!("! test -e {}", broken.display());
    spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", test]}]});
    std::fs::write(&config, spec.to_string()).unwrap();
    let arguments = ["add", &name, "--version", "1.0.0", "--listen", "auto", "--bundle", server.text()];
    daemon.service(&arguments).success();
    let (port, pid) = (daemon.port(&name), daemon.instance_pid(&name));
    std::fs::write(&broken, "").unwrap();
    kill_keeper(&daemon, &name);
    let failed = |daemon: &Daemon<'_>| {
        let show = daemon.show(&name);
        show["error"].as_str().is_some_and(|error| error.contains("hook")) && show["state"] == "serving"
    };
    eventually("its successor has failed", || failed(&daemon));
    assert_eq!((daemon.instance_pid(&name), greeting(port)), (pid, "hello".to_owned()));
    // The next daemon finds it so.
    daemon.crash();
    eventually("its successor has failed again", || failed(&daemon));
    assert_eq!((daemon.instance_pid(&name), greeting(port)), (pid, "hello".to_owned()));
    daemon.service(&["restart", &name]).fails_with(1, "hook");
    assert_eq!((daemon.instance_pid(&name), greeting(port)), (pid, "hello".to_owned()));
    std::fs::remove_file(&broken).unwrap();
    eventually("its successor serves", || daemon.instance_pid(&name) != pid);
    daemon.await_rest(&name);
    assert_eq!((daemon.port(&name), greeting(port)), (port, "hello".to_owned()));
}

#[test]
fn policy_no_leaves_an_instance_without_a_keeper_as_it_is_and_says_so() {
    let world = World::new("svc-orphan-no");
    let mut daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--restart", "no"]);
    let (port, pid) = (daemon.port(&name), daemon.instance_pid(&name));
    kill_keeper(&daemon, &name);
    let serves = |daemon: &Daemon<'_>| {
        eventually("it is said", || daemon.show(&name)["error"].as_str().is_some_and(|text| text.contains("keeper")));
        let show = daemon.show(&name);
        assert_eq!((&show["state"], &show["pid"], &show["ready"]), (&json!("serving"), &json!(pid), &json!(true)));
        assert_eq!(show["instances"][0]["notes"], json!(["its keeper is gone"]));
        assert_eq!(greeting(port), "hello");
        world.regen(&["resolve", &name]).success();
    };
    serves(&daemon);
    daemon.crash();
    serves(&daemon);
    daemon.service(&["restart", &name, "--wait"]).success();
    assert_ne!(daemon.instance_pid(&name), pid);
    assert_eq!((daemon.port(&name), greeting(port)), (port, "hello".to_owned()));
    assert!(daemon.show(&name)["error"].is_null());
    daemon.await_rest(&name);
    assert!(!world.state_directory(&format!("{name}-1.0.0-1")).exists());
    // Its end is seen, too.
    kill_keeper(&daemon, &name);
    eventually("it is said", || !daemon.show(&name)["error"].is_null());
    end(daemon.instance_pid(&name), Signal::SIGKILL);
    daemon.await_state(&name, "ended");
    eventually("nothing of it is left", || daemon.keepers().is_empty());
}

#[test]
fn an_instance_without_a_keeper_can_be_removed() {
    let world = World::new("svc-orphan-rm");
    let daemon = world.daemon();
    for force in [&[][..], &["--force"]] {
        let name = daemon.name("web");
        daemon.add(&name, "1.0.0", &["--restart", "no"]);
        kill_keeper(&daemon, &name);
        eventually("it is said", || !daemon.show(&name)["error"].is_null());
        daemon.service(&[&["rm", &name], force].concat()).success();
        assert!(daemon.keepers().is_empty() && !world.state_directory(&format!("{name}-1.0.0-1")).exists());
    }
}

#[test]
fn a_successor_comes_up_beside_an_older_instance_that_still_drains() {
    let world = World::new("svc-orphan-drain");
    let daemon = world.daemon();
    let name = daemon.name("web");
    let (port, server) = (free_port("127.0.0.1"), world.server());
    let address = format!("tcp://127.0.0.1:{port}");
    let arguments = ["add", &name, "--version", "1.0.0", "--listen", &address, "--bundle", server.text()];
    daemon.service(&[&arguments[..], &["--drain-timeout", "60s"]].concat()).success();
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (first, second) = (daemon.instance_pid(&name), format!("{name}-1.0.0-2"));
    eventually("it was accepted", || std::fs::read_dir(format!("/proc/{first}/fd")).unwrap().count() > 4);
    daemon.service(&["restart", &name]).success();
    assert_eq!(daemon.show(&name)["instance"], second);
    kill_both(&daemon, &name);
    eventually("its successor serves", || daemon.show(&name)["instance"] == format!("{name}-1.0.0-3"));
    assert_eq!(greeting(port), "hello");
    let log = daemon.log();
    assert!(!log.contains("is in use"), "{log}");
    // The one that drains was not disturbed.
    slow.write_all(b"?").unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut slow, &mut text).unwrap();
    assert_eq!(text, "hello");
    daemon.await_rest(&name);
}

#[test]
fn a_port_that_was_chosen_stays_unless_somebody_else_has_it() {
    let world = World::new("svc-port");
    let daemon = world.daemon();
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &["--restart", "no"]);
    let port = daemon.port(&name);
    for _ in 0..2 {
        kill_both(&daemon, &name);
        daemon.await_state(&name, "ended");
        eventually("nothing of it is left", || daemon.keepers().is_empty());
        daemon.service(&["restart", &name]).success();
        assert_eq!((daemon.port(&name), greeting(port)), (port, "hello".to_owned()));
    }
    kill_both(&daemon, &name);
    daemon.await_state(&name, "ended");
    eventually("nothing of it is left", || daemon.keepers().is_empty());
    let _other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    daemon.service(&["restart", &name]).success();
    assert_ne!(daemon.port(&name), port);
    assert_eq!(greeting(daemon.port(&name)), "hello");
    let (log, line) = (daemon.log(), format!("somebody else has tcp://127.0.0.1:{port} now"));
    assert!(log.contains(&line), "{log}");
}
