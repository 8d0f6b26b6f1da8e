//! What a transaction does to the tables, within one of SQLite's that it shares with others.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};

use super::super::{CHANGES_MAX, Lease, Put, Transaction, VALUE_MAX};
use super::lease::{self, Clock};
use crate::error::{Error, Kind};

/// What a change came to: the number of a revision or of a lease, where there is one.
pub(super) type Outcome = Option<u64>;

/// Why a change is not made.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file.
    Sql(rusqlite::Error),
    /// There is no such lease any more.
    NoLease(Lease),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// Changes on their way, all of one transaction of SQLite's.
#[derive(Debug)]
pub(super) struct Round<'a> {
    pub connection: &'a Connection,
    pub clock: &'a Clock,
    /// How far it is.
    pub at: Progress,
}

/// What was changed until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// The last revision.
    pub revision: u64,
    /// Rows of the history that were added.
    pub events: usize,
    /// Bytes that were added to it.
    pub bytes: usize,
    /// Statements that changed something.
    pub changes: usize,
}

/// Refuses what no registry takes.
///
/// # Errors
/// [`Kind::Invalid`] for a value that is too long, too many compares or changes, and a key that is named twice.
pub(super) fn check(transaction: &Transaction, operation: &str) -> Result<(), Error> {
    let invalid = |cause: String| Err(Error::new(Kind::Invalid, operation, cause));
    let Transaction { compares, puts, deletes } = transaction;
    if let Some(Put { key, value, .. }) = puts.iter().find(|put| put.value.len() > VALUE_MAX) {
        return invalid(format!("'{key}' would have {} bytes, at most {VALUE_MAX} are possible", value.len()));
    }
    let changes = puts.len() + deletes.len();
    if compares.len().max(changes) > CHANGES_MAX {
        let (compares, most) = (compares.len(), CHANGES_MAX);
        return invalid(format!("{compares} compares and {changes} changes at once, at most {most} are possible"));
    }
    let mut known = BTreeSet::new();
    let mut keys = puts.iter().map(|put| &put.key).chain(deletes);
    match keys.find(|key| !known.insert(*key)) {
        Some(key) => invalid(format!("'{key}' would be changed twice at once")),
        None => Ok(()),
    }
}

/// How much a transaction writes.
pub(super) fn weight(transaction: &Transaction) -> usize {
    transaction.puts.iter().map(|put| put.key.len() + put.value.len()).sum()
}

/// Makes all changes; nothing if something that is compared is different.
pub(super) fn apply(round: &mut Round<'_>, changes: &Transaction) -> Result<Outcome, Fault> {
    for compare in &changes.compares {
        let query = "SELECT modified FROM entry WHERE key = ?1";
        let mut query = round.connection.prepare_cached(query)?;
        let modified: Option<u64> = query.query_row([&compare.key], |row| row.get(0)).optional()?;
        if modified.unwrap_or(0) != compare.modified {
            return Ok(None);
        }
    }
    let leases: BTreeSet<_> = changes.puts.iter().filter_map(|put| put.lease).collect();
    if let Some(gone) = lease::find_gone(round, leases)? {
        return Err(Fault::NoLease(gone));
    }
    let revision = round.at.revision + 1;
    let before = round.at.changes;
    for put in &changes.puts {
        round.put(put, revision)?;
    }
    for key in &changes.deletes {
        round.delete(key, revision)?;
    }
    if round.at.changes > before {
        round.at.revision = revision;
    }
    Ok(Some(round.at.revision))
}

impl<'a> Round<'a> {
    pub(super) fn begin(connection: &'a Connection, clock: &'a Clock) -> rusqlite::Result<Self> {
        let mut query = connection.prepare_cached("SELECT number FROM revision")?;
        let revision = query.query_row([], |row| row.get(0))?;
        Ok(Self { connection, clock, at: Progress { revision, events: 0, bytes: 0, changes: 0 } })
    }

    /// Writes down how far it came.
    pub(super) fn end(&mut self) -> rusqlite::Result<()> {
        self.execute("UPDATE revision SET number = ?1 WHERE number <> ?1", [self.at.revision])?;
        Ok(())
    }

    /// Runs a statement, which is kept ready for the next time.
    pub(super) fn execute(&self, statement: &str, values: impl rusqlite::Params) -> rusqlite::Result<usize> {
        self.connection.prepare_cached(statement)?.execute(values)
    }

    fn put(&mut self, put: &Put, revision: u64) -> rusqlite::Result<()> {
        let Put { key, value, lease } = put;
        self.keep_old(key)?;
        let statement = "INSERT INTO entry (key, value, created, modified, lease) VALUES (?1, ?2, ?3, ?3, ?4) \
                         ON CONFLICT (key) DO UPDATE SET value = excluded.value, modified = excluded.modified, \
                         lease = excluded.lease RETURNING created";
        let values = params![key, value, revision, lease.map(|lease| lease.0)];
        let mut statement = self.connection.prepare_cached(statement)?;
        let created: u64 = statement.query_row(values, |row| row.get(0))?;
        drop(statement);
        self.tell(key, revision, created)
    }

    /// Takes a key away, if it is there.
    pub(super) fn delete(&mut self, key: &str, revision: u64) -> rusqlite::Result<()> {
        self.keep_old(key)?;
        if self.execute("DELETE FROM entry WHERE key = ?1", [key])? > 0 {
            self.tell(key, revision, 0)?;
        }
        Ok(())
    }

    /// What the history says of a key's last change has its value in the entry itself, until that gets another.
    fn keep_old(&mut self, key: &str) -> rusqlite::Result<()> {
        let statement = "UPDATE history SET value = entry.value FROM entry WHERE entry.key = ?1 \
                         AND history.revision = entry.modified AND history.key = ?1 RETURNING length(history.value)";
        let mut statement = self.connection.prepare_cached(statement)?;
        let kept: Option<usize> = statement.query_row([key], |row| row.get(0)).optional()?;
        self.at.bytes += kept.unwrap_or(0);
        Ok(())
    }

    /// Adds a line to the history; `created` is 0 for a key that went.
    fn tell(&mut self, key: &str, revision: u64, created: u64) -> rusqlite::Result<()> {
        let statement = "INSERT INTO history (revision, key, created, value) VALUES (?1, ?2, ?3, NULL)";
        self.execute(statement, params![revision, key, created])?;
        self.at.events += 1;
        self.at.bytes += key.len();
        self.at.changes += 1;
        Ok(())
    }
}
