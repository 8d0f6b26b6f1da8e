//! The registry of one machine: one SQLite file on a local disk, which several processes have open at once.
//!
//! ```text
//! STORE/registry.db        the data
//! STORE/registry.db-wal    what was committed since the last checkpoint
//! STORE/registry.db-shm    where what is in there: memory of those who have it open
//! STORE/registry.db-bell   empty; closed by everybody who has committed something, so that others hear of it (`watch`)
//! ```
//!
//! A transaction is on disk when it was applied: the log is written ahead and synced each time
//! (`journal_mode=WAL`, `synchronous=FULL`; <https://www.sqlite.org/pragma.html#pragma_synchronous>). Threads that write
//! at the same time share that (`group`). Who reads waits for nobody.
//!
//! What happened is remembered for about 20,000 changes or 64 MiB (`history`).

mod file;
mod format;
mod group;
mod history;
mod lease;
mod transaction;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, TransactionBehavior, params};

use super::{Answer, Applied, Entry, Failure, Lease, Listing, Registry, Renewed, Transaction, Watch};
use crate::error::{Error, Kind, Result};
use group::Group;
use history::{Look, Tally};
use lease::Clock;
use transaction::{Fault, Outcome, Round};

pub use file::FILE;

/// An opened registry. Threads may share it.
#[derive(Debug)]
pub struct Sqlite(Arc<Shared>);

/// What it shares with those who watch.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    bell: PathBuf,
    identity: String,
    clock: Clock,
    writer: Mutex<Writer>,
    reader: Mutex<Connection>,
    group: Group<Demand, Answer<Outcome>>,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    tally: Tally,
}

/// What somebody wants to change.
#[derive(Debug)]
enum Demand {
    Apply(Transaction),
    Grant(Duration),
    Renew(Lease),
    Revoke(Lease),
    /// Only what every change does first: leases that are over are ended.
    Expire,
}

impl Sqlite {
    /// Opens the registry in a store's directory, which has to be there; makes it if there is none.
    ///
    /// # Errors
    /// [`Kind::Busy`] if another process has it for itself, [`Kind::Damaged`] if it is no registry any more,
    /// [`Kind::Unsupported`] if a newer regen wrote it or if it lies on a network's file system, [`Kind::System`] if it
    /// cannot be written.
    pub fn open(directory: &Path) -> Result<Self> {
        let (path, bell) = (directory.join(FILE), directory.join(format!("{FILE}-bell")));
        let file::Opened { writer, reader, identity } = file::open(&path, &bell)?;
        let writer = Mutex::new(Writer { connection: writer, tally: Tally::default() });
        let (clock, reader, group) = (Clock::new()?, Mutex::new(reader), Group::new());
        Ok(Self(Arc::new(Shared { path, bell, identity, clock, writer, reader, group })))
    }
}

impl Registry for Sqlite {
    fn identity(&self) -> Answer<String> {
        Ok(self.0.identity.clone())
    }

    fn get(&self, key: &str) -> Answer<Option<Entry>> {
        let query = "SELECT key, value, created, modified FROM entry WHERE key = ?1 \
                     AND (lease IS NULL OR lease IN (SELECT number FROM lease WHERE boot = ?2 AND until > ?3))";
        let connection = lock(&self.0.reader);
        let read = || {
            let values = params![key, self.0.clock.boot(), self.0.clock.now()];
            connection.prepare_cached(query)?.query_row(values, read_entry).optional()
        };
        read().map_err(|error| self.0.cannot_read(&error))
    }

    fn list(&self, prefix: &str) -> Answer<Listing> {
        let mut connection = lock(&self.0.reader);
        list(&mut connection, &self.0.clock, prefix).map_err(|error| self.0.cannot_read(&error))
    }

    fn apply(&self, transaction: &Transaction) -> Answer<Applied> {
        transaction::check(transaction, &self.0.operation("write")).map_err(Failure::Refused)?;
        let outcome = self.0.ask(Demand::Apply(transaction.clone()))?;
        Ok(outcome.map_or(Applied::Refused, Applied::Committed))
    }

    fn grant(&self, time: Duration) -> Answer<Lease> {
        let number = self.0.ask(Demand::Grant(time))?;
        number.map(Lease).ok_or_else(|| {
            Failure::Refused(Error::new(Kind::Damaged, self.0.operation("write"), "a lease has no number"))
        })
    }

    fn renew(&self, lease: Lease) -> Answer<Renewed> {
        Ok(self.0.ask(Demand::Renew(lease))?.map_or(Renewed::Gone, |_| Renewed::Yes))
    }

    fn revoke(&self, lease: Lease) -> Answer<()> {
        self.0.ask(Demand::Revoke(lease)).map(|_| ())
    }

    fn watch(&self, prefix: &str, after: u64) -> Answer<Box<dyn Watch>> {
        Ok(Box::new(watch::Watcher::new(Arc::clone(&self.0), prefix, after)?))
    }
}

impl Demand {
    fn weight(&self) -> usize {
        match self {
            Self::Apply(transaction) => transaction::weight(transaction),
            Self::Grant(_) | Self::Renew(_) | Self::Revoke(_) | Self::Expire => 0,
        }
    }

    fn carry_out(&self, round: &mut Round<'_>) -> Result<Outcome, Fault> {
        Ok(match self {
            Self::Apply(changes) => transaction::apply(round, changes)?,
            Self::Grant(time) => lease::grant(round, *time)?,
            Self::Renew(lease) => lease::renew(round, *lease)?,
            Self::Revoke(lease) => lease::revoke(round, *lease)?,
            Self::Expire => None,
        })
    }
}

