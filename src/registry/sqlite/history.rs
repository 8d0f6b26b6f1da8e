//! What happened: a line for each change of a key, until there are too many.
//!
//! The value of a key's last change is in its entry; the line gets it when the next change comes. So no value is there
//! twice, and every line that is told of has the value that the key had then.

use rusqlite::{Connection, TransactionBehavior, params};

use super::super::{Entry, Event};
use super::lease::{self, Clock, Due};
use super::transaction::Round;

/// How many lines are kept, about.
const LINES: usize = 20_000;
/// How many bytes of keys and values are kept, about.
const BYTES: usize = 64 << 20;
/// After how many more of each one sees whether there are too many.
const MORE_LINES: usize = 1000;
const MORE_BYTES: usize = 8 << 20;
/// About how many are told at once. Those of one revision come together.
const PART: usize = 1000;
const PART_BYTES: usize = 4 << 20;

/// What one who has the file open added since it saw last how long the history is.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    lines: usize,
    bytes: usize,
}

/// What a watch sees.
#[derive(Debug)]
pub(super) struct Look {
    pub events: Vec<Event>,
    /// The last revision that was looked at.
    pub through: u64,
    pub rest: Rest,
    /// When the next lease is over.
    pub due: Due,
}

/// Whether there is more to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// That was all.
    Nothing,
    /// It would have been too much at once.
    More,
}

impl Tally {
    /// With what a round has added; makes the history shorter if it is time for it.
    pub(super) fn add(mut self, round: &mut Round<'_>) -> rusqlite::Result<Self> {
        self.lines += round.at.events;
        self.bytes += round.at.bytes;
        if self.lines < MORE_LINES && self.bytes < MORE_BYTES {
            return Ok(self);
        }
        compact(round)?;
        Ok(Self::default())
    }
}

fn compact(round: &Round<'_>) -> rusqlite::Result<()> {
    let query = "SELECT revision, length(key) + ifnull(length(value), 0) FROM history ORDER BY revision DESC";
    let mut query = round.connection.prepare_cached(query)?;
    let (mut rows, mut lines, mut bytes) = (query.query([])?, 0, 0);
    let mut last = None;
    while let Some(row) = rows.next()? {
        lines += 1;
        bytes += row.get::<_, usize>(1)?;
        if lines > LINES || bytes > BYTES {
            last = Some(row.get::<_, u64>(0)?);
            break;
        }
    }
    drop(rows);
    if let Some(last) = last {
        round.execute("DELETE FROM history WHERE revision <= ?1", [last])?;
        round.execute("UPDATE about SET compacted = ?1", [last])?;
    }
    Ok(())
}

/// What happened after a revision to keys that begin so; `None` if that is not all known any more.
pub(super) fn look(
    connection: &mut Connection,
    clock: &Clock,
    prefix: &str,
    after: u64,
) -> rusqlite::Result<Option<Look>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
    let mut query = transaction.prepare_cached("SELECT compacted, number FROM about, revision")?;
    let (compacted, now): (u64, u64) = query.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    drop(query);
    if after < compacted {
        return Ok(None);
    }
    let mut look = Look { events: Vec::new(), through: now.max(after), rest: Rest::Nothing, due: Due::Never };
    if after < now {
        read(&transaction, prefix, after, &mut look)?;
    }
    look.due = lease::next_due(&transaction, clock)?;
    transaction.finish()?;
    Ok(Some(look))
}

fn read(connection: &Connection, prefix: &str, after: u64, look: &mut Look) -> rusqlite::Result<()> {
    let query = "SELECT history.revision, history.key, history.created, ifnull(history.value, entry.value) \
                 FROM history LEFT JOIN entry ON entry.key = history.key AND entry.modified = history.revision \
                 WHERE history.revision > ?1 AND history.key >= ?2 AND history.key < ?3 \
                 ORDER BY history.revision, history.key";
    let mut query = connection.prepare_cached(query)?;
    let mut rows = query.query(params![after, prefix, super::end_of(prefix)])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let revision = row.get(0)?;
        let last = look.events.last().map_or(revision, |event| event.revision);
        if revision != last && (look.events.len() >= PART || bytes >= PART_BYTES) {
            look.through = last;
            look.rest = Rest::More;
            break;
        }
        let (key, created): (String, u64) = (row.get(1)?, row.get(2)?);
        let mut entry = None;
        if created > 0 {
            let value: Vec<u8> = row.get(3)?;
            bytes += value.len();
            entry = Some(Entry { key: key.clone(), value, created, modified: revision });
        }
        look.events.push(Event { key, entry, revision });
    }
    Ok(())
}
