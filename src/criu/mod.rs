//! criu(8): the only room that speaks to it, by its command line.
//!
//! ```text
//! Dump, Restore ──> plan_dump, plan_restore: arguments (pure) ──> dump, restore: criu runs, its log is read if it fails
//! ```
//!
//! Images and log lie in directories of the caller's. criu is given absolute paths only: Debian 12's does not take others.
//! What it says in its log is long and for its own people; an error of ours has the last line of it that tells of one,
//! and the path of the rest.

mod plan;

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::SigSet;

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::clone::leave_open;
use crate::sys::signal::with_mask;

pub use plan::{plan_dump, plan_restore};

const PROGRAM: &str = "criu";
const DUMP_LOG: &str = "dump.log";
const RESTORE_LOG: &str = "restore.log";
const PID_FILE: &str = "restore.pid";

/// What criu does with cgroups (`--manage-cgroups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupMode {
    /// Properties are restored only where criu made the cgroup.
    #[default]
    Soft,
    /// Properties are always restored.
    Full,
    /// The cgroups must not be there yet.
    Strict,
    /// They are not looked at.
    Ignore,
}

/// What of the outer world a program may hold on to, when it is saved and when it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools, reason = "flags of criu, each on its own")]
pub struct Allowed {
    /// TCP connections that are established.
    pub tcp_established: bool,
    /// Unix sockets whose other end is outside.
    pub external_unix_sockets: bool,
    /// A session or process group that began outside, as that of a program under a shell's job control.
    pub shell_job: bool,
    /// File locks.
    pub file_locks: bool,
}

/// Where memory goes that is not written into the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageServer {
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
}

/// What happens to the processes of a container whose state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// They are killed.
    Killed,
    /// They go on.
    Running,
    /// They go on, and only their memory has been saved, so that the real dump has less to do.
    MemoryOnly,
}

/// A process tree that is to be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// Its root.
    pub pid: i32,
    /// Where the images go; absolute.
    pub images: PathBuf,
    /// Where the log goes; absolute.
    pub work: PathBuf,
    /// The images of the memory-only dump before, relative to `images`.
    pub parent: Option<PathBuf>,
    /// What becomes of the processes.
    pub afterwards: Afterwards,
    /// What they may hold on to.
    pub allowed: Allowed,
    /// What is done with cgroups.
    pub cgroups: CgroupMode,
    /// The cgroup whose freezer stops the processes meanwhile.
    pub freezer: Option<PathBuf>,
    /// The network namespace comes back empty, and somebody else fills it.
    pub empty_network: bool,
    /// Pages that a later dump has replaced are punched out of the earlier one.
    pub deduplicate: bool,
    /// Mount points whose content comes from outside.
    pub external_mounts: Vec<PathBuf>,
    /// Memory goes there.
    pub page_server: Option<PageServer>,
    /// Memory stays until the restored processes ask for it; the descriptor, if any, is told when it can be asked for.
    pub lazy_pages: Option<i32>,
}

/// A process tree that is to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// Where the images are; absolute.
    pub images: PathBuf,
    /// Where the log goes; absolute.
    pub work: PathBuf,
    /// Its root file system: a mount point that criu sees.
    pub root: PathBuf,
    /// What the processes may hold on to.
    pub allowed: Allowed,
    /// What is done with cgroups.
    pub cgroups: CgroupMode,
    /// Below which cgroups those of the processes begin; by controllers, none on version 2.
    pub cgroup_roots: Vec<(String, PathBuf)>,
    /// As in the dump.
    pub empty_network: bool,
    /// Images are punched out as they are read.
    pub deduplicate: bool,
    /// Mount points whose content comes from outside, and from where.
    pub external_mounts: Vec<(PathBuf, PathBuf)>,
    /// Descriptors of ours for what the processes had open to the outside: number, and criu's name of it.
    pub inherited: Vec<(i32, String)>,
    /// Another daemon gives memory when it is asked for.
    pub lazy_pages: bool,
    /// `TYPE:NAME` of the security profile that takes the place of the saved one.
    pub lsm_profile: Option<String>,
    /// The security context of mounts.
    pub lsm_mount_context: Option<String>,
    /// The signal mask that criu runs with; the caller's own if none. It hears of processes that fail by a signal.
    pub mask: Option<SigSet>,
}

