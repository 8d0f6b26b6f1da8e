//! A template is loaded, cloned, and ended.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use regen::template::client::Requester;
use regen::template::job::{Call, Job};
use regen::template::message::{Answer, Cleanup, Command, Phase, Request, Stage};

use crate::harness::template::{Kept, detached, words};
use crate::harness::{World, cgroup_of, eventually, process_status};
use crate::{ended, native};

#[test]
fn a_template_is_loaded_and_its_clones_are_containers() {
    let world = World::new("template");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let status = kept.await_sandboxes(2);
    assert_eq!((status.language.as_deref(), status.clones), (Some("c"), 0));
    let (one, two) = (world.id("one"), world.id("two"));
    let sleeper = kept.clone_of(Some(&one), &["/program", "sleep"]);
    let (container, pid) = sleeper.taken();
    assert_eq!(container, one);
    assert_eq!(world.status(&one), "running");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(kept.clone_of(Some(&two), &["/program", "say", "hi"]).end(), ended("exit 0", "hi\n"));
    world.delete(&two);
    assert_eq!(kept.clone_of(None, &["/program", "exit", "7"]).end(), ended("exit 7", ""));
    assert_eq!(kept.clone_of(None, &["/program", "die"]).end(), ended("signal 9", ""));
    world.regen(&["kill", &one, "TERM"]).success();
    assert_eq!(sleeper.end(), ended("signal 15", ""));
    world.delete(&one);
    assert_eq!(kept.await_sandboxes(2).clones, 4);
    kept.finish();
}

#[test]
fn a_clone_has_a_place_a_name_and_files_of_its_own_and_nothing_else() {
    let world = World::new("own");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let template = kept.status().process.unwrap().pid;
    let mut names = BTreeSet::new();
    for number in 0..3 {
        // The job is descriptor 3 until the library has read it, the result is 4.
        assert_eq!(kept.clone_of(None, &["/program", "files"]).end().output, "0 1 2 4 ");
        assert_eq!(kept.clone_of(None, &["/program", "write", "/tmp/x"]).end().output, "yes\n", "clone {number}");
        names.insert(kept.clone_of(None, &["sh", "-c", "hostname; stat -c %i /proc/self/ns/pid"]).end().output);
    }
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|name| name.split('\n').next().unwrap().len() == 12), "{names:?}");
    let sleeper = kept.clone_of(None, &["/program", "sleep"]);
    let (container, pid) = sleeper.taken();
    for field in ["SigBlk", "SigIgn", "CapEff", "CapBnd", "Uid", "Gid", "Groups", "NoNewPrivs"] {
        assert_eq!(process_status(pid, field), process_status(template, field), "{field}");
    }
    assert_eq!(process_status(pid, "SigBlk"), "0000000000000000");
    assert!(cgroup_of(pid).ends_with(container));
    assert!(!world.rootfs().join("tmp/x").exists(), "the source is never written");
    drop(sleeper);
    kept.finish();
}

#[test]
fn a_clone_is_asked_for_with_arguments_variables_a_directory_and_a_limit() {
    let world = World::new("asked");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let run = |arguments: &[&str], env: &[&str], change: fn(&mut regen::template::message::Take)| {
        let job = Job { args: words(arguments), env: words(env), call: None };
        kept.request(None, &job, change, None).end()
    };
    assert_eq!(run(&["/program", "env", "A"], &["A=b=c"], |_| {}), ended("exit 0", "b=c\n"));
    assert_eq!(run(&["/program", "env", "REGEN_OCI_ZYGOTE"], &[], |_| {}), ended("exit 0", "-\n"));
    assert_eq!(run(&["/program", "env", "PYTHONPATH"], &[], |_| {}), ended("exit 0", "-\n"));
    assert_eq!(run(&["/program", "where"], &[], |_| {}), ended("exit 0", "/\n"));
    assert_eq!(
        run(&["/program", "where"], &[], |take| take.workdir = Some("/usr/bin".into())),
        ended("exit 0", "/usr/bin\n")
    );
    let limit: fn(&mut regen::template::message::Take) = |take| take.limits.memory = Some(64 << 20);
    assert_eq!(run(&["/program", "eat", "1048576"], &[], limit), ended("exit 0", "eaten\n"));
    // The kernel ends the largest: the container's first process, which tells of the end, has 20 MB in a debug build.
    assert_eq!(run(&["/program", "eat", "268435456"], &[], limit), ended("signal 9", ""));
    kept.finish();
}

