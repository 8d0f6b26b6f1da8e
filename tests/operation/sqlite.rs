//! The engine over the registry that a machine has: several processes, and what is left when one of them is killed.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use regen::error::{Context, Kind as Fault, Result};
use regen::operation::{Kind, OperationId, State};
use regen::ops::operation::{Engine, Executor, Executors, Filter, Limits, Settled, Task};
use regen::registry::{Put, Registry, Sqlite, Transaction};
use serde_json::{Value, json};

use super::executor::Recorder;
use super::{Daemon, LONG, probe, probes, request};

fn registry(directory: &Path) -> Arc<dyn Registry> {
    Arc::new(Sqlite::open(directory).unwrap())
}

/// Writes a line into a file for each task that it does.
#[derive(Debug)]
struct Ledger(PathBuf);

impl Ledger {
    fn line(task: &Task) -> String {
        format!("{} {}", task.operation, task.target)
    }

    fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Executor for Ledger {
    fn execute(&self, task: &Task, _tell: &mut dyn FnMut(Value)) -> Result<Value> {
        task.pass()?;
        let mut file = OpenOptions::new().append(true).create(true).open(&self.0).context(|| "open the ledger")?;
        file.write_all(format!("{}\n", Self::line(task)).as_bytes()).context(|| "write into the ledger")?;
        Ok(json!({"token": task.token.number}))
    }

    fn settle(&self, task: &Task) -> Settled {
        let line = Self::line(task);
        if self.lines().contains(&line) { Settled::Succeeded(json!("there")) } else { Settled::Repeat }
    }
}

fn engine(store: &Path) -> Engine {
    let executors = Executors::new().with(&[Kind::Probe], Arc::new(Ledger(store.join("ledger"))));
    Engine::open(registry(store), "a".parse().unwrap(), store, executors, Limits::default()).unwrap()
}

const STORE: &str = "REGEN_TEST_STORE";
const ROUND: &str = "REGEN_TEST_ROUND";

/// What the process does that is killed: it takes work until then, and says what it has taken.
#[test]
fn a_daemon_to_be_killed() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let engine = engine(Path::new(&store));
    // What the one before has left is not to be in the way.
    let first = std::env::var(ROUND).unwrap().parse::<usize>().unwrap() * 100_000;
    for number in first.. {
        let targets = match number % 10 {
            0 => probes("a", number * 100..number * 100 + 100),
            _ => probes("a", number * 100..number * 100 + 3),
        };
        let id = engine.submit(request(Kind::Probe, targets, Value::Null)).unwrap().id;
        println!("\ntaken {id}");
    }
}

