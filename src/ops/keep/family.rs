//! A process and all that come from it.

use std::fs;
use std::time::{Duration, Instant};

use crate::error::{Kind, Result};
use crate::sys::process::{Identity, Process};

/// What comes from the first process of a program that was there before its service. Who was seen once stays known: a
/// process whose parent has ended is nobody's child any more.
#[derive(Debug)]
pub(super) struct Family {
    known: Vec<Identity>,
    /// When to look again.
    pub look_at: Instant,
    pub first: First,
}

/// What is left to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// The first process, before all others.
    Lives,
    /// The others.
    Ended,
}

/// How soon to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// For a program that serves: nothing says that it has a new process.
    Seldom,
    /// For one that ends.
    Often,
}

impl Family {
    /// One that is to be looked at first.
    pub(super) fn new(now: Instant) -> Self {
        Self { known: Vec::new(), look_at: now, first: First::Lives }
    }

    /// Who lived at the last look, parents first; the first process is not among them.
    pub(super) fn known(&self) -> &[Identity] {
        &self.known
    }

    /// Looks who lives; those that were not known.
    ///
    /// # Errors
    /// Those of pidfd_open(2) and of reading /proc; nothing has changed then.
    pub(super) fn look(&mut self, first: &Identity, pace: Pace) -> Result<Vec<Identity>> {
        let before = Instant::now();
        let found = self.find(first);
        let now = Instant::now();
        self.look_at = now + pace.pause(now - before);
        let found = found?;
        let new = found.iter().filter(|member| !self.known.contains(member)).cloned().collect();
        self.known = found;
        Ok(new)
    }

    fn find(&self, first: &Identity) -> Result<Vec<Identity>> {
        let mut living = Vec::new();
        for member in std::iter::once(first).chain(&self.known) {
            if open(member)?.is_some() {
                living.push(member.clone());
            }
        }
        // Whatever we come from, we are not what is kept.
        let ours = i32::try_from(std::process::id()).unwrap_or_default();
        let mut next = 0;
        while let Some(parent) = living.get(next).cloned() {
            next += 1;
            for pid in children(parent.pid) {
                let is_new = pid != ours && living.iter().all(|member| member.pid != pid);
                if is_new && let Some(child) = child_of(&parent, pid)? {
                    living.push(child);
                }
            }
        }
        living.retain(|member| member != first);
        Ok(living)
    }
}

impl Pace {
    /// A small part of the time is spent on looking.
    fn pause(self, took: Duration) -> Duration {
        match self {
            Self::Seldom => (took * 100).clamp(Duration::from_secs(1), Duration::from_secs(30)),
            Self::Often => (took * 10).clamp(Duration::from_millis(20), Duration::from_millis(500)),
        }
    }
}

/// A handle to a process; `None` if it has ended, whoever has its number now. One whose first thread alone has ended is there.
///
/// # Errors
/// Those of pidfd_open(2) and of reading /proc.
pub(super) fn open(member: &Identity) -> Result<Option<Process>> {
    let Some(process) = Process::open(member.pid)? else { return Ok(None) };
    // Looked at after the handle exists, as in [`Identity::open`].
    let is_same = identity(member.pid)?.is_some_and(|now| now == *member);
    Ok((is_same && !process.wait_end(Duration::ZERO)?).then_some(process))
}

fn identity(pid: i32) -> Result<Option<Identity>> {
    match Identity::of(pid) {
        Ok(identity) => Ok(Some(identity)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The process with this number if it lives and its parent is this one.
fn child_of(parent: &Identity, pid: i32) -> Result<Option<Identity>> {
    let Some(child) = identity(pid)? else { return Ok(None) };
    // One that has ended meanwhile has none.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let named = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    // Last: as long as the parent lives, its number was nobody else's.
    let is_child = named == Some(parent.pid) && open(&child)?.is_some() && open(parent)?.is_some();
    Ok(is_child.then_some(child))
}

/// The numbers of a process's children; none if it has ended.
fn children(pid: i32) -> Vec<i32> {
    // Threads have children of their own.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text: Vec<String> =
        tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect();
    text.iter().flat_map(|text| text.split_ascii_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// Its number and those of its descendants, parents first; of one that has ended only its own.
pub(super) fn of(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        for child in children(parent) {
            if !found.contains(&child) {
                found.push(child);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_over_generations() {
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 1000 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        use std::io::Read;
        use std::os::unix::process::CommandExt;
        shell.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let family = of(pid);
        assert_eq!((family.len(), family[0]), (2, pid));
        assert!(of(i32::try_from(std::process::id()).unwrap()).contains(&family[1]));
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        assert_eq!(of(pid), [pid]);
    }

    #[test]
    fn who_was_seen_stays_known_without_a_parent_and_a_number_alone_is_nobody() {
        use std::io::{BufRead, BufReader};
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (first, child) = (Identity::of(i32::try_from(shell.id()).unwrap()).unwrap(), line.trim().parse().unwrap());
        let mut family = Family::new(Instant::now());
        let new = family.look(&first, Pace::Often).unwrap();
        assert_eq!(new.iter().map(|member| member.pid).collect::<Vec<_>>(), [child]);
        assert!(family.look(&first, Pace::Often).unwrap().is_empty(), "it is known");
        let younger = Identity { start_time: first.start_time + 1, ..first.clone() };
        assert!(Family::new(Instant::now()).look(&younger, Pace::Often).unwrap().is_empty());
        assert_eq!(child_of(&younger, child).unwrap(), None);
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert!(family.look(&first, Pace::Often).unwrap().is_empty());
        assert_eq!(family.known(), new);
        let orphan = open(&new[0]).unwrap().unwrap();
        orphan.signal(crate::sys::signal::Signal::KILL).unwrap();
        assert!(orphan.wait_end(Duration::from_secs(20)).unwrap());
        family.look(&first, Pace::Often).unwrap();
        assert!(family.known().is_empty());
    }
}
