//! The suite over the registry of one machine, and what is true of that one only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use regen::registry::{CHANGES_MAX, Failure, Put, Registry, Sqlite, Transaction};

use crate::suite::{Subject, commit, eventually, put, value};

/// One in a directory of its own.
#[derive(Debug)]
pub struct Own(tempfile::TempDir);

pub fn own() -> Own {
    Own(tempfile::tempdir().unwrap())
}

impl Own {
    pub fn directory(&self) -> &std::path::Path {
        self.0.path()
    }

    /// A connection beside the registry's own, for what no caller can do.
    fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.0.path().join("registry.db")).unwrap()
    }
}

impl Subject for Own {
    fn open(&self) -> Arc<dyn Registry> {
        Arc::new(Sqlite::open(self.directory()).unwrap())
    }

    fn address(&self) -> String {
        format!("sqlite:{}", self.directory().display())
    }

    fn shortest_lease(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn forget(&self, revision: u64) {
        let registry = self.open();
        let compacted =
            || -> u64 { self.database().query_row("SELECT compacted FROM about", [], |row| row.get(0)).unwrap() };
        while compacted() < revision {
            for _ in 0..20 {
                let puts = (0..CHANGES_MAX).map(|key| Put::new(format!("~forget/{key}"), b"x".to_vec())).collect();
                commit(&*registry, &Transaction { puts, ..Transaction::default() });
            }
        }
    }
}

conforms!(super::sqlite::own);

#[test]
fn what_was_applied_is_there_after_the_next_start() {
    let subject = own();
    let revision = put(&*subject.open(), "a", "1");
    let registry = subject.open();
    assert_eq!(registry.get("a").unwrap().unwrap().modified, revision);
    assert!(put(&*registry, "b", "2") > revision, "revisions grow over restarts");
    assert_eq!(crate::watch_all(&*registry, 0).len(), 2, "and what happened is remembered");
}

#[test]
fn a_lease_of_another_boot_is_over() {
    let subject = own();
    let registry = subject.open();
    let lease = registry.grant(Duration::from_secs(3600)).unwrap();
    let puts = vec![Put::leased("a", b"x".to_vec(), lease)];
    let revision = commit(&*registry, &Transaction { puts, ..Transaction::default() });
    let mut watch = registry.watch("a", revision).unwrap();
    assert_eq!(subject.database().execute("UPDATE lease SET boot = 'another'", []).unwrap(), 1);
    assert_eq!(registry.get("a").unwrap(), None);
    assert_eq!(registry.list("").unwrap().entries, []);
    assert_eq!(registry.renew(lease).unwrap(), regen::registry::Renewed::Gone);
    let events = watch.next(Some(Duration::from_secs(30))).unwrap();
    assert!(matches!(&events[..], [event] if event.entry.is_none()), "{events:?}");
}

#[test]
fn a_lease_that_cannot_be_ended_in_time_is_ended_later() {
    let subject = own();
    let registry = subject.open();
    let lease = registry.grant(subject.shortest_lease()).unwrap();
    let puts = vec![Put::leased("a", b"x".to_vec(), lease)];
    let revision = commit(&*registry, &Transaction { puts, ..Transaction::default() });
    let mut watch = registry.watch("", revision).unwrap();
    let other = subject.database();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    eventually("its key cannot be seen any more", || registry.get("a").unwrap().is_none());
    assert_eq!(watch.next(Some(Duration::from_millis(100))).unwrap(), [], "nobody could write it down");
    other.execute_batch("ROLLBACK").unwrap();
    let events = watch.next(Some(Duration::from_secs(30))).unwrap();
    assert!(matches!(&events[..], [event] if event.entry.is_none()), "{events:?}");
}

#[test]
fn what_happened_is_forgotten_by_and_by_and_the_file_stays_small() {
    let subject = own();
    let registry = subject.open();
    let big = || vec![7; 512 << 10];
    for number in 0..300 {
        let puts = vec![Put::new(format!("{}", number % 4), big())];
        commit(&*registry, &Transaction { puts, ..Transaction::default() });
    }
    let length = std::fs::metadata(subject.directory().join("registry.db")).unwrap().len();
    assert!(length < 100 << 20, "150 MiB were written, and it has {length} bytes");
    assert!(matches!(registry.watch("", 1), Err(Failure::Compacted)));
    let last = registry.list("").unwrap().revision;
    assert_eq!(crate::watch_all(&*registry, last - 10).len(), 10);
}

#[test]
fn somebody_who_writes_all_the_time_is_waited_for_and_then_told_of() {
    let subject = own();
    let registry = subject.open();
    put(&*registry, "a", "1");
    let other = subject.database();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(value(&*registry, "a").unwrap(), "1", "who reads waits for nobody");
    let answer = registry.apply(&Transaction::replace("b", 0, b"1".to_vec()));
    let Err(Failure::Unavailable(error)) = answer else { panic!("{answer:?}") };
    assert!(error.to_string().contains("another process has been writing it for"), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    put(&*registry, "b", "1");
}

#[test]
fn a_watch_hears_of_a_writer_that_is_killed_and_of_a_lease_that_another_process_gave() {
    let subject = own();
    let registry = subject.open();
    let mut watch = registry.watch("batch/", 0).unwrap();
    let child = crate::child::Child::start("write", &subject.address(), &["killed"]);
    let mut heard = 0;
    eventually("it writes", || {
        heard += watch.next(Some(Duration::from_secs(1))).unwrap().len();
        heard > 100
    });
    child.kill();
    let mut last = Vec::new();
    while let Some(event) = watch.next(Some(Duration::from_millis(500))).unwrap().pop() {
        last = event.entry.unwrap().value;
    }
    let there = registry.get("batch/killed/0").unwrap().unwrap().value;
    assert!(last.is_empty() || last == there, "what it did last was not told");
}

#[test]
fn threads_share_what_a_sync_costs() {
    let subject = own();
    let registry = subject.open();
    let (threads, each, begin) = (32, 100, Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let registry = &*registry;
            scope.spawn(move || (0..each).for_each(|number| _ = put(registry, &format!("{thread}/{number}"), "value")));
        }
    });
    let rate = f64::from(threads * each) / begin.elapsed().as_secs_f64();
    println!("{rate:.0} transactions a second from {threads} threads");
    assert_eq!(registry.list("").unwrap().entries.len(), 3200);
    let revisions = crate::watch_all(&*registry, 0);
    assert!(revisions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each has a revision of its own");
}
