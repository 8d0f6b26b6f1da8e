//! Who is in a container's cgroups, and how they go away.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup::hierarchy::{Layout, parse_membership};
use crate::cgroup::make::own_membership;
use crate::cgroup::{Cgroup, Directory, Manager};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::process::Process;
use crate::sys::signal::Signal;

/// How many handles to processes are held together: well below the usual limit of open files.
const OPEN_AT_ONCE: usize = 256;

impl Cgroup {
    /// Remembers where a process of the container really is; for systemd, which chooses the place itself.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub fn locate(&mut self, pid: i32) -> Result<()> {
        let operation = || format!("find the cgroups of process {pid}");
        let member = fs::read_to_string(format!("/proc/{pid}/cgroup")).context(operation)?;
        let own = own_membership()?;
        let own = parse_membership(&own);
        let layout = Layout::find()?;
        let new = parse_membership(&member).into_iter().filter(|place| !own.contains(place));
        let directory = |(controllers, name): (&str, &Path)| {
            let one = layout.hierarchies().iter().find(|one| one.controllers == controllers)?;
            Some(Directory { controllers: controllers.to_owned(), path: one.directory(name)? })
        };
        self.directories = new.filter_map(directory).collect();
        Ok(())
    }

    /// The processes in it and below it, each once.
    ///
    /// # Errors
    /// Those of reading `cgroup.procs`.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in self.paths() {
            collect_processes(&directory, &mut pids)
                .context(|| format!("list the processes of {}", quote(&directory)))?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Takes in a process that began elsewhere, with all its threads.
    ///
    /// # Errors
    /// Those of writing `cgroup.procs`.
    pub fn take(&self, pid: i32) -> Result<()> {
        for directory in self.paths() {
            let path = directory.join("cgroup.procs");
            fs::write(&path, pid.to_string())
                .context(|| format!("move process {pid} into cgroup {}", quote(&directory)))?;
        }
        Ok(())
    }

    /// Sends a signal to every process in it.
    ///
    /// # Errors
    /// Those of listing the processes and of sending.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        for pids in self.processes()?.chunks(OPEN_AT_ONCE) {
            let mut opened = Vec::with_capacity(pids.len());
            for pid in pids {
                opened.extend(Process::open(*pid)?.map(|process| (*pid, process)));
            }
            // Opened first, then looked for again: only then is each handle surely one of the group's.
            let members = self.processes()?;
            for (pid, process) in opened {
                if members.binary_search(&pid).is_ok() {
                    process.signal(signal)?;
                }
            }
        }
        Ok(())
    }

    /// Kills everything in it until nothing is left.
    ///
    /// # Errors
    /// [`Kind::Busy`] if something is left when the time is over: a process in an uninterruptible sleep.
    pub fn kill_all(&self, limit: Duration) -> Result<()> {
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
                self.paths().iter().map(|path| path.join("cgroup.kill")).filter(|path| path.exists()).collect();
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
    pub fn remove(&self, limit: Duration) -> Result<()> {
        for directory in self.paths() {
            remove_tree(&directory, Instant::now() + limit)
                .context(|| format!("remove cgroup {}", quote(&directory)))?;
        }
        match self.manager {
            Manager::Cgroupfs | Manager::Disabled => Ok(()),
            Manager::Systemd => self.stop_scope(),
        }
    }
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
    // A directory has two links, and one more from each below it: the list of files is read only where it is needed.
    if fs::metadata(directory).is_ok_and(|metadata| metadata.nlink() == 2) {
        return Ok(());
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