#[test]
fn a_call_gets_its_function_and_gives_a_result() {
    let world = World::new("call");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let call = Some(Call { handler: "a:b".into(), event: r#"{"n": 1}"#.into() });
    let end = kept.request(None, &Job { call, ..Job::default() }, |_| {}, None).end();
    assert_eq!((end.status.as_str(), end.result.trim_end()), ("exit 0", r#"{"result": {"n": 1}}"#));
    let directory = world.base().join("function");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("app.py"), "text").unwrap();
    let mount = detached(&directory);
    let job = Job { args: words(&["sh", "-c", "cat /function/app.py; echo x > /function/y"]), ..Job::default() };
    let end = kept.request(None, &job, |_| {}, Some(std::os::fd::AsFd::as_fd(&mount))).end();
    assert!(end.output.starts_with("text") && end.output.contains("Read-only file system"), "{end:?}");
    let job = Job { args: words(&["ls", "-a", "/function"]), ..Job::default() };
    assert_eq!(kept.request(None, &job, |_| {}, None).end(), ended("exit 0", ".\n..\n"), "the next one has none");
    kept.finish();
}

#[test]
fn two_hundred_clones_are_all_told_how_they_ended() {
    let world = World::new("many");
    let kept = world.keep_template(&native(&world, "c", &[]));
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let kept = &kept;
            scope.spawn(move || {
                for turn in 0..25 {
                    let code = (worker * 25 + turn) % 200;
                    let end = kept.clone_of(None, &["/program", "exit", &code.to_string()]).end();
                    assert_eq!(end, ended(&format!("exit {code}"), ""));
                }
            });
        }
    });
    assert_eq!(kept.await_sandboxes(2).clones, 200);
    kept.finish();
}

