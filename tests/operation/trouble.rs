//! What becomes of operations where the registry fails, daemons hang or die, and answers are lost.

use std::sync::Arc;
use std::time::Duration;

use regen::operation::{Kind, State};
use regen::ops::operation::{Executors, Filter, Limits};
use regen::registry::Registry;
use serde_json::{Value, json};

use super::executor::{Gate, Recorder};
use super::registry_memory::{Fault as Trouble, Memory, Virtual};
use super::{Daemon, LONG, memory, probe, probes, request, target};

#[test]
fn lost_answers_change_nothing() {
    let (memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Recorder::default().executors());
    for (trouble, wide) in
        [(Trouble::LostAnswer, 0), (Trouble::LostCall, 0), (Trouble::LostAnswer, 90), (Trouble::LostCall, 90)]
    {
        // Each call that changes something goes wrong once.
        let mut last = None;
        memory.judge(move |transaction| {
            if last.replace(transaction.clone()).as_ref() == Some(transaction) { Trouble::None } else { trouble }
        });
        let record = daemon.done(request(Kind::Probe, probes("a", 0..1 + wide), Value::Null));
        assert_eq!((record.state, record.results.len()), (State::Succeeded, 1 + wide), "{trouble:?}");
        memory.heal();
        assert_eq!(memory.keys("marker/").len() + memory.keys("wide/").len() + memory.keys("active/").len(), 0);
    }
    let log_free = daemon.done(probe(probes("a", 0..100), 0));
    assert_eq!(log_free.state, State::Succeeded);
}

