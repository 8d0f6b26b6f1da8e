//! A container's cgroups: where they are, who is in them, how they go away.
//!
//! On a unified hierarchy a container has one directory, on version 1 one per controller that is mounted. They are
//! found by the path that the container was given, below every cgroup mount; a hierarchy in which it has none (the
//! named and the hybrid one) simply has no such directory.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::process::Process;
use crate::sys::signal::Signal;

/// Where the kernel shows cgroups.
const ROOT: &str = "/sys/fs/cgroup";

/// A container's place in the hierarchies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// The path below each mount point, absolute; or `slice:prefix:name`, if systemd makes it.
    pub path: PathBuf,
    /// Whether systemd makes it.
    pub systemd: bool,
    /// The directories as they were found once the container was in them; empty before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<PathBuf>,
}

impl Cgroup {
    /// A cgroup by its path; its directories are looked for when they are needed.
    #[must_use]
    pub fn new(path: PathBuf, systemd: bool) -> Self {
        Self { path, systemd, directories: Vec::new() }
    }

    /// Its directories that exist, in every hierarchy.
    ///
    /// # Errors
    /// Those of reading the mount table.
    pub fn paths(&self) -> Result<Vec<PathBuf>> {
        if !self.directories.is_empty() {
            return Ok(self.directories.iter().filter(|directory| directory.is_dir()).cloned().collect());
        }
        if !self.path.is_absolute() {
            return Ok(Vec::new());
        }
        let table = fs::read_to_string("/proc/self/mountinfo").context(|| "read the mount table")?;
        let directories = parse_mounts(&table).into_iter().filter_map(|mount| below(&mount, &self.path));
        Ok(directories.filter(|directory| directory.is_dir()).collect())
    }

    /// Remembers where a process of the container really is; for systemd, which chooses the place itself.
    pub(super) fn locate(&mut self, pid: i32) -> Result<()> {
        if self.path.is_absolute() {
            self.directories = self.paths()?;
            return Ok(());
        }
        let operation = || format!("find the cgroups of process {pid}");
        let table = fs::read_to_string("/proc/self/mountinfo").context(operation)?;
        let member = fs::read_to_string(format!("/proc/{pid}/cgroup")).context(operation)?;
        let own = fs::read_to_string("/proc/self/cgroup").context(operation)?;
        let new = member.lines().filter(|line| !own.lines().any(|ours| ours == *line));
        let paths: Vec<&Path> = new.filter_map(|line| line.splitn(3, ':').nth(2)).map(Path::new).collect();
        let candidates = parse_mounts(&table)
            .into_iter()
            .flat_map(|mount| paths.iter().filter_map(move |path| below(&mount, path)).collect::<Vec<_>>());
        self.directories = candidates.filter(|directory| directory.is_dir()).collect();
        Ok(())
    }

    /// The processes in it and below it, each once.
    ///
    /// # Errors
    /// Those of reading `cgroup.procs`.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in self.paths()? {
            collect_processes(&directory, &mut pids)
                .context(|| format!("list the processes of {}", quote(&directory)))?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Refuses a place that is not ours to fill, and later to empty: the root, or a group with processes in it.
    pub(super) fn check_free(&self) -> Result<()> {
        let operation = || format!("use cgroup {}", quote(&self.path));
        if self.path.is_absolute() && below(Path::new(ROOT), &self.path).is_none() {
            return Err(Error::new(Kind::Invalid, operation(), "it is the root of the hierarchy"));
        }
        match self.processes()?.first() {
            None => Ok(()),
            Some(pid) => {
                let cause = format!("container's cgroup is not empty: process {pid} is in it");
                Err(Error::new(Kind::Busy, operation(), cause).next("choose another linux.cgroupsPath"))
            }
        }
    }

    /// Whether it is frozen.
    pub(super) fn is_frozen(&self) -> bool {
        self.paths().unwrap_or_default().iter().any(|directory| {
            let holds = |file: &str, word: &str| {
                fs::read_to_string(directory.join(file)).is_ok_and(|text| text.trim_end() == word)
            };
            holds("freezer.state", "FROZEN") || holds("cgroup.freeze", "1")
        })
    }

