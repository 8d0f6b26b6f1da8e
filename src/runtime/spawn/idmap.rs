//! The ids of a new user namespace, written by its creator from outside.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::surroundings::Privilege;
use crate::error::{Context, Error, Kind, Result, quote};

/// `uid_map` and `gid_map`, a line each: inside, outside, count (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdMaps {
    users: Vec<[u32; 3]>,
    groups: Vec<[u32; 3]>,
}

/// Decides; there must be a map where there is a namespace, and none without.
///
/// # Errors
/// [`Kind::Invalid`].
pub(super) fn plan(linux: &Linux) -> Result<IdMaps> {
    let lines = |maps: &Option<Vec<LinuxIdMapping>>, what: &str| {
        let lines: Vec<[u32; 3]> =
            maps.iter().flatten().map(|map| [map.container_id(), map.host_id(), map.size()]).collect();
        match lines.iter().find(|line| line[2] == 0) {
            _ if lines.is_empty() => {
                let cause = "it is missing, and there is a new user namespace";
                Err(Error::new(Kind::Invalid, format!("check linux.{what}"), cause))
            }
            Some(_) => Err(Error::new(Kind::Invalid, format!("check linux.{what}"), "an entry has size 0")),
            None => Ok(lines),
        }
    };
    Ok(IdMaps {
        users: lines(linux.uid_mappings(), "uidMappings")?,
        groups: lines(linux.gid_mappings(), "gidMappings")?,
    })
}

/// Writes the maps that a specification gives for a user namespace, into the one of a process of the caller's, with no
/// more rights than an ordinary user has.
///
/// # Errors
/// As those of [`plan`] and [`IdMaps::write`].
pub(in crate::runtime) fn write_maps(linux: &Linux, pid: i32) -> Result<()> {
    plan(linux)?.write(pid, Privilege::Limited)
}

impl IdMaps {
    fn write_both(&self, directory: &Path) -> Result<()> {
        write(&directory.join("uid_map"), &text(&self.users))?;
        write(&directory.join("gid_map"), &text(&self.groups))
    }

    /// Writes the maps of a process that waits in its new user namespace.
    ///
    /// # Errors
    /// Those of the kernel, or of newuidmap(1) and newgidmap(1).
    pub(super) fn write(&self, pid: i32, privilege: Privilege) -> Result<()> {
        let directory = format!("/proc/{pid}");
        let directory = Path::new(&directory);
        match privilege {
            Privilege::Host => self.write_both(directory),
            // Root of a user namespace has the right to all ids of that, of which newuidmap(1) knows nothing. What was
            // not written can still be asked for.
            Privilege::Limited if is_root() && self.write_both(directory).is_ok() => Ok(()),
            Privilege::Limited => {
                let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                if is_single(&self.users, uid) {
                    write(&directory.join("uid_map"), &text(&self.users))?;
                } else {
                    ask("newuidmap", pid, &self.users, &directory.join("uid_map"))?;
                }
                if is_single(&self.groups, gid) {
                    // user_namespaces(7): else a process could leave a group that is denied something.
                    write(&directory.join("setgroups"), "deny")?;
                    write(&directory.join("gid_map"), &text(&self.groups))
                } else {
                    ask("newgidmap", pid, &self.groups, &directory.join("gid_map"))
                }
            }
        }
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The one map that everybody may write: of their own id.
fn is_single(lines: &[[u32; 3]], own: u32) -> bool {
    matches!(lines, [[_, outside, 1]] if *outside == own)
}

fn text(lines: &[[u32; 3]]) -> String {
    lines.iter().map(|[inside, outside, count]| format!("{inside} {outside} {count}\n")).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).context(|| format!("write {}", quote(path)))
}

/// Lets the set-user-id program write, which knows what /etc/subuid gives to the caller. Where it is not installed the
/// caller may have the right itself: the root of a user namespace has.
fn ask(program: &str, pid: i32, lines: &[[u32; 3]], file: &Path) -> Result<()> {
    let operation = || format!("run {program} for process {pid}");
    let mut arguments = vec![OsString::from(pid.to_string())];
    arguments.extend(lines.iter().flatten().map(|number| number.to_string().into()));
    let output = match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return write(file, &text(lines))
                .map_err(|error| error.during(operation()).next(format!("install {program} (package uidmap)")));
        }
        Err(error) => return Err(error).context(operation),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let cause = if said.is_empty() { output.status.to_string() } else { said };
    Err(Error::new(Kind::System, operation(), cause).next("check /etc/subuid and /etc/subgid"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan_of(users: Value, groups: Value) -> Result<IdMaps> {
        plan(&serde_json::from_value(json!({"uidMappings": users, "gidMappings": groups})).unwrap())
    }

    #[test]
    fn maps_are_lines_of_three_numbers() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 5, "size": 9}]);
        let maps = plan_of(map.clone(), map).unwrap();
        assert_eq!(text(&maps.users), "0 1000 1\n1 5 9\n");
        assert!(!is_single(&maps.users, 1000));
        assert!(is_single(&maps.users[..1], 1000) && !is_single(&maps.users[..1], 0));
    }

    #[test]
    fn a_missing_or_empty_map_is_refused() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let empty = json!([{"containerID": 0, "hostID": 1000, "size": 0}]);
        assert!(plan_of(map.clone(), json!([])).is_err());
        assert!(plan_of(json!([]), map.clone()).is_err());
        assert!(plan_of(map, empty).is_err());
    }
}
