//! What the daemon remembers over its own death and the machine's: keys with values, in one SQLite file.
//!
//! It has the shape of etcd's store: every transaction has a number, its *revision*, which only grows; every key knows
//! the revision that made it and the one that changed it last; a transaction is applied only if nobody changed what it
//! is based on.
//!
//! ```text
//! STORE/registry.db        the data; written by the one process that has it open
//! STORE/registry.db-wal    what was committed since the last checkpoint; there as long as the daemon lives, or since it
//!                          was killed
//! ```
//!
//! A transaction is on disk when it was applied: the log is written ahead and synced each time
//! (`journal_mode=WAL`, `synchronous=FULL`; <https://www.sqlite.org/pragma.html#pragma_synchronous>).

mod file;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::{Applied, Entry, Put, Transaction, VALUE_MAX};
use crate::error::{Error, Kind, Result};

pub use file::FILE;

/// An opened registry. Threads may share it; one is served after the other.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Sqlite {
    /// Opens the registry in a store's directory, which has to be there; makes it if there is none.
    ///
    /// # Errors
    /// [`Kind::Busy`] if another process has it open, [`Kind::Damaged`] if it is no registry any more,
    /// [`Kind::Unsupported`] if a newer regen wrote it or if it lies on a network's file system, [`Kind::System`] if it
    /// cannot be written.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let connection = file::open(&path)?;
        Ok(Self { path, connection: Mutex::new(connection) })
    }

    /// What a key has; `None` if it is not there.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn get(&self, key: &str) -> Result<Option<Entry>> {
        let query = "SELECT key, value, created, modified FROM entry WHERE key = ?1";
        let found = self.lock().query_row(query, [key], read_entry).optional();
        found.map_err(|error| self.explain(&error, "read"))
    }

    /// Every key that begins so, in their order.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let query = "SELECT key, value, created, modified FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key";
        // Keys are compared by their bytes, and no character has higher ones.
        let end = format!("{prefix}{}", char::MAX);
        let connection = self.lock();
        let read =
            || connection.prepare(query)?.query_map([prefix, &end], read_entry)?.collect::<rusqlite::Result<_>>();
        read().map_err(|error| self.explain(&error, "read"))
    }

    /// Makes all changes of a transaction, or none.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a value that is too long, [`Kind::NoSpace`], else those of writing the file; nothing was
    /// changed then.
    pub fn apply(&self, transaction: &Transaction) -> Result<Applied> {
        if let Some(Put { key, value, .. }) = transaction.puts.iter().find(|put| put.value.len() > VALUE_MAX) {
            let cause = format!("'{key}' would have {} bytes, at most {VALUE_MAX} are possible", value.len());
            return Err(Error::new(Kind::Invalid, self.operation("write"), cause));
        }
        apply(&mut self.lock(), transaction).map_err(|error| self.explain(&error, "write"))
    }

    /// A thread that panicked left a transaction that was rolled back.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operation(&self, verb: &str) -> String {
        file::operation(verb, &self.path)
    }

    fn explain(&self, error: &rusqlite::Error, verb: &str) -> Error {
        file::explain(error, self.operation(verb), &self.path)
    }
}

fn apply(connection: &mut Connection, changes: &Transaction) -> rusqlite::Result<Applied> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for compare in &changes.compares {
        let query = "SELECT modified FROM entry WHERE key = ?1";
        let modified: Option<u64> = transaction.query_row(query, [&compare.key], |row| row.get(0)).optional()?;
        if modified.unwrap_or(0) != compare.modified {
            return Ok(Applied::Refused);
        }
    }
    let next = "UPDATE revision SET number = number + 1 RETURNING number";
    let revision: u64 = transaction.query_row(next, [], |row| row.get(0))?;
    for Put { key, value, .. } in &changes.puts {
        let put = "INSERT INTO entry (key, value, created, modified) VALUES (?1, ?2, ?3, ?3) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value, modified = excluded.modified";
        transaction.execute(put, params![key, value, revision])?;
    }
    for key in &changes.deletes {
        transaction.execute("DELETE FROM entry WHERE key = ?1", [key])?;
    }
    transaction.commit()?;
    Ok(Applied::Committed(revision))
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, created: row.get(2)?, modified: row.get(3)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Sqlite) {
        let directory = tempfile::tempdir().unwrap();
        let registry = Sqlite::open(directory.path()).unwrap();
        (directory, registry)
    }

    fn put(registry: &Sqlite, key: &str, value: &str) -> u64 {
        let puts = vec![Put::new(key, value.as_bytes().to_vec())];
        match registry.apply(&Transaction { puts, ..Transaction::default() }).unwrap() {
            Applied::Committed(revision) => revision,
            Applied::Refused => panic!("nothing was compared"),
        }
    }

    fn keys(registry: &Sqlite, prefix: &str) -> Vec<String> {
        registry.list(prefix).unwrap().into_iter().map(|entry| entry.key).collect()
    }

    #[test]
    fn keys_know_the_revisions_that_made_and_changed_them() {
        let (_directory, registry) = registry();
        let (first, second) = (put(&registry, "service/a/1.0.0", "one"), put(&registry, "service/a/1.0.0", "two"));
        assert!(second > first);
        let entry = registry.get("service/a/1.0.0").unwrap().unwrap();
        assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (&b"two"[..], first, second));
        assert_eq!(registry.get("service/a").unwrap(), None);
    }

    #[test]
    fn a_prefix_finds_what_is_below_it_and_nothing_beside_it() {
        let (_directory, registry) = registry();
        for key in ["service/ab/1.0.0", "service/a/2.0.0", "service/a/1.0.0", "service/a", "servicf"] {
            put(&registry, key, "x");
        }
        assert_eq!(keys(&registry, "service/a/"), ["service/a/1.0.0", "service/a/2.0.0"]);
        assert_eq!(keys(&registry, "").len(), 5);
    }

    #[test]
    fn a_transaction_on_an_old_view_changes_nothing() {
        let (_directory, registry) = registry();
        let absent = Transaction::replace("a", 0, b"1".to_vec());
        let Applied::Committed(revision) = registry.apply(&absent).unwrap() else { panic!("it was not there") };
        assert_eq!(registry.apply(&absent).unwrap(), Applied::Refused);
        let mut both = Transaction::replace("a", revision, b"2".to_vec());
        both.compares.push(super::super::Compare { key: "b".to_owned(), modified: 7 });
        both.deletes.push("a".to_owned());
        assert_eq!(registry.apply(&both).unwrap(), Applied::Refused);
        assert_eq!(registry.get("a").unwrap().unwrap().value, b"1");
        let good = Transaction { deletes: vec!["a".into(), "never".into()], ..Transaction::default() };
        assert_eq!(registry.apply(&good).unwrap(), Applied::Committed(revision + 1), "refusals have no revision");
        assert_eq!(registry.get("a").unwrap(), None);
    }

    #[test]
    fn what_was_applied_is_there_after_the_next_start() {
        let (directory, registry) = registry();
        let revision = put(&registry, "a", "1");
        drop(registry);
        let registry = Sqlite::open(directory.path()).unwrap();
        assert_eq!(registry.get("a").unwrap().unwrap().modified, revision);
        assert!(put(&registry, "b", "2") > revision, "revisions grow over restarts");
    }

    #[test]
    fn a_value_that_is_too_long_is_refused() {
        let (_directory, registry) = registry();
        let error = registry.apply(&Transaction::replace("a", 0, vec![0; VALUE_MAX + 1])).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(registry.apply(&Transaction::replace("a", 0, vec![0; VALUE_MAX])).is_ok());
    }
}
