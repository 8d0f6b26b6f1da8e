//! A place for a copy: a process that shares the template's memory and is in a container already, with its rights.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::sched::CloneFlags;
use rustix::process::{Pid, prlimit};
use rustix::thread::CapabilitySet;

use super::change::{expected_status, find_difference, kept, plan_change};
use super::loader::PLACES;
use super::{LANE, Sandbox};
use crate::error::{Context, Error, Kind, Result};
use crate::program::Persona;
use crate::sys::channel::Channel;
use crate::sys::trace::{Call, Event, Gate, Registers, Stop, Tracee};

/// A place for one copy. Dropping it ends nothing: that is [`super::Held::dismiss`].
#[derive(Debug)]
pub struct Guest {
    pub(super) tracee: Tracee,
    /// The first process of its container.
    pub(super) init: i32,
    pub(super) persona: Persona,
    /// The right that is kept for loading a filter.
    pub(super) keep: CapabilitySet,
    pub(super) furnished: bool,
}

/// What injecting takes, of a template.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stage {
    pub gate: Gate,
    /// Registers of a process that has done nothing.
    pub base: Registers,
    /// The scratch area in the memory that T, Z and I share.
    pub scratch: u64,
    pub deadline: Instant,
}

impl Stage {
    /// Lets a stopped process call.
    pub(super) fn call(&self, tracee: Tracee, call: &Call) -> Result<u64> {
        tracee.call(self.gate, &self.base, call, self.deadline).map(|injected| injected.value)
    }

    /// Lets a stopped process make another of the same parent, which is stopped before its first instruction.
    pub(super) fn clone_of(&self, tracee: Tracee) -> Result<Tracee> {
        let call = Call::clone_sibling();
        let made = tracee.call(self.gate, &self.base, &call, self.deadline)?.born;
        let made = made.ok_or_else(|| Error::new(Kind::Damaged, "clone a template", "its clone was not told of"))?;
        self.await_birth(made)?;
        Ok(made)
    }

    /// Until a new tracee is stopped for the first time.
    pub(super) fn await_birth(&self, born: Tracee) -> Result<()> {
        let operation = || format!("wait for process {}", born.pid());
        match born.wait(self.deadline)? {
            Some(Stop::Event(Event::Stopped)) => Ok(()),
            Some(Stop::Ended(status)) => Err(Error::new(Kind::State, operation(), format!("it has ended {status}"))),
            Some(other) => Err(Error::new(Kind::Damaged, operation(), format!("{other:?} came first"))),
            None => Err(Error::new(Kind::Busy, operation(), "it does not begin in time")),
        }
    }
}

/// The descriptors that T receives for a container, in the order in which they are found: from 0 on.
const INIT: u64 = 0;
const DIRECTORY: u64 = 1;
const CGROUPS: u64 = 2;

/// Makes a process in a container, by T.
pub(super) fn enter(
    stage: &Stage,
    (parked, lane): (Tracee, &Channel),
    sandbox: &Sandbox,
    directory: BorrowedFd<'_>,
) -> Result<(Tracee, usize)> {
    let cgroups = sandbox.entrance.files()?;
    let descriptors: Vec<BorrowedFd<'_>> =
        [sandbox.init.as_fd(), directory].into_iter().chain(cgroups.iter().map(OwnedFd::as_fd)).collect();
    receive(stage, parked, lane, &descriptors)?;
    stage.call(parked, &Call::join(INIT, CloneFlags::CLONE_NEWPID))?;
    let made = stage.clone_of(parked)?;
    stage.call(parked, &Call::close(0, LANE - 1)).inspect_err(|_| made.kill())?;
    Ok((made, cgroups.len()))
}

/// Brings it to its places in the container, and gives it the rights that it has there.
pub(super) fn settle(stage: &Stage, tracee: Tracee, cgroups: usize, persona: &Persona) -> Result<CapabilitySet> {
    stage.call(tracee, &Call::join(INIT, PLACES))?;
    match stage.call(tracee, &Call::new_keyring()) {
        // A kernel without keyrings has nothing to hide.
        Err(error) if error.errno() == Some(nix::errno::Errno::ENOSYS as i32) => {}
        other => {
            other?;
        }
    }
    for descriptor in (CGROUPS..).take(cgroups) {
        stage.call(tracee, &Call::enter_cgroup(descriptor, stage.scratch))?;
    }
    stage.call(tracee, &Call::enter_directory(DIRECTORY))?;
    stage.call(tracee, &Call::close(0, LANE - 1))?;
    limit(tracee, persona)?;
    let keep = kept(persona, usize::from(persona.filter.is_some()));
    for call in plan_change(persona, keep, stage.scratch) {
        stage.call(tracee, &call)?;
    }
    Ok(keep)
}

