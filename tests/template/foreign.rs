//! A clone in a container that somebody else has made, as an engine does.

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use regen::runtime::{self, StateRoot};
use regen::sys::process::Identity;
use regen::template::client::Requester;
use regen::template::job::Job;
use regen::template::message::{Answer, Enter, Request, Terminal};
use serde_json::{Value, json};

use crate::harness::template::{Kept, words};
use crate::harness::{World, eventually, process_status};
use crate::native;

const LIMIT: Duration = Duration::from_secs(60);

/// Makes a container and asks for a clone in it; what is answered.
fn enter(world: &World, kept: &Kept, id: &str, arguments: &[&str], change: impl FnOnce(&mut Value)) -> Answer {
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["/program"]);
        change(spec);
    });
    let mut command = world.command(&["create", "--bundle", bundle.text(), id]);
    let path = world.base().join(format!("{id}.log"));
    let log = fs::File::create(&path).unwrap();
    command.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    assert!(command.status().unwrap().success(), "{}", fs::read_to_string(path).unwrap());
    let root = StateRoot::new(world.root());
    let sheltered = runtime::shelter(&root, &id.parse().unwrap()).unwrap();
    let spec = sheltered.spec().unwrap();
    let enter = Enter {
        container: id.parse().unwrap(),
        init: Identity::of(sheltered.init().pid()).unwrap(),
        cgroup: runtime::state(&root, &id.parse().unwrap()).unwrap().cgroup,
        process: spec.process().clone().unwrap(),
        seccomp: spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()),
        terminal: Terminal::None,
    };
    let job = Job { args: words(arguments), env: words(&["PATH=/bin"]), call: None }.seal().unwrap();
    let requester = Requester::connect(&kept.directory(), "test", LIMIT).unwrap();
    let [stdin, stdout, stderr] = sheltered.stdio();
    let files = [job.as_fd(), stdin, stdout, stderr, sheltered.directory()];
    requester.ask(&Request::Enter(Box::new(enter)), &files).unwrap();
    let answer = requester.answer(Some(LIMIT)).unwrap();
    if let Answer::Entered { inner_pid, .. } = answer {
        sheltered.adopt(inner_pid, None).unwrap();
    }
    answer
}

#[test]
fn a_container_of_somebody_elses_becomes_a_clone() {
    let world = World::new("foreign");
    let kept = world.keep_template(&native(&world, "c", &[]));
    for (turn, uid) in [(1, 0), (2, 1000), (3, 1000)] {
        let id = world.id(&format!("e{turn}"));
        let answer = enter(&world, &kept, &id, &["/program", "sleep"], |spec| {
            spec["process"]["user"] = json!({"uid": uid, "gid": uid});
        });
        let Answer::Entered { pid, inner_pid } = answer else { panic!("{answer:?}") };
        assert_eq!((world.status(&id).as_str(), inner_pid > 1), ("running", true));
        assert_eq!(process_status(pid, "Uid"), [uid.to_string().as_str(); 4].join("\t"));
        world.regen(&["kill", &id, "KILL"]).success();
        eventually("it has ended", || world.status(&id) == "stopped");
        world.delete(&id);
    }
    let id = world.id("says");
    enter(&world, &kept, &id, &["/program", "say", "hi"], |_| {});
    eventually("it has ended", || world.status(&id) == "stopped");
    assert_eq!(fs::read_to_string(world.base().join(format!("{id}.log"))).unwrap(), "hi\n");
    world.delete(&id);
    assert_eq!(kept.status().clones, 4);
    kept.finish();
}

#[test]
fn a_container_that_does_not_fit_is_told_so_and_nothing_runs_in_it() {
    let world = World::new("misfit");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let id = world.id("e");
    let answer = enter(&world, &kept, &id, &["/program", "sleep"], |spec| {
        spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH"});
    });
    let Answer::Unfit { reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("scheduler"), "{reason}");
    world.delete(&id);
    assert_eq!(kept.status().clones, 0);
    kept.finish();
}
