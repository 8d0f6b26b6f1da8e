//! Who still holds an upper, so that an operator need not guess.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::store::Run;

/// As many are named as fit into a line.
const NAMED_MAX: usize = 4;

/// A process that can still write into an upper, or keeps it mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// In the host's pid namespace.
    pub pid: i32,
    /// Its command name.
    pub command: String,
    /// By what it holds.
    pub by: By,
}

/// What keeps an upper in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// It lives in the container's cgroup.
    Cgroup,
    /// The overlay is mounted in its mount namespace.
    Mount,
    /// It has a file of it open, as a descriptor, root or working directory.
    File,
    /// It has the container's mount namespace open, in which the overlay is mounted.
    Namespace,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            By::Cgroup => "in the container's cgroup",
            By::Mount => "has it mounted",
            By::File => "has a file of it open",
            By::Namespace => "keeps its mount namespace",
        };
        write!(f, "process {} ('{}') {by}", self.pid, self.command)
    }
}

/// The processes in the cgroups of a run.
#[must_use]
pub(super) fn in_cgroups(cgroups: &[PathBuf]) -> Vec<Holder> {
    let mut pids = Vec::new();
    let mut pending = cgroups.to_vec();
    while let Some(directory) = pending.pop() {
        // A cgroup that is gone has no processes; one that cannot be read is judged by the trial mount.
        let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) else { continue };
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        let children = fs::read_dir(&directory).into_iter().flatten().flatten();
        pending.extend(
            children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())).map(|child| child.path()),
        );
    }
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| !is_zombie(*pid));
    pids.into_iter().map(|pid| holder(pid, By::Cgroup)).collect()
}

/// The processes that keep the overlay of a run, found by looking at every process; slow, for error texts only.
#[must_use]
pub(super) fn of_mount(run: &Run) -> Vec<Holder> {
    let upper = format!("upperdir={}", run.upper().display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let by = if has_mount(pid, &upper) {
            By::Mount
        } else if run.record.device.is_some_and(|device| has_file(pid, device)) {
            By::File
        } else if run.record.mount_namespace.is_some_and(|inode| has_namespace(pid, inode)) {
            By::Namespace
        } else {
            return None;
        };
        Some(holder(pid, by))
    })
    .collect()
}

/// The processes that have a file open on a mounted file system, by its `st_dev`; slow, for error texts only.
#[must_use]
pub(super) fn of_files(device: u64) -> Vec<Holder> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| has_file(*pid, device)).map(|pid| holder(pid, By::File)).collect()
}

/// A list that fits into a line.
#[must_use]
pub(super) fn name(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "something that is no process: a pinned mount namespace, or a mount of it".into();
    }
    let named: Vec<_> = holders.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    match holders.len().saturating_sub(NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn holder(pid: i32, by: By) -> Holder {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Holder { pid, command: command.trim_end().to_owned(), by }
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])))
}

fn has_mount(pid: i32, upper: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/mountinfo"))
        .is_ok_and(|table| table.split([' ', ',', '\n']).any(|field| field == upper))
}

fn has_namespace(pid: i32, inode: u64) -> bool {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let name = PathBuf::from(format!("mnt:[{inode}]"));
    links.into_iter().any(|link| fs::read_link(link.path()).is_ok_and(|target| target == name))
}

fn has_file(pid: i32, device: u64) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    // These links lead to the file itself, wherever it is mounted by now, or no longer is.
    let on_device = |link: &Path| fs::metadata(link).is_ok_and(|metadata| metadata.dev() == device);
    ["cwd", "root", "exe"].iter().any(|name| on_device(&process.join(name)))
        || ["fd", "map_files"].iter().any(|directory| {
            let links = fs::read_dir(process.join(directory)).into_iter().flatten().flatten();
            links.into_iter().any(|link| on_device(&link.path()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut() {
        let holders: Vec<_> = (1..=6).map(|pid| Holder { pid, command: "sh".into(), by: By::File }).collect();
        let text = name(&holders);
        assert!(text.starts_with("process 1 ('sh') has a file of it open, ") && text.ends_with("and 2 more"), "{text}");
        assert!(name(&[]).contains("pinned mount namespace"));
    }

    #[test]
    fn an_open_file_is_found_by_its_device() {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("f")).unwrap();
        let device = file.metadata().unwrap().dev();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(has_file(own, device));
        assert!(!has_file(own, u64::MAX));
    }
}