#[test]
fn an_operation_that_may_have_been_taken_is_not_begun() {
    let (memory, registry) = memory();
    let recorder = Recorder::default();
    let log = Arc::clone(&recorder.log);
    let daemon = Daemon::new(&registry, "a", recorder.executors());
    for wide in [0, 90] {
        memory.judge(|_| Trouble::LostAnswer);
        let mut count = 0;
        let other = memory.clone();
        memory.judge(move |transaction| {
            let takes = transaction.puts.iter().any(|put| put.key.starts_with("operation/"));
            count += usize::from(takes);
            if count == 1 { Trouble::LostAnswer } else { Trouble::Away }
        });
        drop(other);
        let error = daemon.engine.submit(request(Kind::Probe, probes("a", 0..1 + wide), Value::Null));
        assert!(error.is_err());
        memory.heal();
        let deadline = std::time::Instant::now() + LONG;
        while memory.keys("active/").len() + memory.keys("marker/").len() + memory.keys("wide/").len() > 0 {
            assert!(std::time::Instant::now() < deadline, "{:?}", memory.keys(""));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(log.lock().unwrap().len(), 0);
}

#[test]
fn an_end_that_cannot_be_written_is_written_when_the_registry_is_back() {
    let (memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let daemon = Daemon::new(&registry, "a", recorder.executors());
    let id = daemon.engine.submit(probe(probes("a", 0..1), 0)).unwrap().id;
    gate.wait_for(1);
    memory.leave();
    gate.open();
    assert_eq!(daemon.engine.wait(&id, Some(Duration::from_millis(300))).unwrap(), None, "it is not written down");
    memory.heal();
    let record = daemon.engine.wait(&id, Some(LONG)).unwrap().unwrap();
    assert_eq!((record.state, record.counts.succeeded), (State::Succeeded, 1));
}

#[test]
fn a_daemon_that_lost_its_lease_begins_nothing_and_its_late_task_is_refused() {
    let clock = Virtual::new();
    let memory = Memory::new(Arc::clone(&clock) as _);
    let registry: Arc<dyn Registry> = Arc::new(memory.clone());
    let gate = Gate::new();
    let recorder = Recorder { before: Some(Arc::clone(&gate)), ..Recorder::default() };
    let log = Arc::clone(&recorder.log);
    let store = Arc::new(tempfile::tempdir().unwrap());
    let open = |executors| {
        let at = (Arc::clone(&registry), "a".parse().unwrap(), Arc::clone(&clock) as _);
        // Two daemons of one node: the later one was started because the first hangs.
        regen::ops::operation::Engine::open_at(at, store.path(), executors, Limits { here: 1, ..Limits::default() })
            .unwrap()
    };
    let paused = open(recorder.executors());
    let old = paused.submit(request(Kind::RingRollback, target("a:ring/root/x"), Value::Null)).unwrap().id;
    let queued = paused.submit(request(Kind::RingRollback, target("a:ring/root/y"), Value::Null)).unwrap().id;
    gate.wait_for(1);
    clock.pass(Duration::from_secs(60));
    assert_eq!(memory.keys("marker/").len(), 0, "they went with the lease");
    let later = Recorder::default();
    let seen = Arc::clone(&later.log);
    let other = open(later.executors());
    // It takes up what the first one left, and has it done.
    let record = other.wait(&old, Some(LONG)).unwrap().unwrap();
    assert_eq!(record.state, State::Succeeded);
    // What was not begun, it does too, unless the first one noticed in time to say that it cannot.
    let second = other.wait(&queued, Some(LONG)).unwrap().unwrap();
    assert!(matches!(second.state, State::Succeeded | State::Unknown), "{second:?}");
    gate.open();
    paused.wait(&old, Some(LONG)).unwrap().unwrap();
    paused.wait(&queued, Some(LONG)).unwrap().unwrap();
    assert_eq!(log.lock().unwrap().len(), 0, "the fence let the late one pass");
    assert_eq!(seen.lock().unwrap().len(), if second.state == State::Succeeded { 2 } else { 1 }, "{second:?}");
}

#[test]
fn operations_whose_markers_were_lost_end_as_unknown() {
    let clock = Virtual::new();
    let memory = Memory::new(Arc::clone(&clock) as _);
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let store = tempfile::tempdir().unwrap();
    let at = (Arc::new(memory.clone()) as _, "a".parse().unwrap(), Arc::clone(&clock) as _);
    let engine = regen::ops::operation::Engine::open_at(
        at,
        store.path(),
        recorder.executors(),
        Limits { here: 1, ..Limits::default() },
    )
    .unwrap();
    let id = engine.submit(request(Kind::RingPin, target("a:ring/root/x"), Value::Null)).unwrap().id;
    let queued = engine.submit(request(Kind::RingPin, target("a:ring/root/y"), Value::Null)).unwrap().id;
    gate.wait_for(1);
    clock.pass(Duration::from_secs(60));
    gate.open();
    let record = engine.wait(&queued, Some(LONG)).unwrap().unwrap();
    assert_eq!((record.state, record.counts.cancelled), (State::Unknown, 1), "{record:?}");
    let record = engine.wait(&id, Some(LONG)).unwrap().unwrap();
    assert_eq!(record.counts.succeeded, 1, "what was seen to be done is told");
    let next = engine.submit(request(Kind::RingPin, target("a:ring/root/x"), Value::Null)).unwrap().id;
    assert_eq!(engine.wait(&next, Some(LONG)).unwrap().unwrap().state, State::Succeeded);
}

#[test]
fn what_a_dead_daemon_left_is_taken_up_once() {
    let (memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let dead = Daemon::new(&registry, "a", recorder.executors());
    let settles = ["succeeded", "failed", "unknown", "repeat"];
    let begun: Vec<_> = settles
        .iter()
        .map(|how| {
            let targets = target(&format!("a:ring/root/{how}"));
            dead.engine.submit(request(Kind::RingSnapshot, targets, json!({"settle": how}))).unwrap().id
        })
        .collect();
    gate.wait_for(4);
    let many = dead.engine.submit(probe(probes("a", 0..100), 0)).unwrap().id;
    gate.wait_for(32);
    // It never comes back: its threads wait for ever, as those of a dead one.
    let next = Recorder::default();
    let log = Arc::clone(&next.log);
    let daemon = Daemon::at(&registry, "a", next.executors(), Arc::clone(&dead.store));
    let states: Vec<_> = begun
        .iter()
        .map(|id| daemon.engine.wait(id, Some(LONG)).unwrap().unwrap())
        .map(|record| record.state)
        .collect();
    assert_eq!(states, [State::Succeeded, State::Failed, State::Unknown, State::Succeeded]);
    let record = daemon.engine.wait(&many, Some(LONG)).unwrap().unwrap();
    assert_eq!((record.counts.unknown, record.counts.succeeded), (28, 72), "28 were begun by the dead one");
    let done: Vec<_> = log.lock().unwrap().iter().filter(|(id, _, _)| *id == begun[3]).cloned().collect();
    assert_eq!(done.len(), 1);
    assert_eq!(memory.keys("marker/").len() + memory.keys("wide/").len() + memory.keys("active/").len(), 0);
}

#[test]
fn what_somebody_else_took_meanwhile_is_not_begun() {
    let clock = Virtual::new();
    let memory = Memory::new(Arc::clone(&clock) as _);
    let registry: Arc<dyn Registry> = Arc::new(memory.clone());
    let store = Arc::new(tempfile::tempdir().unwrap());
    let gate = Gate::new();
    let open = |registry: Arc<dyn Registry>, node: &str, executors, limits| {
        let at = (registry, node.parse().unwrap(), Arc::clone(&clock) as _);
        regen::ops::operation::Engine::open_at(at, store.path(), executors, limits).unwrap()
    };
    let way = memory.beside();
    let dead = open(Arc::new(way.clone()), "a", Executors::new(), Limits { workers: 0, ..Limits::default() });
    let id = dead.submit(probe(probes("a", 0..1), 0)).unwrap().id;
    way.cut();
    clock.pass(Duration::from_secs(60));
    let holder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let other = open(Arc::clone(&registry), "b", holder.executors().elsewhere(Arc::new(Everywhere)), Limits::default());
    let held = other.submit(probe(probes("a", 0..1), 3_600_000)).unwrap().id;
    let daemon = open(registry, "a", Executors::new(), Limits::default());
    let record = daemon.wait(&id, Some(LONG)).unwrap().unwrap();
    assert_eq!(record.state, State::Failed);
    assert!(record.error.as_ref().unwrap().contains(&held.to_string()), "{record:?}");
    other.cancel(&held).unwrap();
    other.wait(&held, Some(LONG)).unwrap().unwrap();
}

/// Other nodes, which all do what a probe does.
#[derive(Debug)]
struct Everywhere;

impl regen::ops::operation::Executor for Everywhere {
    fn execute(&self, task: &regen::ops::operation::Task, tell: &mut dyn FnMut(Value)) -> regen::error::Result<Value> {
        regen::ops::operation::executor::Probe.execute(task, tell)
    }

    fn settle(&self, _task: &regen::ops::operation::Task) -> regen::ops::operation::Settled {
        regen::ops::operation::Settled::Repeat
    }
}

impl regen::ops::operation::executor::Elsewhere for Everywhere {
    fn knows(&self, node: &regen::ids::NodeName) -> bool {
        node.as_str() != "nowhere"
    }
}

#[test]
fn another_node_gets_so_many_tasks_at_a_time() {
    let (_memory, registry) = memory();
    let daemon = Daemon::new(&registry, "a", Executors::new().elsewhere(Arc::new(Everywhere)));
    let began = std::time::Instant::now();
    let targets = [probes("a", 0..32), probes("b", 0..16), probes("c", 0..8)].concat();
    let record = daemon.done(probe(targets, 50));
    assert_eq!(record.counts.succeeded, 56);
    assert!(began.elapsed() >= Duration::from_millis(100), "16 tasks of one node take two turns");
}

#[test]
fn one_waits_for_what_another_daemon_does() {
    let (_memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let (one, other) =
        (Daemon::new(&registry, "a", recorder.executors()), Daemon::new(&registry, "b", Executors::new()));
    let id = one.engine.submit(probe(probes("a", 0..1), 0)).unwrap().id;
    assert_eq!(other.engine.wait(&id, Some(Duration::from_millis(50))).unwrap(), None);
    let error = other.engine.cancel(&id).unwrap_err();
    assert!(error.to_string().contains("node 'a' has it"), "{error}");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| other.engine.wait(&id, Some(LONG)).unwrap().unwrap());
        gate.open();
        assert_eq!(waits.join().unwrap().state, State::Succeeded);
    });
}

#[test]
fn clocks_that_jump_hide_no_operation() {
    let clock = Virtual::new();
    let memory = Memory::new(Arc::clone(&clock) as _);
    let store = tempfile::tempdir().unwrap();
    let at = (Arc::new(memory) as _, "a".parse().unwrap(), Arc::clone(&clock) as _);
    let engine = regen::ops::operation::Engine::open_at(at, store.path(), Executors::new(), Limits::default()).unwrap();
    let start = regen::operation::Clock::wall(&*clock);
    for hours in [0, 30, -30, 7, -100] {
        clock.set(start + chrono::Duration::hours(hours));
        let id = engine.submit(probe(probes("a", 0..1), 0)).unwrap().id;
        engine.wait(&id, Some(LONG)).unwrap().unwrap();
    }
    let listed = engine.list(Filter::default()).unwrap();
    assert_eq!(listed.len(), 5);
    assert!(listed.is_sorted_by(|one, other| one.id > other.id), "newest first");
    assert_eq!(engine.list(Filter { limit: Some(2), ..Filter::default() }).unwrap().len(), 2);
    assert_eq!(engine.list(Filter { state: Some(State::Failed), ..Filter::default() }).unwrap().len(), 0);
}

#[test]
fn a_daemon_that_is_about_to_end_takes_nothing_and_leaves_the_rest() {
    let (memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let daemon = Daemon::new(&registry, "a", recorder.executors());
    let id = daemon.engine.submit(probe(probes("a", 0..40), 0)).unwrap().id;
    gate.wait_for(32);
    std::thread::scope(|scope| {
        scope.spawn(|| daemon.engine.close(LONG));
        while daemon.engine.submit(probe(probes("a", 90..91), 0)).is_ok_and(|s| daemon.engine.cancel(&s.id).is_ok()) {}
        gate.open();
    });
    assert!(daemon.engine.submit(probe(probes("a", 50..51), 0)).unwrap_err().to_string().contains("about to end"));
    assert!(memory.keys("active/").iter().any(|key| key.ends_with(&id.to_string())));
    let next = Daemon::at(&registry, "a", Recorder::default().executors(), Arc::clone(&daemon.store));
    let record = next.engine.wait(&id, Some(LONG)).unwrap().unwrap();
    assert_eq!(record.counts.total, 40);
    assert_eq!(record.counts.cancelled + record.counts.failed, 0, "{:?}", record.counts);
}

#[test]
fn a_transaction_that_comes_late_makes_no_operation() {
    for wide in [0, 90] {
        let (memory, registry) = memory();
        let recorder = Recorder::default();
        let log = Arc::clone(&recorder.log);
        let daemon = Daemon::new(&registry, "a", recorder.executors());
        // The first thing that is sent is on its way for long.
        let late = Arc::new(std::sync::Mutex::new(None));
        let kept = Arc::clone(&late);
        memory.judge(move |transaction| {
            let mut kept = kept.lock().unwrap();
            if kept.is_none() {
                *kept = Some(transaction.clone());
                return Trouble::LostCall;
            }
            Trouble::Away
        });
        assert!(daemon.engine.submit(request(Kind::Probe, probes("a", 0..1 + wide), Value::Null)).is_err());
        memory.heal();
        let deadline = std::time::Instant::now() + LONG;
        while memory.keys("operation/").is_empty() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
        let late = late.lock().unwrap().take().unwrap();
        assert_eq!(registry.apply(&late).unwrap(), regen::registry::Applied::Refused);
        assert_eq!(memory.keys("marker/").len() + memory.keys("wide/").len() + memory.keys("active/").len(), 0);
        let listed = daemon.engine.list(Filter::default()).unwrap();
        assert_eq!(listed.iter().map(|record| record.state).collect::<Vec<_>>(), [State::Cancelled]);
        assert_eq!(daemon.done(probe(probes("a", 0..1), 0)).state, State::Succeeded);
        assert_eq!(log.lock().unwrap().len(), 1);
    }
}

#[test]
fn what_a_node_had_that_does_not_come_back_ends_as_unknown() {
    let (memory, registry) = memory();
    let gate = Gate::new();
    let recorder = Recorder { inside: Some(Arc::clone(&gate)), ..Recorder::default() };
    let (dead, other) =
        (Daemon::new(&registry, "b", recorder.executors()), Daemon::new(&registry, "a", Executors::new()));
    let id = dead.engine.submit(probe(probes("b", 0..20), 0)).unwrap().id;
    gate.wait_for(20);
    assert_eq!(other.engine.bury(&"c".parse().unwrap()).unwrap(), 0);
    assert_eq!(other.engine.bury(&"b".parse().unwrap()).unwrap(), 1);
    let record = other.engine.show(&id).unwrap();
    assert_eq!((record.state, record.counts.unknown, record.targets.len()), (State::Unknown, 20, 20));
    assert_eq!(memory.keys("active/").len(), 0);
    gate.open();
    assert_eq!(dead.engine.wait(&id, Some(LONG)).unwrap().unwrap().state, State::Unknown, "it is told how it ended");
    assert_eq!(other.engine.show(&id).unwrap().state, State::Unknown);
}

/// A way to another node on which answers are lost.
#[derive(Debug)]
struct Flaky(std::sync::atomic::AtomicU32);

impl regen::ops::operation::Executor for Flaky {
    fn execute(&self, _: &regen::ops::operation::Task, _: &mut dyn FnMut(Value)) -> regen::error::Result<Value> {
        use regen::error::Context;
        let lost = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        let errno = if lost { nix::errno::Errno::ECONNRESET } else { nix::errno::Errno::ECONNREFUSED };
        let broken: std::io::Result<Value> = Err(std::io::Error::from_raw_os_error(errno as i32));
        broken.context(|| "call node 'b'")
    }

    fn settle(&self, _: &regen::ops::operation::Task) -> regen::ops::operation::Settled {
        regen::ops::operation::Settled::Unknown
    }

    fn afterwards(
        &self,
        _: &regen::ops::operation::Task,
        error: &regen::error::Error,
    ) -> regen::ops::operation::executor::Afterwards {
        use regen::ops::operation::executor::Afterwards;
        let sent = error.errno() == Some(nix::errno::Errno::ECONNRESET as i32);
        if sent { Afterwards::Unknown } else { Afterwards::NotDone }
    }
}

impl regen::ops::operation::executor::Elsewhere for Flaky {
    fn knows(&self, _: &regen::ids::NodeName) -> bool {
        true
    }
}

#[test]
fn a_call_whose_answer_was_lost_may_have_been_done() {
    let (_memory, registry) = memory();
    for (first, kind, state) in [(0, Kind::ServiceRestart, State::Unknown), (1, Kind::ServiceRestart, State::Failed)] {
        let flaky = Arc::new(Flaky(first.into()));
        let daemon = Daemon::new(&registry, "a", Executors::new().elsewhere(flaky));
        let record = daemon.done(request(kind, target("b:service/web@1.0.0"), Value::Null));
        assert_eq!(record.state, state);
    }
    let daemon = Daemon::new(&registry, "a", Executors::new().elsewhere(Arc::new(Flaky(0.into()))));
    let record = daemon.done(request(Kind::RingPin, target("b:ring/root/x"), json!({"entry": "@1"})));
    assert_eq!(record.state, State::Unknown, "tried again, and then not even reached");
}
