//! Users by number, and the ids that they may use beside their own. The C library's look-up loads modules into the caller, which a static program cannot: the file is
//! read here, and whoever is not in there is left to getent(1), which asks all that the machine knows.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Context, Result};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The home directory.
    pub home: PathBuf,
}

/// A range of subordinate ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subordinate {
    /// The first of them.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The user that has this number; `None` if nobody has.
///
/// # Errors
/// Those of reading the user database.
pub fn by_id(uid: u32) -> Result<Option<User>> {
    if let Some(user) = in_file(uid) {
        return Ok(Some(user));
    }
    let output = Command::new("getent").args(["passwd", &uid.to_string()]).stdin(Stdio::null()).output();
    match output {
        Ok(output) => Ok(find(&String::from_utf8_lossy(&output.stdout), uid)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("look up user {uid}")),
    }
}

/// The user that has this number in `/etc/passwd`.
#[must_use]
pub fn in_file(uid: u32) -> Option<User> {
    find(&fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default(), uid)
}

/// passwd(5): name, password, number, group, comment, home, shell.
fn find(table: &str, uid: u32) -> Option<User> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [name, _, number, _, _, home, ..] if number.parse() == Ok(uid) => {
                Some(User { name: (*name).to_owned(), home: PathBuf::from(home) })
            }
            _ => None,
        }
    })
}

/// The number of the group that has this name in `/etc/group`; `None` if there is none.
///
/// # Errors
/// Those of reading the file.
pub fn group_in_file(name: &str) -> Result<Option<u32>> {
    match fs::read_to_string("/etc/group") {
        Ok(table) => Ok(find_group(&table, name)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| "read /etc/group"),
    }
}

/// group(5): name, password, number, members.
fn find_group(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// The subordinate ids that `/etc/subuid` or `/etc/subgid` gives to a user. Without the file, or an entry in it, there
/// are none.
///
/// # Errors
/// Those of reading the file.
pub fn subordinates(file: &str, name: Option<&str>, uid: u32) -> Result<Vec<Subordinate>> {
    match fs::read_to_string(file) {
        Ok(table) => Ok(parse_subordinates(&table, name, uid)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(|| format!("read {file}")),
    }
}

/// `user:first:count`, the user by name or number (subuid(5)); anything else is passed over, as by newuidmap(1).
#[must_use]
pub fn parse_subordinates(table: &str, name: Option<&str>, uid: u32) -> Vec<Subordinate> {
    let number = uid.to_string();
    let parse = |line: &str| {
        let mut fields = line.trim().split(':');
        let user = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ((Some(user) == name || user == number) && count > 0).then_some(Subordinate { first, count })
    };
    table.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number_and_lines_that_make_no_sense_are_passed_over() {
        let table = "root:x:0:0:root:/root:/bin/sh\n\nbroken:x:7\nu:x:7:7:A, B:/home/u:/bin/sh\n";
        assert_eq!(find(table, 7), Some(User { name: "u".to_owned(), home: "/home/u".into() }));
        assert_eq!(find(table, 8), None);
        assert_eq!(by_id(0).unwrap().unwrap().name, "root");
        assert_eq!(by_id(4_000_123).unwrap(), None);
    }

    #[test]
    fn a_group_is_found_by_name() {
        let table = "root:x:0:\n\nbroken\nregen:x:\nregen2:x:8:a\nregen:x:7:a,b\n";
        assert_eq!(find_group(table, "regen"), Some(7));
        assert_eq!(find_group(table, "broken"), None);
        assert_eq!(group_in_file("root").unwrap(), Some(0));
    }

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let table = "# comment\nalice:100000:65536\nbob:1:2\n1000:300000:10\nalice:x:3\nalice:5:0\n";
        let found = parse_subordinates(table, Some("alice"), 1000);
        let expected = [Subordinate { first: 100_000, count: 65536 }, Subordinate { first: 300_000, count: 10 }];
        assert_eq!(found, expected);
        assert!(parse_subordinates(table, None, 7).is_empty());
    }
}
