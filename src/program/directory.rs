//! The working directory, entered without leaving the container.

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{chdir, getcwd};

use crate::error::{Context, Error, Kind, Result};

/// Whether the directory was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// It was.
    Done,
    /// Root must not enter it (a file system over the network, a user namespace); the user may.
    AsUser,
}

/// Enters the directory with the rights of root, if it lets root in.
pub(super) fn enter(path: &Path) -> Result<Entry> {
    match chdir(path) {
        Ok(()) => Ok(Entry::Done),
        Err(Errno::ACCESS | Errno::PERM) => Ok(Entry::AsUser),
        Err(errno) => refuse(path, errno),
    }
}

/// Enters the directory with the rights of the user, if that is still to be done.
pub(super) fn enter_as_user(path: &Path, entry: Entry) -> Result<()> {
    match entry {
        Entry::Done => Ok(()),
        Entry::AsUser => chdir(path).or_else(|errno| refuse(path, errno)),
    }
}

/// A directory that is reached through a descriptor of the host (`/proc/self/fd/7`) is outside of the container's
/// root; the kernel then has no absolute name for it (CVE-2024-21626).
pub(super) fn check_inside() -> Result<()> {
    let operation = || "check the working directory";
    let outside = || {
        let cause = "current working directory is outside of container mount namespace root: possible container \
            breakout detected";
        Err(Error::new(Kind::Invalid, operation(), cause))
    };
    match getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().first() == Some(&b'/') => Ok(()),
        Ok(_) | Err(Errno::NOENT) => outside(),
        Err(errno) => Err(errno).context(operation),
    }
}

/// In the words that engines pass on to their users.
fn refuse<T>(path: &Path, errno: Errno) -> Result<T> {
    let shown = path.to_string_lossy();
    Err(errno).context(|| format!("chdir to cwd (\"{}\") set in config.json failed", shown.escape_debug()))
}

/// The home directory of a user in the container's own table, which may be any file: only so much of a regular one is
/// read.
pub(super) fn home_of(uid: u32) -> Option<String> {
    const PASSWD: &str = "/etc/passwd";
    const CAP: u64 = 1 << 20;
    if !fs::metadata(PASSWD).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= CAP) {
        return None;
    }
    find_home(&String::from_utf8_lossy(&fs::read(PASSWD).ok()?), uid)
}

/// `name:password:uid:gid:comment:home:shell`.
fn find_home(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().find(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid))?;
    line.split(':').nth(5).filter(|home| !home.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_come_from_the_containers_own_table() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad line\nu:x:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(find_home(passwd, 1000).as_deref(), Some("/home/u"));
        assert_eq!(find_home(passwd, 7), None);
    }
}
