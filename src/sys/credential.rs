//! Doing something for somebody else with no more rights than they have.

use std::thread;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::error::{Context, Error, Kind, Result};

/// Does `work` with the user and groups that somebody has, and without capabilities: files are opened with their rights,
/// and who accepts a connection sees them at its other end. `groups` begins with the effective one.
///
/// It is done in a thread of its own, which ends with it, so nothing has to be changed back. Only the effective user
/// changes: by the real and the saved one the kernel decides who may send signals here (kill(2)) and who may trace
/// (ptrace(2)), and that they must not.
///
/// # Errors
/// Those of setgroups(2), setresgid(2) and setresuid(2): who is not root can do this only for themselves.
pub fn with_those_of<T: Send>(uid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> Result<T> {
    let operation = || format!("take the rights of user {uid}");
    let become_them = || {
        let all: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&all).context(operation)?;
        set_thread_res_gid(None, all.first().copied(), None).context(operation)?;
        // Last, because it takes the capabilities that the others need.
        set_thread_res_uid(None, Uid::from_raw(uid), None).context(operation)
    };
    thread::scope(|scope| {
        let spawned = thread::Builder::new()
            .name("caller".to_owned())
            .spawn_scoped(scope, || become_them().map(|()| work()))
            .context(operation)?;
        let failed = |_| Error::new(Kind::System, operation(), "the thread has panicked");
        spawned.join().map_err(failed)?
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn rights_are_those_of_the_other_and_ours_stay() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&file, Some(0), Some(54321)).unwrap();
        let read = || std::fs::read_to_string(&file).is_ok();
        assert!(!with_those_of(12345, &[12345], read).unwrap());
        assert!(with_those_of(12345, &[54321], read).unwrap());
        assert!(with_those_of(12345, &[12345, 54321], read).unwrap());
        assert!(read());
    }

    #[test]
    fn those_whose_rights_are_taken_can_send_no_signal_here() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let status = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let status = with_those_of(12345, &[12345], status).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        // Real, effective, saved, file system.
        assert_eq!(field("Uid:").split_whitespace().collect::<Vec<_>>(), ["0", "12345", "0", "12345"]);
        assert_eq!(field("CapEff:"), "0000000000000000");
    }
}