impl Shared {
    fn expire(&self) -> Answer<()> {
        self.ask(Demand::Expire).map(|_| ())
    }

    /// Has something done together with what others want at the same time.
    fn ask(&self, demand: Demand) -> Answer<Outcome> {
        let weight = demand.weight();
        let answer = self.group.ask(demand, weight, |demands| self.commit(&demands));
        answer.unwrap_or_else(|| {
            let cause = "the thread that was at it did not come back";
            Err(Failure::Indeterminate(Error::new(Kind::System, self.operation("write"), cause)))
        })
    }

    fn commit(&self, demands: &[Demand]) -> Vec<Answer<Outcome>> {
        let mut writer = lock(&self.writer);
        match self.attempt(&mut writer, demands) {
            Ok(answers) => answers,
            // One may be what the disk has no room for, and the others are not.
            Err(Failure::Refused(_)) if demands.len() > 1 => demands
                .chunks(1)
                .map(|one| self.attempt(&mut writer, one).and_then(|mut answers| answers.pop().unwrap_or(Ok(None))))
                .collect(),
            Err(failure) => vec![Err(failure); demands.len()],
        }
    }

    /// All of them in one transaction of SQLite's; the failure of all of them, if it is that which fails.
    fn attempt(&self, writer: &mut Writer, demands: &[Demand]) -> Answer<Vec<Answer<Outcome>>> {
        let cannot = |error: rusqlite::Error| self.cannot_write(&error);
        let begin = writer.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begin.map_err(cannot)?;
        let mut round = Round::begin(&transaction, &self.clock).map_err(cannot)?;
        lease::expire(&mut round).map_err(cannot)?;
        let mut answers = Vec::with_capacity(demands.len());
        for demand in demands {
            let before = round.at;
            round.execute("SAVEPOINT one", []).map_err(cannot)?;
            let done = demand.carry_out(&mut round);
            if done.is_err() {
                // Fails if SQLite has taken everything back already.
                round.execute("ROLLBACK TO one", []).map_err(cannot)?;
                round.at = before;
            }
            round.execute("RELEASE one", []).map_err(cannot)?;
            answers.push(done.map_err(|fault| self.explain_fault(&fault)));
        }
        if round.at.changes == 0 {
            return Ok(answers);
        }
        let tally = writer.tally.add(&mut round).map_err(cannot)?;
        round.end().map_err(cannot)?;
        // Rings when it is dropped, after the commit.
        let _bell = watch::grasp(&self.bell).map_err(Failure::Unavailable)?;
        transaction.commit().map_err(|error| self.cannot_commit(&error))?;
        writer.tally = tally;
        Ok(answers)
    }

    fn look(&self, prefix: &str, after: u64) -> Answer<Look> {
        let look = history::look(&mut lock(&self.reader), &self.clock, prefix, after);
        look.map_err(|error| self.cannot_read(&error))?.ok_or(Failure::Compacted)
    }

    fn operation(&self, verb: &str) -> String {
        file::operation(verb, &self.path)
    }

    fn explain_fault(&self, fault: &Fault) -> Failure {
        match fault {
            Fault::Sql(error) => self.cannot_write(error),
            Fault::NoLease(lease) => {
                let cause = format!("the lease {} is over", lease.0);
                Failure::Refused(Error::new(Kind::NotFound, self.operation("write"), cause))
            }
        }
    }

    fn cannot_read(&self, error: &rusqlite::Error) -> Failure {
        classify(error, file::explain_use(error, self.operation("read"), &self.path))
    }

    /// Nothing of it was committed.
    fn cannot_write(&self, error: &rusqlite::Error) -> Failure {
        classify(error, file::explain_use(error, self.operation("write"), &self.path))
    }

    /// A commit that had no room is taken back, and no process has seen it. What else fails (the disk does not say whether
    /// it has it) may turn out to be there when the file is opened after a crash.
    fn cannot_commit(&self, error: &rusqlite::Error) -> Failure {
        match self.cannot_write(error) {
            Failure::Unavailable(_) if is_busy(error) => self.cannot_write(error),
            Failure::Unavailable(error) | Failure::Indeterminate(error) => Failure::Indeterminate(error),
            refused @ (Failure::Refused(_) | Failure::Compacted) => refused,
        }
    }
}

/// Who waits for another process, or finds the disk at fault, may have better luck later.
fn classify(error: &rusqlite::Error, explained: Error) -> Failure {
    let passing = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory | ErrorCode::OperationInterrupted)
    );
    if is_busy(error) || (passing && explained.kind() == Kind::System) {
        Failure::Unavailable(explained)
    } else {
        Failure::Refused(explained)
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn list(connection: &mut Connection, clock: &Clock, prefix: &str) -> rusqlite::Result<Listing> {
    let query = "SELECT key, value, created, modified FROM entry WHERE key >= ?1 AND key < ?2 \
                 AND (lease IS NULL OR lease IN (SELECT number FROM lease WHERE boot = ?3 AND until > ?4)) ORDER BY key";
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
    let revision = transaction.prepare_cached("SELECT number FROM revision")?.query_row([], |row| row.get(0))?;
    let values = params![prefix, end_of(prefix), clock.boot(), clock.now()];
    let entries = transaction.prepare_cached(query)?.query_map(values, read_entry)?.collect::<Result<_, _>>()?;
    Ok(Listing { revision, entries })
}

/// What comes after all that begins so: keys are compared by their bytes, and no character has higher ones.
fn end_of(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, created: row.get(2)?, modified: row.get(3)? })
}

/// A thread that panicked left a transaction that was rolled back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