    /// Lets frozen processes go on: on version 1 a frozen process does not even die of SIGKILL.
    pub(super) fn thaw(&self) -> Result<()> {
        for directory in self.paths()? {
            for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                let path = directory.join(file);
                if path.exists() {
                    fs::write(&path, word).context(|| format!("thaw {}", quote(&path)))?;
                }
            }
        }
        Ok(())
    }

    /// Sends a signal to every process in it.
    pub(super) fn signal_all(&self, signal: Signal) -> Result<()> {
        for pid in self.processes()? {
            // Opened first, then looked for again: only then is the handle surely one of the group's.
            let Some(process) = Process::open(pid)? else { continue };
            if self.processes()?.contains(&pid) {
                process.signal(signal)?;
            }
        }
        Ok(())
    }

    /// Kills everything in it until nothing is left.
    ///
    /// # Errors
    /// [`Kind::Busy`] if something is left when the time is over: a process in an uninterruptible sleep.
    pub(super) fn kill_all(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_micros(200);
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let cause = format!("process {} does not die, and {} more", left[0], left.len() - 1);
                return Err(Error::new(Kind::Busy, format!("empty cgroup {}", quote(&self.path)), cause));
            }
            self.thaw()?;
            let unified: Vec<PathBuf> =
                self.paths()?.iter().map(|path| path.join("cgroup.kill")).filter(|path| path.exists()).collect();
            for file in &unified {
                fs::write(file, "1").context(|| format!("write {}", quote(file)))?;
            }
            if unified.is_empty() {
                self.signal_all(Signal::KILL)?;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes it and what the container made below it, in every hierarchy.
    ///
    /// # Errors
    /// [`Kind::Busy`] if a process is in it.
    pub(super) fn remove(&self, limit: Duration) -> Result<()> {
        for directory in self.paths()? {
            remove_tree(&directory, Instant::now() + limit)
                .context(|| format!("remove cgroup {}", quote(&directory)))?;
        }
        Ok(())
    }
}

/// Whether no process is left in a container's cgroups.
///
/// # Errors
/// Those of reading the hierarchies.
pub fn is_empty(cgroup: &Cgroup) -> Result<bool> {
    Ok(cgroup.processes()?.is_empty())
}

/// The mount points of cgroup file systems, from a mountinfo table.
fn parse_mounts(table: &str) -> Vec<PathBuf> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        let point = PathBuf::from(left.split(' ').nth(4)?);
        (matches!(kind, "cgroup" | "cgroup2") && point.starts_with(ROOT)).then_some(point)
    };
    table.lines().filter_map(parse).collect()
}

/// The directory of a path below a mount point; `None` for the root, which is nobody's to empty or remove.
fn below(point: &Path, path: &Path) -> Option<PathBuf> {
    let relative: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    (!relative.as_os_str().is_empty()).then(|| point.join(relative))
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let gone = |error: &io::Error| {
        matches!(error.raw_os_error(), Some(code) if code == nix::errno::Errno::ENOENT as i32
            || code == nix::errno::Errno::ENODEV as i32)
    };
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0)),
        Err(error) if gone(&error) => return Ok(()),
        // A threaded group lists its processes in its domain.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => {}
        Err(error) => return Err(error),
    }
    match fs::read_dir(directory) {
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(error),
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    collect_processes(&entry.path(), pids)?;
                }
            }
            Ok(())
        }
    }
}

/// A group that was just emptied stays busy until the kernel has let go of its last process.
fn remove_tree(directory: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        remove_tree(&entry.path(), deadline)?;
                    }
                }
            }
            Err(error) => return Err(error),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroup_mounts_below_the_usual_place_count() {
        let table = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            26 25 0:23 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory\n\
            27 25 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            28 1 0:25 / /mnt/elsewhere rw - cgroup cgroup rw,pids\n";
        assert_eq!(parse_mounts(table), [Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_path_cannot_climb_out_of_its_mount_nor_be_its_root() {
        let point = Path::new("/sys/fs/cgroup/pids");
        assert_eq!(below(point, Path::new("/../../a/./b")), Some(point.join("a/b")));
        for root in ["/", "", "/..", "/./"] {
            assert_eq!(below(point, Path::new(root)), None, "{root:?}");
        }
    }
}
