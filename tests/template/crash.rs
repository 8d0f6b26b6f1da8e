//! A template's processes are killed, at any time: nothing is left but what the next keeper takes away.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regen::template::job::Job;
use regen::template::message::{Answer, Command, Phase};

use crate::harness::template::{Cloned, Kept, words};
use crate::harness::{World, eventually};
use crate::{ended, native};

fn murder(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// The containers of a world.
fn containers(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.root()).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with(['@', '.'])).collect();
    names.sort();
    names
}

/// The workers of a keeper.
fn workers(kept: &Kept) -> Vec<i32> {
    let own = kept.child.id();
    let text = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    let children = text.split_ascii_whitespace().map(|pid| pid.parse().unwrap());
    let is_worker = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("template-worker")
    };
    children.filter(is_worker).collect()
}

#[test]
fn after_a_killed_keeper_the_next_one_takes_away_what_it_left_and_clones_go_on() {
    let world = World::new("killed");
    let mut order = native(&world, "c", &[]);
    let mut kept = world.keep_template(&order);
    kept.await_sandboxes(2);
    let (own, id) = (world.id("own"), world.id("template-x-1"));
    let stays = kept.clone_of(Some(&id), &["/program", "sleep"]);
    let goes = kept.clone_of(None, &["/program", "sleep"]);
    let template = kept.status().process.unwrap();
    let bystander = world.sleeper("own");
    kept.kill();
    eventually("the program is gone", || !template.is_alive().unwrap());
    assert_eq!(world.status(&id), "running");
    assert!(containers(&world).iter().any(|name| name.contains("-box-")), "{:?}", containers(&world));
    order.generation = 2;
    let next = world.keep_template(&order);
    next.await_sandboxes(2);
    eventually("the left are gone", || !containers(&world).iter().any(|name| name.contains("-c-1")));
    assert_eq!((world.status(&id).as_str(), world.status(&bystander).as_str()), ("running", "running"));
    assert_eq!(next.clone_of(None, &["/program", "say", "x"]).end(), ended("exit 0", "x\n"));
    assert_eq!(goes.end(), ended("", ""), "nobody could tell");
    world.delete(&id);
    assert_eq!(stays.end().status, "");
    world.delete(&own);
    next.finish();
}

#[test]
fn what_a_killed_keeper_left_can_be_deleted_by_hand() {
    let world = World::new("byhand");
    let mut kept = world.keep_template(&native(&world, "c", &[]));
    kept.await_sandboxes(2);
    kept.kill();
    let left = containers(&world);
    assert!(left.len() >= 3, "{left:?}");
    left.iter().for_each(|id| world.delete(id));
}

#[test]
fn a_keeper_that_is_killed_at_any_moment_leaves_what_the_next_one_clears() {
    let world = World::new("moments");
    let mut order = native(&world, "c", &[]);
    for turn in 0..12_u64 {
        order.generation = 10 + turn;
        let mut kept = world.begin_keeping(&order);
        if turn % 2 == 0 {
            kept.outcome().unwrap();
            std::thread::scope(|scope| {
                let requests = scope.spawn(|| {
                    let job = Job { args: words(&["/program", "say", "x"]), ..Job::default() };
                    let taken = |cloned: Cloned| matches!(cloned.answer, Answer::Taken { .. });
                    while kept.try_request(None, &job, |_| {}, None).is_ok_and(taken) {}
                });
                std::thread::sleep(Duration::from_millis(30 * turn));
                murder(i32::try_from(kept.child.id()).unwrap());
                requests.join().unwrap();
            });
        } else {
            std::thread::sleep(Duration::from_millis(8 * turn));
        }
        kept.kill();
    }
    order.generation = 100;
    let kept = world.keep_template(&order);
    eventually("all of the others is gone", || containers(&world).iter().all(|name| name.contains("-c-100")));
    let names = fs::read_dir(kept.directory()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let foreign: Vec<_> = names.filter(|name| name.contains('-') && !name.ends_with("-100")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    kept.finish();
}

#[test]
fn a_template_whose_program_is_killed_says_so_and_ends_when_its_clones_have() {
    let world = World::new("program");
    let kept = world.keep_template(&native(&world, "c", &[]));
    kept.await_sandboxes(2);
    let watcher = kept.controller();
    watcher.tell(Command::Watch).unwrap();
    let (id, sleeper) = (world.id("kept"), kept.clone_of(None, &["/program", "sleep"]));
    let stays = kept.clone_of(Some(&id), &["/program", "sleep"]);
    murder(kept.status().process.unwrap().pid);
    eventually("it retires", || kept.status().phase == Phase::Retiring);
    let status = kept.status();
    assert!(status.reason.unwrap().contains("its program has ended by signal 9"));
    assert!(!kept.directory().join("socket").exists());
    assert_eq!(status.attended, 1);
    let (_, pid) = sleeper.taken();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(sleeper);
    assert!(Kept::last_words(&watcher).unwrap().contains("by signal 9"));
    kept.gone();
    assert_eq!(world.status(&id), "running");
    world.delete(&id);
    drop(stays);
}

#[test]
fn a_template_whose_container_is_deleted_ends() {
    let world = World::new("deleted");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let own = kept.status().container;
    world.delete(own.as_str());
    kept.gone();
}

#[test]
fn a_sandbox_that_is_deleted_is_replaced() {
    let world = World::new("replaced");
    let kept = world.keep_template(&native(&world, "c", &[]));
    kept.await_sandboxes(2);
    for id in containers(&world).iter().filter(|name| name.contains("-box-")) {
        world.delete(id);
    }
    assert_eq!(kept.clone_of(None, &["/program", "say", "x"]).end(), ended("exit 0", "x\n"));
    kept.await_sandboxes(2);
    kept.finish();
}

#[test]
fn workers_that_are_killed_are_replaced_and_no_request_is_lost() {
    let world = World::new("workers");
    let mut order = native(&world, "c", &[]);
    order.definition.pool = 1;
    let kept = world.keep_template(&order);
    kept.await_sandboxes(1);
    std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let answers = (0..40).map(|_| kept.clone_of(None, &["/program", "say", "x"]));
            answers
                .filter(|cloned| matches!(cloned.answer, Answer::Taken { .. }))
                .map(|cloned| cloned.end())
                .collect::<Vec<_>>()
        });
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(60));
            workers(&kept).into_iter().take(1).for_each(murder);
        }
        let ends = requests.join().unwrap();
        assert!(ends.len() > 20 && ends.iter().all(|end| *end == ended("exit 0", "x\n")), "{ends:?}");
    });
    assert_eq!(kept.clone_of(None, &["/program", "say", "y"]).end(), ended("exit 0", "y\n"));
    kept.await_sandboxes(1);
    kept.finish();
}
