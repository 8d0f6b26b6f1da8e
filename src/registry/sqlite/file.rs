//! The file itself: opened, checked, and what SQLite says about it in words.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::statfs;

use super::format::{self, Found, VERSION};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::lock::{Lock, Sharing};

/// The file's name below the store.
pub const FILE: &str = "registry.db";
/// The smallest page that a file can have (<https://www.sqlite.org/fileformat2.html>).
const PAGE_MIN: u64 = 512;
/// How long to wait for others who write.
const PATIENCE: Duration = Duration::from_secs(5);
/// Statements that are kept ready.
const STATEMENTS: usize = 40;

/// Memory is shared only with those who have it open too (`-shm`); none of the file is mapped. The cache is small: a
/// thousand services are a megabyte, and are read once.
const SETTINGS: &str = "
    PRAGMA locking_mode = NORMAL;
    PRAGMA cache_size = -256;
    PRAGMA mmap_size = 0;
    PRAGMA temp_store = MEMORY;
    PRAGMA trusted_schema = OFF;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 512;
";

/// The connections of one who has the file open.
#[derive(Debug)]
pub(super) struct Opened {
    /// For changes.
    pub writer: Connection,
    /// For looking, which waits for nobody who writes.
    pub reader: Connection,
    /// What tells this registry from others.
    pub identity: String,
}

pub(super) fn operation(verb: &str, path: &Path) -> String {
    format!("{verb} registry {}", quote(path))
}

/// Opens the file, or makes it. One process after the other does this, so that only one makes or changes it.
pub(super) fn open(path: &Path, bell: &Path) -> Result<Opened> {
    let operation = operation("open", path);
    check_file_system(path, &operation)?;
    make_private(path).context(|| operation.clone())?;
    let turn = take_turn(bell, &operation).map_err(|error| match is_writable(path) {
        true => error,
        false => unwritable(operation.clone(), path),
    })?;
    check_length(path, &operation)?;
    let explain = |error: &rusqlite::Error| explain(error, operation.clone(), path);
    let mut writer = connect(path).map_err(|error| explain(&error))?;
    let found = format::look(&writer).map_err(|error| explain(&error))?;
    check_version(&found, &operation, path)?;
    format::bring_up(&mut writer, found).map_err(|error| explain(&error))?;
    drop(turn);
    check_content(&writer, &operation, path)?;
    let reader = connect(path).map_err(|error| explain(&error))?;
    let identity = |connection: &Connection| {
        connection.execute_batch("PRAGMA query_only = ON")?;
        connection.query_row("SELECT identity FROM about", [], |row| row.get(0))
    };
    let identity = identity(&reader).map_err(|error| explain(&error))?;
    Ok(Opened { writer, reader, identity })
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.execute_batch(SETTINGS)?;
    Ok(connection)
}

fn take_turn(bell: &Path, operation: &str) -> Result<Lock> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = Lock::try_take(bell, Sharing::Exclusive).context(|| operation.to_owned())? {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            let cause = "another process is opening it, and does not get on";
            return Err(Error::new(Kind::Busy, operation, cause).next("end that process, and try again"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
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

fn check_version(found: &Found, operation: &str, path: &Path) -> Result<()> {
    match found {
        Found::Empty | Found::Ours(1 | VERSION) => Ok(()),
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
    let tables = "SELECT (SELECT count(*) FROM revision) = 1 AND (SELECT count(*) FROM about) = 1 \
                  AND (SELECT count(lease) FROM entry) + (SELECT count(*) FROM lease) + (SELECT count(*) FROM history) >= 0";
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

/// What SQLite says of a file that is open.
pub(super) fn explain_use(error: &rusqlite::Error, operation: String, path: &Path) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let cause = format!("another process has been writing it for {} s", PATIENCE.as_secs());
            Error::new(Kind::Busy, operation, cause).next("try again")
        }
        _ => explain(error, operation, path),
    }
}

/// What SQLite says of a file that is being opened, as one line of ours.
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
            unwritable(operation, path)
        }
        Some(ErrorCode::CannotOpen) => Error::new(Kind::System, operation, text)
            .next(format!("see that {} is a file that can be written, or can be made", quote(path))),
        Some(ErrorCode::DiskFull) => Error::new(Kind::NoSpace, operation, "the disk is full").next("make room"),
        _ => Error::new(Kind::System, operation, text),
    }
}

