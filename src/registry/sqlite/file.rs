//! The file itself: opened, checked, and what SQLite says about it in words.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::statfs;

use crate::error::{Context, Error, Kind, Result, quote};

/// The file's name below the store.
pub const FILE: &str = "registry.db";
/// What is in it, as `PRAGMA user_version` has it.
const VERSION: i64 = 1;
/// Marks the file as ours for file(1) and for us: `rgen`.
const APPLICATION: i64 = 0x7267_656e;
/// The smallest page that a file can have (<https://www.sqlite.org/fileformat2.html>).
const PAGE_MIN: u64 = 512;
/// How long a daemon that starts waits for the one before it to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Nobody else is let in while it is open (`locking_mode`), so no memory is shared with anybody and none is mapped. The
/// cache is small: a thousand services are a megabyte, and are read once.
const SETTINGS: &str = "
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA cache_size = -256;
    PRAGMA mmap_size = 0;
    PRAGMA temp_store = MEMORY;
    PRAGMA trusted_schema = OFF;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 256;
";

const SCHEMA: &str = "
    CREATE TABLE entry (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE revision (number INTEGER NOT NULL) STRICT;
    INSERT INTO revision VALUES (0);
";

pub(super) fn operation(verb: &str, path: &Path) -> String {
    format!("{verb} registry {}", quote(path))
}

/// Opens the file, or makes it.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let operation = operation("open", path);
    check_file_system(path, &operation)?;
    make_private(path).context(|| operation.clone())?;
    check_length(path, &operation)?;
    let explain = |error: &rusqlite::Error| explain(error, operation.clone(), path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|error| explain(&error))?;
    connection.busy_timeout(PATIENCE).map_err(|error| explain(&error))?;
    connection.execute_batch(SETTINGS).map_err(|error| explain(&error))?;
    let version = look(&connection).map_err(|error| explain(&error))?;
    check_version(&version, &operation, path)?;
    // The first look takes the lock for reading only: this one keeps others out, and finds a file that cannot be written.
    let make = |connection: &mut Connection| {
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        if version == Found::Empty {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()
    };
    make(&mut connection).map_err(|error| explain(&error))?;
    check_content(&connection, &operation, path)?;
    Ok(connection)
}

/// Environments of services have passwords in them. SQLite's other files get the mode of this one.
fn make_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// SQLite takes a file that is too short for a page for an empty one, and would begin anew.
fn check_length(path: &Path, operation: &str) -> Result<()> {
    let found = std::fs::symlink_metadata(path).context(|| operation.to_owned())?;
    let length = found.len();
    if found.is_file() && (1..PAGE_MIN).contains(&length) {
        return Err(damaged(operation, &format!("it has {length} bytes, fewer than any database"), path));
    }
    Ok(())
}

/// What a file says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nothing yet.
    Empty,
    /// A registry of this version.
    Ours(i64),
    /// Another program's database.
    Foreign,
}

fn look(connection: &Connection) -> rusqlite::Result<Found> {
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    Ok(match (number("PRAGMA application_id")?, tables) {
        (APPLICATION, _) => Found::Ours(number("PRAGMA user_version")?),
        (0, 0) => Found::Empty,
        _ => Found::Foreign,
    })
}

fn check_version(found: &Found, operation: &str, path: &Path) -> Result<()> {
    match found {
        Found::Empty | Found::Ours(VERSION) => Ok(()),
        Found::Ours(other) => {
            let cause = format!("it has format version {other}, this regen knows {VERSION}");
            Err(Error::new(Kind::Unsupported, operation, cause).next("use the regen that wrote it, or a newer one"))
        }
        Found::Foreign => Err(damaged(operation, "it is a database of another program", path)),
    }
}

/// Pages that are torn are found now, not in the middle of a change. A thousand services are read in some milliseconds.
fn check_content(connection: &Connection, operation: &str, path: &Path) -> Result<()> {
    let checked: rusqlite::Result<String> = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match checked {
        Ok(text) if text == "ok" => {}
        Ok(text) => return Err(damaged(operation, &text.replace('\n', "; "), path)),
        Err(error) => return Err(explain(&error, operation.to_owned(), path)),
    }
    let tables = "SELECT (SELECT count(*) FROM revision) = 1 AND (SELECT count(modified) FROM entry) >= 0";
    match connection.query_row(tables, [], |row| row.get(0)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged(operation, "it does not know its revision", path)),
        Err(error) => Err(explain(&error, operation.to_owned(), path)),
    }
}

fn damaged(operation: &str, cause: &str, path: &Path) -> Error {
    let next =
        format!("put back a copy, or move it away and add the services again: mv {0} {0}.damaged", path.display());
    Error::new(Kind::Damaged, operation, cause).next(next)
}

/// What SQLite says, as one line of ours.
pub(super) fn explain(error: &rusqlite::Error, operation: String, path: &Path) -> Error {
    let code = error.sqlite_error_code();
    let text = match error {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
        other => other.to_string(),
    };
    match code {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(&operation, &text, path),
        // A table or a column of ours that is not there is damage too.
        Some(ErrorCode::Unknown) => damaged(&operation, &text, path),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::new(Kind::Busy, operation, "another process has it open")
                .next("end the other 'regen serve', or give another --store")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::SystemIoFailure) if !is_writable(path) => {
            Error::new(Kind::System, operation, "it cannot be written")
                .next(format!("make {} and its directory writable", quote(path)))
        }
        Some(ErrorCode::CannotOpen) => Error::new(Kind::System, operation, text)
            .next(format!("see that {} is a file that can be written, or can be made", quote(path))),
        Some(ErrorCode::DiskFull) => Error::new(Kind::NoSpace, operation, "the disk is full").next("make room"),
        _ => Error::new(Kind::System, operation, text),
    }
}

