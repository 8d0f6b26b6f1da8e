//! `user[:group]` looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to strangers: they are resolved inside the root (an absolute link or `..` stays in it), read only
//! if they are regular and of a sane size, and lines that make no sense are passed over, as by every libc.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use pathrs::Root;
use pathrs::error::ErrorKind;
use pathrs::flags::OpenFlags;

use crate::error::{Context, Error, Kind, Result, quote};

/// The largest passwd or group file that is read.
const DATABASE_MAX: u64 = 8 << 20;
/// The largest id that processes can have: one below the number that means "unchanged" to the kernel.
const ID_MAX: u32 = u32::MAX - 1;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups that list the user as a member, ascending, unless a group was asked for.
    pub additional_gids: Vec<u32>,
    /// The home directory, where passwd names one.
    pub home: Option<String>,
}

/// Finds `user[:group]` in the file system under `root`, a directory that is the container's `/` or has the same
/// content. Empty text means root. Numbers need no entry.
///
/// # Errors
/// [`Kind::NotFound`] for a name that is not there, [`Kind::Invalid`] for an id that is out of range or a database
/// that is no regular file, [`Kind::Damaged`] for one that is too large.
pub fn resolve_user(root: &Path, text: &str) -> Result<User> {
    let databases = Databases { passwd: read_database(root, "etc/passwd")?, group: read_database(root, "etc/group")? };
    find_user(&databases, text)
}

/// The text of the two files; empty where there is none.
#[derive(Debug, Default)]
struct Databases {
    passwd: String,
    group: String,
}

fn find_user(databases: &Databases, text: &str) -> Result<User> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id("user", user)?;
    let mut accounts = databases.passwd.lines().filter_map(Account::parse);
    let entry = accounts.find(|account| account.name == user || Some(account.uid) == number);
    let (uid, mut gid) = match (&entry, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(number)) => (number, 0),
        (None, None) => return Err(no_such("user", user, "/etc/passwd")),
    };
    let mut additional_gids = BTreeSet::new();
    match group {
        Some(group) => gid = find_group(databases, group)?,
        None => {
            let name = entry.as_ref().map_or(user, |account| account.name);
            let lists_user = |found: &Group| found.members.split(',').any(|member| member == name);
            let groups = databases.group.lines().filter_map(Group::parse).filter(lists_user);
            additional_gids.extend(groups.map(|found| found.gid).filter(|found| *found != gid));
        }
    }
    let home = entry.map(|account| account.home).filter(|home| home.starts_with('/')).map(str::to_owned);
    Ok(User { uid, gid, additional_gids: additional_gids.into_iter().collect(), home })
}

fn find_group(databases: &Databases, group: &str) -> Result<u32> {
    let number = parse_id("group", group)?;
    let mut groups = databases.group.lines().filter_map(Group::parse);
    match (groups.find(|found| found.name == group || Some(found.gid) == number), number) {
        (Some(found), _) => Ok(found.gid),
        (None, Some(number)) => Ok(number),
        (None, None) => Err(no_such("group", group, "/etc/group")),
    }
}

/// A number if the text is one; a name that only looks like a number too large is refused.
fn parse_id(what: &str, text: &str) -> Result<Option<u32>> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= ID_MAX => Ok(Some(id)),
        _ => {
            let cause = format!("ids are between 0 and {ID_MAX}");
            Err(Error::new(Kind::Invalid, format!("read {what} '{text}'"), cause))
        }
    }
}

fn no_such(what: &str, name: &str, file: &str) -> Error {
    let operation = format!("find {what} '{}'", name.escape_debug());
    Error::new(Kind::NotFound, operation, format!("the container's {file} does not have it")).next("give its number")
}

/// A line of passwd: `name:password:uid:gid:comment:home:shell`.
#[derive(Debug)]
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = database_id(fields.nth(1)?)?;
        let gid = database_id(fields.next()?)?;
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// A line of group: `name:password:gid:member,member`.
#[derive(Debug)]
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = database_id(fields.nth(1)?)?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default().trim_end() })
    }
}

fn database_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= ID_MAX)
}

