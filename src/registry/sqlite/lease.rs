//! Leases: rows with an end, which is a time of this boot. The wall clock may be set at any moment; the kernel's count
//! since boot only grows, also while the machine sleeps (`CLOCK_BOOTTIME`, clock_gettime(2)). Nobody who held a lease
//! before the last boot is still there: such a lease is over.

use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use rustix::time::{ClockId, clock_gettime};

use super::super::Lease;
use super::transaction::{Outcome, Round};
use crate::error::Result;
use crate::sys::process::boot_id;

/// What time it is, in a boot.
#[derive(Debug)]
pub(super) struct Clock {
    boot: String,
}

impl Clock {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { boot: boot_id()? })
    }

    /// Whole milliseconds since the boot.
    pub(super) fn now(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
        seconds.unwrap_or_default() * 1000 + nanoseconds.unwrap_or_default() / 1_000_000
    }

    /// When so much time will be over for certain.
    fn after(&self, milliseconds: u64) -> u64 {
        self.now() + 1 + milliseconds
    }

    /// Which boot.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }
}

/// When something has to be done about leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// There is none.
    Never,
    /// At this time, in milliseconds since the boot.
    At(u64),
    /// One is over, and was not ended yet.
    Now,
}

/// A lease for so long.
pub(super) fn grant(round: &mut Round<'_>, time: Duration) -> rusqlite::Result<Outcome> {
    // Half of what a column takes; nobody waits longer.
    let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 2);
    let statement = "INSERT INTO lease (boot, time, until) VALUES (?1, ?2, ?3)";
    round.execute(statement, params![round.clock.boot(), time, round.clock.after(time)])?;
    round.at.changes += 1;
    Ok(u64::try_from(round.connection.last_insert_rowid()).ok())
}

/// Its whole time again; nothing if it is gone.
pub(super) fn renew(round: &mut Round<'_>, lease: Lease) -> rusqlite::Result<Outcome> {
    let statement = "UPDATE lease SET until = ?2 + time WHERE number = ?1";
    let changed = round.execute(statement, params![lease.0, round.clock.after(0)])?;
    round.at.changes += changed;
    Ok((changed > 0).then_some(lease.0))
}

/// Takes a lease away, and its keys, as one revision.
pub(super) fn revoke(round: &mut Round<'_>, lease: Lease) -> rusqlite::Result<Outcome> {
    let mut query = round.connection.prepare_cached("SELECT key FROM entry WHERE lease = ?1")?;
    let keys: Vec<String> = query.query_map([lease.0], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    drop(query);
    let revision = round.at.revision + 1;
    for key in &keys {
        round.delete(key, revision)?;
    }
    if !keys.is_empty() {
        round.at.revision = revision;
    }
    round.at.changes += round.execute("DELETE FROM lease WHERE number = ?1", [lease.0])?;
    Ok(None)
}

/// Ends those whose time is over.
pub(super) fn expire(round: &mut Round<'_>) -> rusqlite::Result<()> {
    let query = "SELECT number FROM lease WHERE boot <> ?1 OR until <= ?2 ORDER BY number";
    let mut query = round.connection.prepare_cached(query)?;
    let read = query.query_map(params![round.clock.boot(), round.clock.now()], |row| row.get(0))?;
    let over: Vec<u64> = read.collect::<rusqlite::Result<_>>()?;
    drop(query);
    for number in over {
        revoke(round, Lease(number))?;
    }
    Ok(())
}

/// One that is not there, if there is one. Those that are over were taken away before.
pub(super) fn find_gone(round: &Round<'_>, leases: BTreeSet<Lease>) -> rusqlite::Result<Option<Lease>> {
    for lease in leases {
        let mut query = round.connection.prepare_cached("SELECT 1 FROM lease WHERE number = ?1")?;
        if query.query_row([lease.0], |_| Ok(())).optional()?.is_none() {
            return Ok(Some(lease));
        }
    }
    Ok(None)
}

/// When the next one is over.
pub(super) fn next_due(connection: &Connection, clock: &Clock) -> rusqlite::Result<Due> {
    let query = "SELECT min(CASE WHEN boot = ?1 THEN until ELSE 0 END) FROM lease";
    let mut query = connection.prepare_cached(query)?;
    let first: Option<u64> = query.query_row([clock.boot()], |row| row.get(0))?;
    Ok(match first {
        None => Due::Never,
        Some(until) if until <= clock.now() => Due::Now,
        Some(until) => Due::At(until),
    })
}
