//! The engine over a registry in memory.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regen::error::Kind as Fault;
use regen::operation::{Kind, State};
use regen::ops::operation::{Executors, Filter, Request};
use serde_json::{Value, json};

use super::executor::{Gate, Recorder};
use super::{Daemon, LONG, memory, probe, probes, request, service, target};

#[test]
fn an_operation_is_done_and_written_down_and_leaves_no_marker() {
    let (memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Executors::new());
    let record = daemon.done(probe(probes("a", 0..3), 1));
    assert_eq!((record.state, record.counts.succeeded, record.results.len()), (State::Succeeded, 3, 3));
    assert!(record.started.is_some() && record.ended >= record.started && record.started >= Some(record.created));
    assert_eq!(record.targets, probes("a", 0..3));
    for prefix in ["marker/", "wide", "active/"] {
        assert_eq!(memory.keys(prefix), Vec::<String>::new());
    }
    assert_eq!(memory.applied(), 2, "one transaction at the beginning, one at the end");
    let shown = daemon.engine.show(&record.id).unwrap();
    assert_eq!((shown.results, shown.state), (record.results, record.state));
    let listed = daemon.engine.list(Filter::default()).unwrap();
    assert_eq!(listed.iter().map(|record| record.id).collect::<Vec<_>>(), [record.id]);
    assert_eq!(daemon.engine.load(), (0, 0));
}

#[test]
fn ten_thousand_targets_are_answered_with_a_handful_of_keys() {
    let (memory, registry) = memory();
    let gate = Gate::new();
    let daemon =
        Daemon::new(&registry, "a", Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() }.executors());
    let submitted = daemon.engine.submit(probe(probes("a", 0..10_000), 0)).unwrap();
    assert!(memory.keys("").len() <= 6, "{:?}", memory.keys(""));
    let beside = daemon.engine.submit(probe(probes("a", 9_999..10_000), 0)).unwrap_err();
    assert_eq!(beside.kind(), Fault::Busy);
    assert!(beside.to_string().contains(&submitted.id.to_string()), "{beside}");
    let other = daemon.engine.submit(probe(probes("a", 10_000..10_001), 0)).unwrap();
    daemon.engine.cancel(&submitted.id).unwrap();
    gate.open();
    let record = daemon.engine.wait(&submitted.id, Some(LONG)).unwrap().unwrap();
    assert_eq!(record.state, State::Cancelled);
    assert_eq!(record.counts.done(), 10_000);
    assert!(daemon.engine.wait(&other.id, Some(LONG)).unwrap().is_some());
    daemon.done(probe(probes("a", 9_990..10_000), 0));
}

