//! What becomes of templates when something dies: the daemon, a keeper, the loaded program, the machine.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::middleware::pid;
use crate::harness::{World, eventually};

#[test]
fn a_daemon_that_ends_or_is_killed_takes_nothing_along() {
    let world = World::new("tpl-daemon");
    let mut daemon = world.daemon();
    let name = daemon.name("py");
    daemon.create(&name, &["--pool", "1"]);
    let function = world.function("f", "def f(event): return event\n");
    let call = || world.invoke(&name, function.to_str().unwrap(), "app:f", &["--event", "1"]);
    let before = daemon.template_show(&name);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        daemon.end(signal);
        assert_eq!(call().success().stdout(), "1\n", "clones need no daemon");
        daemon.start();
        let after = daemon.template_show(&name);
        for field in ["pid", "keeper", "generation", "since", "restarts", "state"] {
            assert_eq!(before[field], after[field], "{field}");
        }
    }
    assert_eq!(daemon.template_show(&name)["clones"], 2);
    kill(Pid::from_raw(daemon.pid()), Signal::SIGHUP).unwrap();
    eventually("it serves again", || daemon.log().matches(" serving ").count() >= 2);
    assert_eq!(daemon.template_show(&name)["pid"], before["pid"]);
}

#[test]
fn a_program_or_a_keeper_that_is_killed_gets_a_successor() {
    let world = World::new("tpl-killed");
    let daemon = world.daemon();
    let name = daemon.name("py");
    daemon.create(&name, &["--pool", "1"]);
    let function = world.function("f", "def f(event): return event\n");
    let mut before = daemon.template_show(&name);
    for (round, victim) in ["pid", "keeper"].into_iter().enumerate() {
        kill(Pid::from_raw(pid(&before, victim)), Signal::SIGKILL).unwrap();
        let after = daemon.await_template(&name, "it is loaded again", |show| {
            show["state"] == "ready" && show["generation"] != before["generation"]
        });
        assert_eq!(after["restarts"], json!(round + 1), "{after:#}");
        assert_ne!(after["pid"], before["pid"]);
        let output = world.invoke(&name, function.to_str().unwrap(), "app:f", &["--event", "1"]);
        assert_eq!(output.success().stdout(), "1\n");
        let old = before["container"].as_str().unwrap();
        eventually("nothing is left of the one before", || !world.state_directory(old).exists());
        before = after;
    }
}

#[test]
fn a_clone_survives_its_keeper() {
    let world = World::new("tpl-orphan");
    let daemon = world.daemon();
    let (name, id) = (daemon.name("py"), world.id("c"));
    daemon.create(&name, &["--pool", "1"]);
    let code = "import time; time.sleep(1000)";
    world.regen(&["clone", "-d", &name, &id, "--", "python3", "-c", code]).success();
    let mut waiting = world.spawn(world.command(&[
        "clone",
        &name,
        &world.id("w"),
        "--",
        "python3",
        "-c",
        "import time; print('up', flush=True); time.sleep(0.5); print('done')",
    ]));
    waiting.wait_for("up");
    let before = daemon.template_show(&name);
    kill(Pid::from_raw(pid(&before, "keeper")), Signal::SIGKILL).unwrap();
    assert_eq!(waiting.finish().success().stdout(), "up\ndone\n");
    daemon.await_template(&name, "it is loaded again", |show| show["state"] == "ready" && show["generation"] == 2);
    assert_eq!(world.status(&id), "running");
    world.delete(&id);
}

#[test]
fn a_template_that_fails_again_and_again_is_tried_less_and_less_often() {
    let world = World::new("tpl-backoff");
    let daemon = world.daemon();
    let name = daemon.name("py");
    let flag = world.base().join("rootfs/broken");
    let code = "import os, sys\nif os.path.exists('/broken'): sys.exit('it is broken')\nsys.argv[1:] = ['--import', 'json']\nimport runpy; runpy.run_module('regen_zygote', run_name='__main__', alter_sys=True)";
    let bundle = world.middleware(|spec| spec["process"]["args"] = json!(["/usr/bin/python3", "-c", code]));
    daemon.template(&["create", &name, "--bundle", bundle.text(), "--pool", "0"]).success();
    std::fs::write(&flag, "").unwrap();
    kill(Pid::from_raw(pid(&daemon.template_show(&name), "pid")), Signal::SIGKILL).unwrap();
    let show = daemon.await_template(&name, "it has failed several times", |show| {
        show["state"] == "failed" && show["generation"].as_u64().unwrap() >= 4
    });
    assert!(
        show["error"].as_str().unwrap().contains("it is broken")
            || show["error"].as_str().unwrap().contains("status 1"),
        "{show:#}"
    );
    assert!(show["retry"].is_string());
    eventually("people are told the same", || {
        let text = daemon.template(&["show", &name]);
        text.stdout().contains("retry  ") && text.stdout().contains("error  ")
    });
    let function = world.function("f", "");
    world
        .invoke(&name, function.to_str().unwrap(), "app:f", &[])
        .fails_with(1, &format!("it is not ready: see 'regen template show {name}'"));
    std::fs::remove_file(&flag).unwrap();
    daemon.await_template(&name, "it is mended", |show| show["state"] == "ready");
}

#[test]
fn what_died_while_nobody_looked_comes_back_also_after_a_reboot() {
    let world = World::new("tpl-boot");
    let mut daemon = world.daemon();
    let name = daemon.name("py");
    daemon.create(&name, &["--pool", "1"]);
    let show = daemon.template_show(&name);
    daemon.end(Signal::SIGKILL);
    kill(Pid::from_raw(pid(&show, "keeper")), Signal::SIGKILL).unwrap();
    daemon.start();
    let show = daemon.await_template(&name, "it is loaded again", |show| show["state"] == "ready");
    assert_eq!(show["generation"], 2);
    // What a reboot does: everything dies, and the state root is empty.
    daemon.end(Signal::SIGKILL);
    kill(Pid::from_raw(pid(&show, "keeper")), Signal::SIGKILL).unwrap();
    for id in world.regen(&["list", "-q"]).stdout().lines() {
        world.delete(id);
    }
    std::fs::remove_dir_all(world.root()).unwrap();
    std::fs::create_dir(world.root()).unwrap();
    daemon.start();
    let show = daemon.await_template(&name, "it is back", |show| show["state"] == "ready");
    assert_eq!(show["generation"], 3);
}

#[test]
fn a_template_that_was_half_made_when_the_daemon_died_is_none() {
    let world = World::new("tpl-half");
    let mut daemon = world.daemon();
    let name = daemon.name("py");
    let bundle = world.middleware(|spec| {
        spec["process"]["args"] = json!(["/usr/bin/python3", "-c", "import time; time.sleep(1000)"])
    });
    let create = world.spawn(world.command(&["template", "create", &name, "--bundle", bundle.text()]));
    eventually("it is loading", || world.state_directory(&format!("template-{name}-1")).exists());
    daemon.end(Signal::SIGKILL);
    create.finish().code(1);
    daemon.start();
    eventually("nothing of it is left", || {
        daemon.templates().is_empty() && world.regen(&["list", "-q"]).stdout().is_empty()
    });
}