/// The text of a file under the root; empty if it is not there.
fn read_database(root: &Path, name: &str) -> Result<String> {
    let operation = || format!("read '/{name}' of the container in {}", quote(root));
    let failed = |error: pathrs::error::Error| match error.kind() {
        ErrorKind::OsError(Some(errno)) => std::io::Error::from_raw_os_error(errno),
        _ => std::io::Error::other(error.to_string()),
    };
    let root_handle = Root::open(root).map_err(failed).context(operation)?;
    // First only a handle: opening a fifo or a device for reading could wait or act.
    let handle = match root_handle.resolve(name).map_err(failed) {
        Err(error) if is_absence(&error) => return Ok(String::new()),
        other => other.context(operation)?,
    };
    let kind = rustix::fs::fstat(&handle).context(operation)?.st_mode;
    if !rustix::fs::FileType::from_raw_mode(kind).is_file() {
        return Err(Error::new(Kind::Invalid, operation(), "it is not a regular file"));
    }
    let file = handle.reopen(OpenFlags::O_RDONLY).map_err(failed).context(operation)?;
    let mut bytes = Vec::new();
    file.take(DATABASE_MAX + 1).read_to_end(&mut bytes).context(operation)?;
    if bytes.len() as u64 > DATABASE_MAX {
        return Err(Error::new(Kind::Damaged, operation(), format!("larger than {DATABASE_MAX} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_absence(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# remark\nbroken\nalice:x:1000:1001:A:/home/alice:/bin/sh\n\
                          big:x:99999999999:1:::\n77:x:5000:5001::/odd:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,alice\nalice:x:1001:alice\naudio:x:63:alice\n";

    fn find(text: &str) -> Result<User> {
        find_user(&Databases { passwd: PASSWD.into(), group: GROUP.into() }, text)
    }

    fn user(uid: u32, gid: u32, additional: &[u32], home: Option<&str>) -> User {
        User { uid, gid, additional_gids: additional.to_vec(), home: home.map(str::to_owned) }
    }

    #[test]
    fn names_and_numbers_are_found_as_other_engines_do() {
        let alice = user(1000, 1001, &[10, 63], Some("/home/alice"));
        assert_eq!(find("alice").unwrap(), alice);
        assert_eq!(find("1000").unwrap(), alice);
        assert_eq!(find("").unwrap(), user(0, 0, &[10], Some("/root")));
        assert_eq!(find("alice:audio").unwrap(), user(1000, 63, &[], Some("/home/alice")));
        assert_eq!(find("alice:7").unwrap(), user(1000, 7, &[], Some("/home/alice")));
        assert_eq!(find("alice:").unwrap(), alice);
        assert_eq!(find("4711").unwrap(), user(4711, 0, &[], None));
        assert_eq!(find("4711:10").unwrap(), user(4711, 10, &[], None));
        assert_eq!(find("77").unwrap(), user(5000, 5001, &[], Some("/odd")));
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        assert_eq!(find("bob").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(find("alice:bob").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(find("big").unwrap_err().kind(), Kind::NotFound);
        for bad in ["4294967295", "99999999999999999999", "0:4294967295"] {
            assert_eq!(find(bad).unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn a_link_that_leads_out_of_the_root_stays_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let (root, outside) = (directory.path().join("root"), directory.path().join("passwd"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(&outside, "eve:x:666:666:::\n").unwrap();
        symlink("../../passwd", root.join("etc/passwd")).unwrap();
        assert_eq!(resolve_user(&root, "eve").unwrap_err().kind(), Kind::NotFound);
        fs::write(root.join("passwd"), "eve:x:7:8:::\n").unwrap();
        assert_eq!(resolve_user(&root, "eve").unwrap(), user(7, 8, &[], None));
        fs::remove_file(root.join("etc/passwd")).unwrap();
        symlink(&outside, root.join("etc/passwd")).unwrap();
        assert_eq!(resolve_user(&root, "eve").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn numbers_need_no_files_and_a_fifo_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert_eq!(resolve_user(root, "12:34").unwrap(), user(12, 34, &[], None));
        fs::create_dir(root.join("etc")).unwrap();
        nix::unistd::mkfifo(&root.join("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(resolve_user(root, "12:34").unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_database_that_is_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        fs::File::create(directory.path().join("etc/group")).unwrap().set_len(DATABASE_MAX + 1).unwrap();
        assert_eq!(resolve_user(directory.path(), "0").unwrap_err().kind(), Kind::Damaged);
    }
}
