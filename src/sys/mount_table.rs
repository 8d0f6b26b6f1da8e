//! The mount table of a process (proc_pid_mountinfo(5)), read in one way for everybody who looks something up in it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::error::{Context, Result};

/// One mount, as a line of the table tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The directory of its file system that is seen.
    pub root: PathBuf,
    /// Where it is attached.
    pub point: PathBuf,
    /// The type of its file system.
    pub kind: &'a str,
    /// The options of its file system, with commas between, as the kernel spells them.
    pub options: &'a str,
}

/// The text of our own table, for [`parse`].
///
/// # Errors
/// Those of reading it.
pub fn read() -> Result<String> {
    std::fs::read_to_string("/proc/self/mountinfo").context(|| "read the mount table")
}

/// The texts of the tables of all mount namespaces in which a process is, each once, for [`parse`].
///
/// # Errors
/// Those of reading /proc; a process that ends meanwhile has none.
pub fn read_all() -> Result<impl Iterator<Item = Result<String>>> {
    let operation = || "look into all mount namespaces";
    let mut namespaces = HashSet::new();
    let mut table_of = move |process: PathBuf| {
        let namespace = fs::metadata(process.join("ns/mnt")).ok()?;
        namespaces.insert(namespace.ino()).then(|| fs::read_to_string(process.join("mountinfo")).ok()).flatten()
    };
    let processes = fs::read_dir("/proc").context(operation)?;
    Ok(processes.filter_map(move |entry| match entry.context(operation) {
        Ok(entry) => table_of(entry.path()).map(Ok),
        Err(error) => Some(Err(error)),
    }))
}

/// The mounts of a table, in its order: of several at one place, the last is the one that is seen. A line that makes no
/// sense is passed over.
pub fn parse(table: &str) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    table.lines().filter_map(parse_line)
}

fn parse_line(line: &str) -> Option<Mount<'_>> {
    // Between the options of the mount and the dash stands any number of optional fields.
    let (place, details) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (unescape(place.next()?), unescape(place.next()?));
    let mut details = details.split(' ');
    let (kind, _source) = (details.next()?, details.next());
    Some(Mount { root, point, kind, options: details.next().unwrap_or_default() })
}

/// The kernel writes space, tab, newline and backslash in paths as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.filter(|_| byte == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn mount_tables_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape("/plain\\"), Path::new("/plain\\"));
    }

    #[test]
    fn a_line_may_have_optional_fields_and_lack_a_source() {
        let table =
            "36 28 0:31 /r /m\\040n rw shared:5 master:1 - ext4 /dev/sda rw,x=1\n1 2 0:3 / /e rw - tmpfs  rw\nbad\n";
        let [first, second] = parse(table).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((first.root.as_path(), first.point.as_path()), (Path::new("/r"), Path::new("/m n")));
        assert_eq!((first.kind, first.options), ("ext4", "rw,x=1"));
        assert_eq!((second.point.as_path(), second.kind, second.options), (Path::new("/e"), "tmpfs", "rw"));
    }

    #[test]
    fn our_own_table_begins_at_the_root() {
        let table = read().unwrap();
        assert!(parse(&table).any(|mount| mount.point == Path::new("/")));
    }
}