#[test]
fn nothing_that_a_killed_daemon_took_is_lost_or_done_twice() {
    let store = tempfile::tempdir().unwrap();
    let mut taken: Vec<OperationId> = Vec::new();
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite::a_daemon_to_be_killed", "--nocapture"])
            .env(STORE, store.path())
            .env(ROUND, round.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // After so many it is killed, wherever it is.
        let mut left = 3 + 7 * round;
        while left > 0 {
            let line = lines.next().expect("it ended by itself").unwrap();
            if let Some(id) = line.strip_prefix("taken ") {
                taken.push(id.parse().unwrap());
                left -= 1;
            }
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        taken.extend(
            lines
                .map_while(std::result::Result::ok)
                .filter_map(|line| line.strip_prefix("taken ")?.parse::<OperationId>().ok()),
        );
    }
    let engine = engine(store.path());
    for id in &taken {
        let record = engine.wait(id, Some(LONG)).unwrap().unwrap_or_else(|| panic!("{id} does not end"));
        assert_eq!((record.state, record.results.len()), (State::Succeeded, record.counts.total), "{record:?}");
    }
    let mut seen: HashMap<String, usize> = HashMap::new();
    Ledger(store.path().join("ledger")).lines().into_iter().for_each(|line| *seen.entry(line).or_default() += 1);
    assert!(seen.values().all(|count| *count == 1), "done twice: {seen:?}");
    let total: usize = taken.iter().map(|id| engine.show(id).unwrap().counts.total).sum();
    assert!(seen.len() >= total, "{} of {total} tasks were done", seen.len());
    assert!(engine.list(Filter::default()).unwrap().iter().all(|record| record.state == State::Succeeded));
    let left = registry(store.path());
    for prefix in ["marker/", "wide/", "active/"] {
        let left = left.list(prefix).unwrap().entries;
        assert_eq!(left.iter().map(|entry| &entry.key).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}

#[test]
fn two_daemons_on_one_file_never_have_the_same() {
    let shared = tempfile::tempdir().unwrap();
    let recorder = Recorder::default();
    let daemons: Vec<_> =
        (0..2).map(|_| Daemon::new(&registry(shared.path()), "a", recorder.beside().executors())).collect();
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let daemon = &daemons[thread % 2];
            scope.spawn(move || {
                for round in 0..15 {
                    // Some are wide.
                    let count = if (thread + round) % 4 == 0 { 80 } else { 2 };
                    let first = (thread * 7 + round * 13) % 90;
                    match daemon.engine.submit(probe(probes("a", first..first + count), 0)) {
                        Ok(submitted) => {
                            let record = daemon.engine.wait(&submitted.id, Some(LONG)).unwrap().unwrap();
                            assert_eq!(record.state, State::Succeeded, "{:?}", record.results);
                        }
                        Err(error) => assert_eq!(error.kind(), Fault::Busy, "{error}"),
                    }
                }
            });
        }
    });
    let mut last: HashMap<String, u64> = HashMap::new();
    for (_, target, token) in recorder.log.lock().unwrap().iter() {
        let before = last.insert(target.clone(), *token);
        assert!(before.is_none_or(|before| before < *token), "{target}: {before:?} and then {token}");
    }
    assert!(last.len() > 30);
}

#[test]
fn many_old_operations_are_forgotten_and_slow_nothing_down() {
    let store = tempfile::tempdir().unwrap();
    let sqlite = registry(store.path());
    // As a daemon of long ago left them, with results.
    let head = {
        let daemon = Daemon::new(&sqlite, "a", Executors::new());
        let record = daemon.done(probe(probes("a", 0..1), 0));
        let entry = sqlite.get(&format!("operation/{}", record.id)).unwrap().unwrap();
        (record.id.to_string(), String::from_utf8(entry.value).unwrap())
    };
    let count = 3000_usize;
    let keys: Vec<_> = (0..count).map(|number| format!("{}{number:020x}", &head.0[..12])).collect();
    for batch in keys.chunks(40) {
        let mut transaction = Transaction::default();
        for id in batch {
            transaction.puts.push(Put::new(format!("operation/{id}"), head.1.replace(&head.0, id).into_bytes()));
            transaction.puts.push(Put::new(format!("operation/{id}/results/0000"), vec![b' '; 1000]));
        }
        sqlite.apply(&transaction).unwrap();
    }
    let limits = Limits { keep: 500, ..Limits::default() };
    let executors = Executors::new();
    let engine = Engine::open(Arc::clone(&sqlite), "a".parse().unwrap(), store.path(), executors, limits).unwrap();
    assert_eq!(engine.list(Filter { limit: Some(20), ..Filter::default() }).unwrap().len(), 20);
    for _ in 0..4 {
        let targets = probes("a", 0..1);
        let id = engine.submit(probe(targets, 0)).unwrap().id;
        engine.wait(&id, Some(LONG)).unwrap().unwrap();
    }
    engine.collect().unwrap();
    let left = sqlite.list("operation/").unwrap().entries;
    assert_eq!(left.iter().filter(|entry| entry.key.len() == "operation/".len() + 32).count(), 500);
    assert_eq!(left.len(), 1000, "each with its results");
    assert_eq!(engine.list(Filter::default()).unwrap().len(), 500);
}