#[test]
fn a_python_is_cloned_with_what_it_has_imported() {
    let world = World::new("python");
    let kept = world.keep_template(&world.python_template("py", "json,ssl"));
    assert!(kept.status().language.unwrap().starts_with("python 3"));
    let script = "import sys, os, random; print('ssl' in sys.modules, os.getpid() > 0, 'PYTHONPATH' in os.environ)";
    let randoms: BTreeSet<_> = (0..5)
        .map(|_| kept.clone_of(None, &["python3", "-c", "import random; print(random.random())"]).end().output)
        .collect();
    assert_eq!(randoms.len(), 5);
    assert_eq!(kept.clone_of(None, &["python3", "-c", script]).end(), ended("exit 0", "True True False\n"));
    assert_eq!(kept.clone_of(None, &["python3", "-c", "import sys; sys.exit(9)"]).end(), ended("exit 9", ""));
    let directory = world.base().join("function");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("app.py"), "def main(event):\n    return {'sum': sum(event)}\n").unwrap();
    let mount = detached(&directory);
    let call = Some(Call { handler: "app:main".into(), event: "[1, 2, 3]".into() });
    let job = Job { call, ..Job::default() };
    let end = kept.request(None, &job, |_| {}, Some(std::os::fd::AsFd::as_fd(&mount))).end();
    assert_eq!((end.status.as_str(), end.result.trim_end()), ("exit 0", r#"{"result": {"sum": 6}}"#));
    kept.finish();
}

#[test]
fn a_clone_that_is_attended_goes_with_the_connection_that_asked_for_it() {
    let world = World::new("attended");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let id = world.id("named");
    let nameless = kept.clone_of(None, &["/program", "sleep"]);
    let job = Job { args: words(&["/program", "sleep"]), ..Job::default() };
    let named = kept.request(Some(&id), &job, |take| take.cleanup = Cleanup::WithConnection, None);
    let (container, _) = nameless.taken();
    assert_eq!((kept.status().attended, world.status(&id).as_str()), (2, "running"));
    drop((nameless, named));
    eventually("both are gone", || !world.state_directory(&container).exists() && !world.state_directory(&id).exists());
    eventually("nobody is attended", || kept.status().attended == 0);
    kept.finish();
}

#[test]
fn a_request_that_cannot_be_done_is_refused_and_nothing_runs() {
    let world = World::new("refused");
    let kept = world.keep_template(&native(&world, "c", &[]));
    let taken = world.sleeper("taken");
    let cause = |id: Option<&str>, change: fn(&mut regen::template::message::Take)| {
        let job = Job { args: words(&["/program", "write", "/x"]), ..Job::default() };
        match kept.request(id, &job, change, None).answer {
            Answer::Failed { error, stage: Stage::Before } => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(cause(Some(&taken), |_| {}).contains("already exists"));
    assert!(cause(None, |take| take.cleanup = Cleanup::Keep).contains("needs a name"));
    assert!(
        cause(None, |take| {
            take.extra.pop();
        })
        .contains("other descriptors")
    );
    assert!(cause(None, |take| take.workdir = Some("/nowhere".into())).contains("no such file or directory"));
    let requester = Requester::connect(&kept.directory(), "c", Duration::from_secs(5)).unwrap();
    requester.ask(&Request::Fit, &[]).unwrap();
    let Answer::Fits(fits) = requester.answer(None).unwrap() else { panic!() };
    assert!(fits.mapped.iter().any(|mapped| mapped.path == Path::new("/program")), "{fits:?}");
    assert_eq!(kept.status().clones, 0);
    world.delete(&taken);
    kept.finish();
}

#[test]
fn without_a_pool_a_sandbox_is_made_when_it_is_asked_for() {
    let world = World::new("pool");
    let mut order = native(&world, "c", &[]);
    order.definition.pool = 0;
    let kept = world.keep_template(&order);
    assert_eq!(kept.status().wanted, 0);
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| assert_eq!(kept.clone_of(None, &["/program", "say", "x"]).end(), ended("exit 0", "x\n")));
        }
    });
    assert_eq!(kept.status().sandboxes, 0);
    kept.finish();
}

#[test]
fn a_newer_keeper_takes_the_socket_over_and_the_older_one_ends_when_it_is_done() {
    let world = World::new("newer");
    let order = native(&world, "c", &[]);
    let older = world.keep_template(&order);
    let attended = older.clone_of(None, &["/program", "sleep"]);
    let mut next = order.clone();
    next.generation = 2;
    let newer = world.keep_template(&next);
    let watcher = older.controller();
    watcher.tell(Command::Watch).unwrap();
    older.tell(Command::Retire);
    eventually("it retires", || older.status().phase == Phase::Retiring);
    assert_eq!(older.clone_of(None, &["/program", "say", "x"]).end(), ended("exit 0", "x\n"), "by the newer one");
    assert_eq!((older.status().clones, newer.status().clones), (1, 1));
    drop(attended);
    assert_eq!(Kept::last_words(&watcher), None);
    older.child_has_ended();
    assert_eq!(newer.clone_of(None, &["/program", "say", "y"]).end(), ended("exit 0", "y\n"));
    newer.finish();
}

#[test]
fn a_clone_is_a_machine_of_its_own() {
    let world = World::new("machine");
    fs::write(world.rootfs().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let kept = world.keep_template(&native(&world, "c", &[]));
    let ids: BTreeSet<_> = (0..3).map(|_| kept.clone_of(None, &["cat", "/etc/machine-id"]).end().output).collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| id.len() == 33 && !id.starts_with("0123456789")), "{ids:?}");
    kept.finish();
}
