//! What is in the file, and how an older one becomes a newer one.

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// What is in it, as `PRAGMA user_version` has it.
pub(super) const VERSION: i64 = 2;
/// Marks the file as ours for file(1) and for us: `rgen`.
const APPLICATION: i64 = 0x7267_656e;

/// Version 1: keys with values, of one process.
const FIRST: &str = "
    CREATE TABLE entry (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE revision (number INTEGER NOT NULL) STRICT;
    INSERT INTO revision VALUES (0);
";

/// Version 2: leases, and what happened. Numbers of leases are never used again. What happened before is not known: it
/// counts as compacted.
const SECOND: &str = "
    CREATE TABLE next (
        key TEXT PRIMARY KEY NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        lease INTEGER,
        -- The last: what stands behind a long value is only found by reading all of it.
        value BLOB NOT NULL
    ) WITHOUT ROWID, STRICT;
    INSERT INTO next SELECT key, created, modified, NULL, value FROM entry;
    DROP TABLE entry;
    ALTER TABLE next RENAME TO entry;
    CREATE INDEX leased ON entry (lease) WHERE lease IS NOT NULL;
    CREATE TABLE lease (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        boot TEXT NOT NULL,
        time INTEGER NOT NULL,
        until INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE history (
        revision INTEGER NOT NULL,
        key TEXT NOT NULL,
        created INTEGER NOT NULL,
        value BLOB,
        PRIMARY KEY (revision, key)
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE about (identity TEXT NOT NULL, compacted INTEGER NOT NULL) STRICT;
    INSERT INTO about SELECT lower(hex(randomblob(16))), number FROM revision;
";

/// What a file says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing yet.
    Empty,
    /// A registry of this version.
    Ours(i64),
    /// Another program's database.
    Foreign,
}

pub(super) fn look(connection: &Connection) -> rusqlite::Result<Found> {
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    Ok(match (number("PRAGMA application_id")?, tables) {
        (APPLICATION, _) => Found::Ours(number("PRAGMA user_version")?),
        (0, 0) => Found::Empty,
        _ => Found::Foreign,
    })
}

/// Makes the file what this version has, in one transaction: a crash leaves the old or the new. Also where there is nothing
/// to do, it finds out whether the file can be written.
pub(super) fn bring_up(connection: &mut Connection, found: Found) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match found {
        Found::Empty => {
            transaction.execute_batch(FIRST)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            to_second(&transaction)?;
        }
        Found::Ours(1) => to_second(&transaction)?,
        Found::Ours(_) | Found::Foreign => {}
    }
    transaction.commit()
}

fn to_second(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(SECOND)?;
    transaction.pragma_update(None, "user_version", VERSION)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    /// A file as the first version left it, with one key.
    pub fn make_first(path: &Path, value: &[u8]) {
        let connection = Connection::open(path).unwrap();
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
        connection.execute_batch(FIRST).unwrap();
        connection.pragma_update(None, "application_id", APPLICATION).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection.execute("INSERT INTO entry VALUES ('service/a/1.0.0', ?1, 3, 7)", [value]).unwrap();
        connection.execute("UPDATE revision SET number = 7", []).unwrap();
    }

    #[test]
    fn a_change_of_format_that_breaks_off_leaves_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.db");
        make_first(&path, b"one");
        let mut connection = Connection::open(&path).unwrap();
        // All of it but the commit, as a process that is killed leaves it.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        to_second(&transaction).unwrap();
        assert_eq!(look(&transaction).unwrap(), Found::Ours(2));
        drop(transaction);
        assert_eq!(look(&connection).unwrap(), Found::Ours(1));
        bring_up(&mut connection, Found::Ours(1)).unwrap();
        assert_eq!(look(&connection).unwrap(), Found::Ours(2));
    }
}