#[test]
fn a_conflict_is_refused_at_once_with_operation_node_and_age() {
    let (_memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let (one, other) = (Recorder::default().beside(), recorder.beside());
    let one = Daemon::new(&registry, "a", Recorder { inside: Some(Arc::clone(&gate)), ..one }.executors());
    let other = Daemon::new(&registry, "b", other.executors());
    let holder = one.engine.submit(service(Kind::ServiceUpgrade)).unwrap().id;
    for daemon in [&one, &other] {
        // Node b has no way to node a in this test, but node a's own daemon is asked by both.
        let error = daemon.engine.submit(service(Kind::ServiceRestart)).unwrap_err();
        if daemon.engine.node().as_str() == "b" {
            assert_eq!(error.kind(), Fault::NotFound);
            continue;
        }
        assert_eq!(error.kind(), Fault::Busy);
        let line = error.to_string();
        let words = format!(
            "submit service-restart of 'a:service/web@1.0.0': operation {holder} has it: service-upgrade, on node 'a', for 0."
        );
        assert!(line.starts_with(&words), "{line}");
        assert!(line.ends_with(&format!("wait for it: 'regen op wait {holder}'")), "{line}");
    }
    let all = one.engine.submit(request(Kind::ServiceRemove, target("a:service/web"), Value::Null)).unwrap_err();
    assert!(all.to_string().contains(&holder.to_string()), "all versions have this one among them: {all}");
    one.engine.submit(request(Kind::ServiceRestart, target("a:service/web@2.0.0"), Value::Null)).unwrap();
    gate.open();
    assert_eq!(one.engine.wait(&holder, Some(LONG)).unwrap().unwrap().state, State::Succeeded);
    one.done(service(Kind::ServiceRestart));
}

#[test]
fn of_two_daemons_that_want_the_same_exactly_one_gets_it() {
    let (_memory, registry) = memory();
    let recorder = Recorder::default();
    let daemons: Vec<_> = (0..2).map(|_| Daemon::new(&registry, "a", recorder.beside().executors())).collect();
    let (log, begun) = (Arc::clone(&recorder.log), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let daemon = &daemons[thread % 2];
            scope.spawn(move || {
                // Who is refused tries again, until everybody had theirs.
                let mut had = 0;
                for attempt in 0.. {
                    if had == 4 {
                        break;
                    }
                    // Every third is wide: all versions, or many.
                    let subject = match (thread + attempt) % 3 {
                        0 => "service/web",
                        _ => "service/web@1.0.0",
                    };
                    let targets = target(&format!("a:{subject}"));
                    match daemon.engine.submit(request(Kind::ServiceRestart, targets, json!({"delay_us": 200}))) {
                        Ok(submitted) => {
                            let record = daemon.engine.wait(&submitted.id, Some(LONG)).unwrap().unwrap();
                            assert_eq!(record.state, State::Succeeded, "{record:?}");
                            had += 1;
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), Fault::Busy, "{error}");
                            assert!(begun.elapsed() < LONG, "{had} of 4 after {attempt} attempts");
                            std::thread::yield_now();
                        }
                    }
                }
            });
        }
    });
    let log = log.lock().unwrap();
    assert_eq!(log.len(), 32);
    assert!(
        log.is_sorted_by(|one, other| one.2 < other.2),
        "tokens grow: {:?}",
        log.iter().map(|l| l.2).collect::<Vec<_>>()
    );
}

#[test]
fn the_same_key_is_the_same_operation() {
    let (_memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Executors::new());
    let keyed = || Request { key: Some("k1".to_owned()), ..probe(probes("a", 0..1), 0) };
    let ids: HashSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| daemon.engine.submit(keyed()).unwrap())).collect();
        let answers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
        answers.into_iter().map(|answer| answer.id).collect()
    });
    assert_eq!(ids.len(), 1);
    daemon.engine.wait(ids.iter().next().unwrap(), Some(LONG)).unwrap().unwrap();
    assert!(daemon.engine.submit(keyed()).unwrap().duplicate, "also after its end");
    for other in [probe(probes("a", 1..2), 0), probe(probes("a", 0..2), 0)] {
        let error = daemon.engine.submit(Request { key: Some("k1".to_owned()), ..other }).unwrap_err();
        assert_eq!(error.kind(), Fault::Exists, "{error}");
    }
    for bad in ["", "a/b", "\n", &"x".repeat(201)] {
        let request = Request { key: Some(bad.to_owned()), ..probe(probes("a", 0..1), 0) };
        assert_eq!(daemon.engine.submit(request).unwrap_err().kind(), Fault::Invalid);
    }
}