fn unwritable(operation: String, path: &Path) -> Error {
    Error::new(Kind::System, operation, "it cannot be written")
        .next(format!("make {} and its directory writable", quote(path)))
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

    fn open(path: &Path) -> Result<Opened> {
        super::open(path, &path.with_file_name("registry.db-bell"))
    }

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
        let Opened { writer, reader, .. } = open(&path).unwrap();
        for connection in [&writer, &reader] {
            let text = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, String>(0)).unwrap();
            let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0)).unwrap();
            assert_eq!((text("PRAGMA journal_mode"), text("PRAGMA locking_mode")), ("wal".into(), "normal".into()));
            assert_eq!((number("PRAGMA synchronous"), number("PRAGMA cache_size")), (2, -256));
        }
        assert!(reader.execute("DELETE FROM entry", []).is_err(), "it only looks");
        for name in [FILE, "registry.db-wal", "registry.db-shm", "registry.db-bell"] {
            let mode = fs::metadata(path.with_file_name(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn several_have_it_open_and_who_has_it_for_itself_is_told_of() {
        let (_directory, path) = path();
        let first = open(&path).unwrap();
        assert_eq!(open(&path).unwrap().identity, first.identity);
        drop(first);
        let alone = Connection::open(&path).unwrap();
        alone.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; COMMIT").unwrap();
        let error = fails(&path);
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains("another process has it open"), "{error}");
        drop(alone);
        open(&path).unwrap();
    }

    #[test]
    fn many_who_open_it_at_once_find_the_same_registry() {
        let (_directory, path) = path();
        let identities = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&path).unwrap().identity)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<std::collections::BTreeSet<_>>()
        });
        assert_eq!(identities.len(), 1);
    }

    #[test]
    fn one_of_the_first_version_becomes_one_of_this_with_all_that_is_in_it() {
        let (_directory, path) = path();
        format::tests::make_first(&path, b"one");
        let identity = open(&path).unwrap().identity;
        let Opened { writer, identity: same, .. } = open(&path).unwrap();
        assert_eq!(identity, same);
        assert_eq!(identity.len(), 32);
        let entry = writer.query_row("SELECT value, created, modified, lease FROM entry", [], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, u64>(1)?, row.get::<_, u64>(2)?, row.get::<_, Option<u64>>(3)?))
        });
        assert_eq!(entry.unwrap(), (b"one".to_vec(), 3, 7, None));
        let numbers = "SELECT number, compacted FROM revision, about";
        let numbers: (u64, u64) = writer.query_row(numbers, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(numbers, (7, 7), "what happened before is not known");
    }

    #[test]
    fn a_newer_format_is_not_touched() {
        let (_directory, path) = path();
        open(&path).unwrap().writer.pragma_update(None, "user_version", VERSION + 1).unwrap();
        let before = fs::read(&path).unwrap();
        let error = fails(&path);
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("format version 3, this regen knows 2"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn damage_is_one_line_with_a_next_step() {
        let (_directory, path) = path();
        let opened = open(&path).unwrap();
        for number in 0..400 {
            let key = format!("key/{number}");
            opened.writer.execute("INSERT INTO entry VALUES (?1, 1, 1, NULL, ?2)", (key, [7_u8; 100])).unwrap();
        }
        drop(opened);
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
        open(&path).unwrap().writer.execute_batch("DROP TABLE revision").unwrap();
        assert_eq!(fails(&path).kind(), Kind::Damaged);
        let (_directory, path) = self::path();
        open(&path).unwrap().writer.execute_batch("DELETE FROM revision").unwrap();
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
