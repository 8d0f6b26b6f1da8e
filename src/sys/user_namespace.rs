//! User namespaces: what ours is called outside, and one made only for its maps, for an idmapped mount.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Result};

/// A range of owners: `inside + n` in the namespace is `outside + n` outside, for n below `size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first id in the namespace.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// Makes a user namespace with these maps. It lives as long as the descriptor.
///
/// A child is cloned for it, which does nothing but wait until it is killed: the caller must be single-threaded, or
/// not mind that the child holds copies of its descriptors for that moment.
///
/// # Errors
/// Those of clone(2) and of writing the maps: EINVAL for ranges that overlap, EPERM without the right to these ids.
pub fn create(uids: &[Range], gids: &[Range]) -> Result<OwnedFd> {
    let operation = || "make a user namespace for an idmapped mount";
    // The child ends when the other end is closed, that is at the latest with the caller.
    let (wait, hold) = pipe_with(PipeFlags::CLOEXEC).context(operation)?;
    let pid = clone_waiter(wait.as_fd(), hold.as_fd()).context(operation)?;
    let made = prepare(pid, uids, gids).context(operation);
    drop(hold);
    reap(pid).context(operation)?;
    made
}

/// What a user id of this process's user namespace is in the one around it; `None` if this is the initial namespace, or
/// the id is not mapped.
#[must_use]
pub fn outside(uid: u32) -> Option<u32> {
    // Where /proc is missing nothing is known, and the ids are taken for what they are.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if maps_all(&map) { None } else { translate(&map, uid) }
}

/// Whether this process is in the initial user namespace. Where /proc is missing that is taken for granted.
#[must_use]
pub fn is_initial() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.is_empty() || maps_all(&map)
}

/// Whether a group id of this process's user namespace is one outside too.
#[must_use]
pub fn maps_group(gid: u32) -> bool {
    let map = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    maps_all(&map) || translate(&map, gid).is_some()
}

/// How the ids of this process's user namespace are called outside, for users and for groups:
/// `inside:outside:count,…/…`. `None` in the initial namespace.
#[must_use]
pub fn own_maps() -> Option<String> {
    let list = |file: &str| {
        let map = fs::read_to_string(file).unwrap_or_default();
        (!maps_all(&map)).then(|| spell(&map))
    };
    match (list("/proc/self/uid_map"), list("/proc/self/gid_map")) {
        (None, None) => None,
        (users, groups) => Some(format!("{}/{}", users.unwrap_or_default(), groups.unwrap_or_default())),
    }
}

fn spell(map: &str) -> String {
    map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(":")).collect::<Vec<_>>().join(",")
}

/// The map of the initial user namespace: every id is itself.
fn maps_all(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn translate(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, size) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = uid.checked_sub(inside).filter(|offset| *offset < size)?;
        outside.checked_add(offset)
    })
}

fn prepare(pid: libc::pid_t, uids: &[Range], gids: &[Range]) -> io::Result<OwnedFd> {
    let write = |file: &str, ranges: &[Range]| {
        let line = |range: &Range| format!("{} {} {}\n", range.inside, range.outside, range.size);
        fs::write(format!("/proc/{pid}/{file}"), ranges.iter().map(line).collect::<String>())
    };
    write("uid_map", uids)?;
    write("gid_map", gids)?;
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// Clones a child into a new user namespace that reads from `wait` until its end, and exits.
fn clone_waiter(wait: BorrowedFd<'_>, hold: BorrowedFd<'_>) -> io::Result<libc::pid_t> {
    let (wait, hold) = (wait.as_raw_fd(), hold.as_raw_fd());
    // No exit signal: a caller that counts SIGCHLD never hears of this child.
    // SAFETY: without CLONE_VM and with a null stack this is a fork: the child runs on a copy of this stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER, 0, 0, 0, 0) };
    if pid != 0 {
        return if pid == -1 { Err(io::Error::last_os_error()) } else { Ok(libc::pid_t::try_from(pid).unwrap_or(-1)) };
    }
    // SAFETY: the child's copy of the descriptor; nothing else in the child uses it.
    unsafe { libc::close(hold) };
    let mut byte = 0_u8;
    // SAFETY: reads at most one byte into one byte; async-signal-safe, as is all that the child does.
    unsafe { libc::read(wait, std::ptr::from_mut(&mut byte).cast(), 1) };
    // SAFETY: ends the child without running anything of the parent's; never returns.
    unsafe { libc::_exit(0) }
}

fn reap(pid: libc::pid_t) -> io::Result<()> {
    loop {
        // SAFETY: a null status is allowed; __WALL because the child has no exit signal. The pid is our child's.
        let result = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
        let error = io::Error::last_os_error();
        match (result, error.kind()) {
            (-1, io::ErrorKind::Interrupted) => {}
            (-1, _) => return Err(error),
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_translated_range_by_range() {
        let map = "         0       1001          1\n         1     100000      65536\n";
        assert_eq!([0, 1, 65536].map(|uid| translate(map, uid)), [Some(1001), Some(100_000), Some(165_535)]);
        assert_eq!([65537, u32::MAX].map(|uid| translate(map, uid)), [None; 2]);
        assert_eq!(translate("0 4294967290 10", 9), None);
        assert_eq!(spell(map), "0:1001:1,1:100000:65536");
        assert!(maps_all("         0          0 4294967295\n") && !maps_all(map) && !maps_all(""));
    }

    #[test]
    fn privileged_the_namespace_has_the_maps_and_leaves_no_child() {
        let ranges = [Range { inside: 0, outside: 100_000, size: 10 }, Range { inside: 10, outside: 5, size: 1 }];
        let namespace = create(&ranges, &ranges).unwrap();
        let link = fs::read_link(crate::sys::fs::by_descriptor(&namespace)).unwrap();
        assert!(link.to_string_lossy().starts_with("user:["), "{link:?}");
        assert_ne!(link, fs::read_link("/proc/self/ns/user").unwrap());
        let overlapping = [ranges[0], ranges[0]];
        let error = create(&overlapping, &ranges).unwrap_err();
        assert!(error.to_string().contains("invalid argument"), "{error}");
    }
}