/// Where criu's log of a dump is, below `work`.
#[must_use]
pub fn dump_log(work: &Path) -> PathBuf {
    work.join(DUMP_LOG)
}

/// Makes sure that there is a criu, for callers that have something to do before.
///
/// # Errors
/// [`Kind::Unsupported`] if there is none.
pub fn check() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).is_file());
    if found { Ok(()) } else { Err(missing()) }
}

fn missing() -> Error {
    Error::new(Kind::Unsupported, "run criu", "it is not installed")
        .next("install the package criu (see 'regen doctor')")
}

/// Saves a process tree. criu has the descriptor `kept` open as long as it is at work, also if we are killed.
///
/// # Errors
/// [`Kind::Unsupported`] if there is no criu, else what criu says.
pub fn dump(request: &Dump, kept: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut command = command(&plan_dump(request, DUMP_LOG));
    if let Some(kept) = kept {
        leave_open(&mut command, kept);
    }
    run(command, &request.work.join(DUMP_LOG))
}

/// Brings a process tree back, stopped; its root is a child of the calling process. Gives its pid.
///
/// # Errors
/// As [`dump`].
pub fn restore(request: &Restore) -> Result<i32> {
    let pid_file = request.work.join(PID_FILE);
    // criu writes over none.
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other.context(|| format!("remove {}", quote(&pid_file)))?,
    }
    let mut command = command(&plan_restore(request, RESTORE_LOG, &pid_file));
    if let Some(mask) = request.mask {
        with_mask(&mut command, mask);
    }
    run(command, &request.work.join(RESTORE_LOG))?;
    let text = fs::read_to_string(&pid_file).context(|| format!("read {}", quote(&pid_file)))?;
    text.trim().parse::<i32>().map_err(|_| {
        Error::new(Kind::System, format!("read the pid in {}", quote(&pid_file)), format!("'{}' is none", text.trim()))
    })
}

/// Its standard error repeats some of the log. Its input and output may be what the restored program gets.
fn command(arguments: &[OsString]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stderr(Stdio::inherit());
    command
}

fn run(mut command: Command, log: &Path) -> Result<()> {
    let status = match command.status() {
        Ok(status) => status,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(missing());
        }
        Err(error) => return Err(error).context(|| "run criu"),
    };
    if status.success() {
        return Ok(());
    }
    let text = fs::read(log).unwrap_or_default();
    let cause = find_cause(&String::from_utf8_lossy(&text)).unwrap_or_else(|| format!("it ended with {status}"));
    Err(Error::new(Kind::System, "run criu", cause).next(next_step(log)))
}

/// What to do about a failure that criu wrote about into `log`.
#[must_use]
pub fn next_step(log: &Path) -> String {
    format!("its log is {}; 'regen doctor' tells whether criu fits this kernel", quote(log))
}

/// The first error in a log: those after it follow from it.
fn find_cause(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("Error ("))?;
    Some(line.trim_start_matches(|c: char| "()0123456789. :".contains(c)).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_a_log_is_the_cause() {
        let log = "(00.1) Version: 3.17\n(00.2) Warn  (a.c:1): odd\n(00.35)      1: Error (criu/files.c:9): Can't open f\n\
            (00.4) Error (criu/cr-restore.c:2): Restoring FAILED.\n";
        assert_eq!(find_cause(log).unwrap(), "Error (criu/files.c:9): Can't open f");
        assert_eq!(find_cause("fine\n"), None);
    }
}
