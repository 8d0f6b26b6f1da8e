//! Many who want clones at once.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use regen::template::client::Requester;
use regen::template::job::{Call, Job};
use regen::template::message::{Answer, Cleanup, Extra, Limits, Request, Take, Terminal};
use serde_json::json;

use crate::harness::{World, eventually};

#[test]
fn a_hundred_invocations_at_once_are_all_answered() {
    let world = World::new("tpl-hundred");
    let daemon = world.daemon();
    let name = daemon.name("py");
    daemon.create(&name, &["--pool", "4"]);
    let function = world.function("f", "def f(event): return event * 2\n");
    std::thread::scope(|threads| {
        for number in 0..100 {
            let (world, name, function) = (&world, &name, &function);
            threads.spawn(move || {
                let event = number.to_string();
                let output = world.invoke(name, function.to_str().unwrap(), "app:f", &["--event", &event]);
                assert_eq!(output.success().stdout().trim(), (number * 2).to_string());
            });
        }
    });
    let show = daemon.await_template(&name, "its pool is full again", |show| show["sandboxes"] == 4);
    assert_eq!((&show["clones"], &show["failed"], &show["waiting"]), (&json!(100), &json!(0), &json!(0)));
    eventually("only what waits is there", || world.regen(&["list", "-q"]).stdout().lines().count() == 5);
}

/// How many are asked for at once: ten thousand take minutes.
fn crowd() -> usize {
    std::env::var("REGEN_OCI_TEST_CROWD").map_or(1_000, |text| text.parse().unwrap())
}

#[test]
fn a_crowd_that_asks_at_once_waits_its_turn_and_nobody_is_turned_away() {
    let world = World::new("tpl-crowd");
    let daemon = world.daemon();
    let name = daemon.name("c");
    let root = world.rootfs();
    std::fs::copy(world.primes(), root.join("bin/primes")).unwrap();
    let create = ["create", &name, "--rootfs", root.to_str().unwrap(), "--pool", "8", "--", "/bin/primes"];
    daemon.template(&create).success();
    let directory = world.store().join("templates/root").join(&name);
    let crowd = crowd();
    let (begun, done, most) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        // Each who waits has two files open.
        for _ in 0..crowd.min(4_000) {
            let ask = || {
                while begun.fetch_add(1, Ordering::SeqCst) < crowd {
                    // One that fails is missed at the end, too.
                    let counted = std::panic::catch_unwind(|| count_primes(&directory, &name));
                    done.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(counted.unwrap(), r#"{"result":25}"#);
                }
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(threads, ask).unwrap();
        }
        while done.load(Ordering::SeqCst) < crowd {
            most.fetch_max(containers(&world), Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let most = most.load(Ordering::SeqCst);
    assert!(most < 300, "{most} containers at once");
    let show = daemon.await_template(&name, "its pool is full again", |show| show["sandboxes"] == 8);
    assert_eq!((&show["clones"], &show["failed"]), (&json!(crowd), &json!(0)));
}

fn containers(world: &World) -> usize {
    std::fs::read_dir(world.root()).map_or(0, |entries| entries.count())
}

/// As `invoke` asks, without the program: the test is about those who are asked.
fn count_primes(directory: &std::path::Path, name: &str) -> String {
    let requester = Requester::connect(directory, name, Duration::from_secs(1800)).unwrap();
    let call = Some(Call { handler: "primes:count".into(), event: "100".into() });
    let job = Job { args: Vec::new(), env: vec!["PATH=/bin".into()], call }.seal().unwrap();
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let (result, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let take = Take {
        id: None,
        extra: vec![Extra::Result],
        cleanup: Cleanup::WithConnection,
        workdir: None,
        limits: Limits::default(),
        terminal: Terminal::None,
    };
    let descriptors = [job.as_fd(), null.as_fd(), null.as_fd(), null.as_fd(), end.as_fd()];
    requester.ask(&Request::Take(Box::new(take)), &descriptors).unwrap();
    let answer = requester.answer(Some(Duration::from_secs(1800))).unwrap();
    assert!(matches!(answer, Answer::Taken { .. }), "{answer:?}");
    drop(end);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(result), &mut text).unwrap();
    text.replace(' ', "")
}