/// Sets its resource limits, from outside.
pub(super) fn limit(tracee: Tracee, persona: &Persona) -> Result<()> {
    for (resource, bound) in &persona.limits {
        prlimit(Pid::from_raw(tracee.pid()), *resource, *bound).context(|| format!("set rlimit {resource:?}"))?;
    }
    Ok(())
}

/// Lets it take descriptors, which are then open from 0 on.
pub(super) fn receive(stage: &Stage, tracee: Tracee, lane: &Channel, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    if !lane.send(b"d", descriptors)? {
        return Err(tampered(tracee, "nobody has its end of the way by which descriptors come"));
    }
    let length = stage.call(tracee, &Call::receive(LANE.into(), descriptors.len(), stage.scratch))?;
    let last = descriptors.len().saturating_sub(1);
    let complete = descriptors.is_empty() || fs::symlink_metadata(format!("/proc/{}/fd/{last}", tracee.pid())).is_ok();
    match length == 1 && complete {
        true => Ok(()),
        false => Err(tampered(tracee, "not every descriptor arrived")),
    }
}

/// Looks from outside whether it is where and what it was ordered to be: memory by which it was told so is the template's
/// too.
pub(super) fn check(tracee: Tracee, sandbox: &Sandbox, persona: &Persona, keep: CapabilitySet) -> Result<()> {
    let pid = tracee.pid();
    let read = |pid: i32, name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).context(|| format!("read '{path}'"))
    };
    if let Some(difference) =
        find_difference(&read(pid, "status")?, &expected_status(persona, keep), persona.rights.bounding)
    {
        return Err(tampered(tracee, &difference));
    }
    for kind in ["pid_for_children", "mnt", "net", "ipc", "uts", "cgroup"] {
        let link = |pid: i32, kind: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            fs::read_link(Path::new(&path)).context(|| format!("read '{path}'"))
        };
        let wanted = if kind == "pid_for_children" { "pid" } else { kind };
        if link(pid, kind)? != link(sandbox.init.pid(), wanted)? {
            return Err(tampered(tracee, &format!("its {wanted} namespace is another")));
        }
    }
    match read(pid, "cgroup")? == read(sandbox.init.pid(), "cgroup")? {
        true => Ok(()),
        false => Err(tampered(tracee, "its cgroups are others")),
    }
}

/// The template is not blamed for what a container's end does to those in it: they lose their cgroups, descriptors and
/// memory.
pub(super) fn excuse(error: Error, involved: &[i32]) -> Error {
    match error.kind() {
        Kind::Damaged if involved.iter().any(|pid| is_exiting(*pid)) => {
            Error::new(Kind::State, "make a copy in a container", "it has ended meanwhile")
        }
        _ => error,
    }
}

/// Whether a process is about to end, or has ended.
fn is_exiting(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| flags(&stat)).is_none_or(|flags| {
        // PF_EXITING of linux/sched.h: set before anything of it is taken away.
        flags & 0x4 != 0
    })
}

/// The kernel's flags of a process: the seventh field behind its name in parentheses (proc_pid_stat(5)).
fn flags(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(6)?.parse().ok()
}

fn tampered(tracee: Tracee, what: &str) -> Error {
    let operation = format!("make process {} ready for a copy", tracee.pid());
    Error::new(Kind::Damaged, operation, format!("{what}: the template has interfered"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_container_is_told_from_interference() {
        let error = |kind| Error::new(kind, "a", "b");
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(excuse(error(Kind::Damaged), &[own]).kind(), Kind::Damaged);
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = crate::sys::process::Process::open(pid).unwrap().unwrap();
        assert!(process.wait_end(std::time::Duration::from_secs(60)).unwrap());
        assert_eq!(excuse(error(Kind::Damaged), &[own, pid]).kind(), Kind::State, "a zombie");
        assert_eq!(excuse(error(Kind::Busy), &[own, pid]).kind(), Kind::Busy);
        child.wait().unwrap();
        assert_eq!(excuse(error(Kind::Damaged), &[own, pid]).kind(), Kind::State, "nobody");
    }

    #[test]
    fn the_flags_of_a_process_are_found_behind_any_name() {
        assert_eq!(flags("12 (a) b) S 1 2 3 4 5 4194560 7 8"), Some(4_194_560));
        assert_eq!(flags("12 (a"), None);
    }
}