#[test]
fn an_operation_is_cancelled_in_every_state() {
    let (_memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let daemon = Daemon::new(&registry, "a", recorder.executors());
    let id = daemon.engine.submit(probe(probes("a", 0..40), 0)).unwrap().id;
    gate.wait_for(32);
    let waits = daemon.engine.submit(probe(probes("a", 100..101), 0)).unwrap().id;
    let cancelled = daemon.engine.cancel(&waits).unwrap();
    assert_eq!((cancelled.state, cancelled.counts.cancelled), (State::Cancelled, 1), "it was not begun");
    let going = daemon.engine.cancel(&id).unwrap();
    assert_eq!((going.state, going.counts.cancelled), (State::Running, 8), "what was begun goes on");
    gate.open();
    let record = daemon.engine.wait(&id, Some(LONG)).unwrap().unwrap();
    assert_eq!((record.state, record.counts.succeeded, record.counts.cancelled), (State::Cancelled, 32, 8));
    for ended in [id, waits] {
        let error = daemon.engine.cancel(&ended).unwrap_err();
        assert_eq!(error.kind(), Fault::State);
        assert!(error.to_string().contains("it has ended already: it is cancelled"), "{error}");
    }
    let none = "0".repeat(32).parse().unwrap();
    assert_eq!(daemon.engine.cancel(&none).unwrap_err().kind(), Fault::NotFound);
    assert_eq!(daemon.engine.wait(&none, None).unwrap_err().kind(), Fault::NotFound);
}

#[test]
fn a_running_probe_is_told_that_it_is_cancelled() {
    let (_memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Executors::new());
    let id = daemon.engine.submit(probe(probes("a", 0..1), 3_600_000)).unwrap().id;
    assert_eq!(daemon.engine.wait(&id, Some(Duration::from_millis(20))).unwrap(), None);
    daemon.engine.cancel(&id).unwrap();
    assert_eq!(daemon.engine.wait(&id, Some(LONG)).unwrap().unwrap().state, State::Cancelled);
}

#[test]
fn what_was_not_begun_by_its_deadline_never_is() {
    let (_memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Executors::new());
    let late = Request { deadline: Some(Duration::from_millis(100)), ..probe(probes("a", 0..100), 3_600_000) };
    let record = daemon.done(late);
    assert_eq!((record.state, record.counts.cancelled), (State::Cancelled, 100));
    let over = Request { deadline: Some(Duration::ZERO), ..probe(probes("a", 0..1), 0) };
    assert!(daemon.engine.submit(over).unwrap_err().to_string().contains("its deadline is over"));
}

#[test]
fn bad_requests_are_refused_and_leave_nothing() {
    let (memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Executors::new());
    // Names that have nothing in common, so that they stay long.
    let many = (0..200_000_u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let many = many.flat_map(|number| target(&format!("a:probe/{number}"))).collect();
    let twice = [probes("a", 0..1), probes("a", 0..1)].concat();
    for (request, kind) in [
        (probe(vec![], 0), Fault::Usage),
        (probe(twice, 0), Fault::Usage),
        (probe(probes("nowhere", 0..1), 0), Fault::NotFound),
        (request(Kind::RingPin, target("a:probe/1"), Value::Null), Fault::Invalid),
        (probe(many, 0), Fault::Invalid),
    ] {
        let error = daemon.engine.submit(request).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(memory.keys("").len(), 0, "{:?}", memory.keys(""));
    assert_eq!(daemon.engine.load(), (0, 0));
    let failed = daemon.done(request(Kind::RingPin, target("a:ring/root/x"), Value::Null));
    assert_eq!(failed.state, State::Failed, "this daemon has nobody for it");
}

#[test]
fn failures_are_told_target_by_target() {
    let (_memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Recorder::default().executors());
    let record = daemon.done(request(Kind::Probe, probes("a", 0..2), json!({"fail": true})));
    assert_eq!((record.state, record.counts.failed), (State::Failed, 2));
    assert_eq!(record.results[1].error.as_deref(), Some("do what was asked: it was to fail"));
}

#[test]
fn steps_are_followed_to_the_end() {
    let (_memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { before: Some(Arc::clone(&gate)), ..Recorder::default() };
    let daemon = Daemon::new(&registry, "a", recorder.executors());
    let all = daemon.engine.follow_all().unwrap();
    let id = daemon.engine.submit(probe(probes("a", 0..2), 0)).unwrap().id;
    let one = daemon.engine.follow(&id).unwrap();
    gate.open();
    daemon.engine.wait(&id, Some(LONG)).unwrap().unwrap();
    for subscription in [&one, &all] {
        let mut steps = Vec::new();
        while !steps.last().is_some_and(|step: &regen::ops::operation::Progress| step.state.is_final()) {
            rustix::event::poll(
                &mut [rustix::event::PollFd::new(&subscription.bell(), rustix::event::PollFlags::IN)],
                None,
            )
            .unwrap();
            steps.extend(subscription.take());
        }
        assert_eq!(steps.iter().filter(|step| step.step == json!({"step": "there"})).count(), 2, "{steps:?}");
        assert_eq!(steps.last().map(|step| (step.done, step.total)), Some((2, 2)));
    }
    let over = daemon.engine.follow(&id).unwrap().take();
    assert_eq!(over.iter().map(|step| step.state).collect::<Vec<_>>(), [State::Succeeded]);
}