fn is_writable(path: &Path) -> bool {
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    writable(path) && path.parent().is_none_or(writable)
}

/// Locks and synced writes mean little where another machine has the disk
/// (<https://www.sqlite.org/faq.html#q5>). The numbers are those of statfs(2).
fn network(magic: u64) -> Option<&'static str> {
    match magic {
        0x6969 => Some("nfs"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Some("smb"),
        0x0102_1997 => Some("9p"),
        0x00c3_6400 => Some("ceph"),
        0x5346_414f | 0x6b41_4653 => Some("afs"),
        0x0bd0_0bd0 => Some("lustre"),
        _ => None,
    }
}

fn check_file_system(path: &Path, operation: &str) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let found = statfs(directory).context(|| operation.to_owned())?;
    match network(u64::try_from(found.f_type).unwrap_or_default()) {
        None => Ok(()),
        Some(name) => {
            let cause = format!("it lies on {name}, where locks and synced writes cannot be relied on");
            Err(Error::new(Kind::Unsupported, operation, cause).next("use '--store DIR' with DIR on a local disk"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use super::*;

    fn fails(path: &Path) -> Error {
        open(path).unwrap_err()
    }

    fn path() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        (directory, path)
    }

    #[test]
    fn every_transaction_is_synced_the_cache_is_small_and_others_cannot_look() {
        let (_directory, path) = path();
        let connection = open(&path).unwrap();
        let text = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, String>(0)).unwrap();
        let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(text("PRAGMA journal_mode"), "wal");
        assert_eq!((number("PRAGMA synchronous"), number("PRAGMA cache_size")), (2, -256));
        assert!(!path.with_file_name("registry.db-shm").exists(), "memory is shared with nobody");
        for name in [FILE, "registry.db-wal"] {
            let mode = fs::metadata(path.with_file_name(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn only_one_process_has_it_open() {
        let (_directory, path) = path();
        let first = open(&path).unwrap();
        let error = fails(&path);
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains("another process has it open"), "{error}");
        drop(first);
        open(&path).unwrap();
    }

    #[test]
    fn a_newer_format_is_not_touched() {
        let (_directory, path) = path();
        open(&path).unwrap().pragma_update(None, "user_version", VERSION + 1).unwrap();
        let before = fs::read(&path).unwrap();
        let error = fails(&path);
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("format version 2, this regen knows 1"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn damage_is_one_line_with_a_next_step() {
        let (_directory, path) = path();
        let connection = open(&path).unwrap();
        for number in 0..200 {
            let key = format!("key/{number}");
            connection.execute("INSERT INTO entry VALUES (?1, ?2, 1, 1)", (key, [7_u8; 100])).unwrap();
        }
        drop(connection);
        let good = fs::read(&path).unwrap();
        let torn = || {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[0xff; 4096], 8192).unwrap();
        };
        let short = || fs::write(&path, &good[..good.len() / 2 + 100]).unwrap();
        let text = || fs::write(&path, "this is no database at all, but a text\n".repeat(20)).unwrap();
        let word = || fs::write(&path, "gone").unwrap();
        let cases: [(&str, &dyn Fn()); 4] = [("torn", &torn), ("short", &short), ("text", &text), ("word", &word)];
        for (name, damage) in cases {
            fs::write(&path, &good).unwrap();
            damage();
            let error = fails(&path);
            assert_eq!(error.kind(), Kind::Damaged, "{name}: {error}");
            let line = error.to_string();
            assert!(line.starts_with(&format!("open registry '{}': ", path.display())), "{name}: {line}");
            assert!(line.contains("mv ") && !line.contains('\n'), "{name}: {line}");
        }
        fs::write(&path, &good).unwrap();
        open(&path).unwrap();
    }

    #[test]
    fn a_database_of_another_program_is_left_alone() {
        let (_directory, path) = path();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        let before = fs::read(&path).unwrap();
        let error = fails(&path);
        assert!(error.to_string().contains("another program"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn tables_that_are_gone_are_damage() {
        let (_directory, path) = path();
        open(&path).unwrap().execute_batch("DROP TABLE revision").unwrap();
        assert_eq!(fails(&path).kind(), Kind::Damaged);
        let (_directory, path) = self::path();
        open(&path).unwrap().execute_batch("DELETE FROM revision").unwrap();
        assert!(fails(&path).to_string().contains("its revision"));
    }

    #[test]
    fn what_is_no_file_cannot_be_opened() {
        let (_directory, path) = path();
        fs::create_dir(&path).unwrap();
        assert_eq!(fails(&path).kind(), Kind::System);
        assert_eq!(fails(&path.join("missing").join(FILE)).kind(), Kind::NotFound);
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert_eq!(fails(&path).kind(), Kind::System, "a link is not followed");
    }

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        assert_eq!(network(0x6969), Some("nfs"));
        assert_eq!(network(0xef53), None);
    }
}
