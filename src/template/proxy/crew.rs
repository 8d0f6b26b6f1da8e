//! The template's process with its threads and children: all of them are traced, and none of them shall notice.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;

use super::End;
use crate::error::{Error, Kind, Result};
use crate::program::FORK_MARK;
use crate::sys::trace::{Call, Event, Registers, Resume, Stop, Tracee, await_stop, find_stopped, tell_of_stops_again};

/// How often everybody is looked at before somebody else gets a turn: a template may be stopped again and again.
const TURNS: usize = 32;

/// Everybody who runs on the template's side.
#[derive(Debug)]
pub(super) struct Crew {
    leader: Tracee,
    members: Vec<Tracee>,
    end: Option<End>,
}

/// A thread of the template's process that is stopped where it forks.
#[derive(Debug)]
pub(super) struct Forking {
    pub thread: Tracee,
    pub registers: Registers,
    /// What a copy is to call instead.
    pub call: Call,
}

/// What a stop leads to.
enum Outcome {
    /// It goes on.
    Resumed,
    /// It is gone.
    Gone,
    /// It forks, and waits for what becomes of that.
    Forks(Box<Forking>),
}

/// Whether forks of the template's process are wanted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// They are its own.
    No,
    /// The next one is a copy's.
    Copy,
}

impl Crew {
    pub(super) fn new(leader: Tracee) -> Self {
        Self { leader, members: vec![leader], end: None }
    }

    pub(super) fn leader(&self) -> Tracee {
        self.leader
    }

    /// Lets everybody go on who is stopped. Never blocks.
    pub(super) fn attend(&mut self) -> Result<Option<End>> {
        self.sweep(Wish::No)?;
        Ok(self.end)
    }

    /// Until the template's process forks.
    pub(super) fn await_fork(&mut self, deadline: Instant) -> Result<Forking> {
        let leader = self.leader.pid();
        let operation = || format!("fork template process {leader}");
        loop {
            if let Some(forking) = self.sweep(Wish::Copy)? {
                return Ok(forking);
            }
            match self.end {
                Some(End::Exited(status)) => {
                    return Err(Error::new(Kind::State, operation(), format!("it has ended {status}")));
                }
                Some(End::Executed) => {
                    return Err(Error::new(Kind::State, operation(), "it has executed another program"));
                }
                None => {}
            }
            if !await_stop(deadline) {
                return Err(Error::new(Kind::Busy, operation(), "it does not fork in time"));
            }
        }
    }

    /// Looks at everybody until nobody is stopped, or it is somebody else's turn: SIGCHLD comes again then.
    fn sweep(&mut self, wish: Wish) -> Result<Option<Forking>> {
        for _ in 0..TURNS {
            let mut moved = false;
            for member in self.members.clone() {
                let stop = match member.look() {
                    Ok(None) => continue,
                    Ok(Some(stop)) => stop,
                    // Its end was told as that of the thread that executed a program.
                    Err(error) if error.kind() == Kind::NotFound => {
                        self.members.retain(|other| *other != member);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                moved = true;
                match self.handle(member, stop, wish) {
                    Ok(Outcome::Resumed) => {}
                    Ok(Outcome::Gone) => self.members.retain(|other| *other != member),
                    Ok(Outcome::Forks(forking)) => return Ok(Some(*forking)),
                    // Killed while we looked at it: its end is what comes next.
                    Err(error) if error.errno() == Some(Errno::ESRCH as i32) => {}
                    Err(error) => return Err(error),
                }
            }
            if !moved && !self.adopt() {
                return Ok(None);
            }
        }
        tell_of_stops_again();
        Ok(None)
    }

    /// Takes in somebody whose maker was killed before it could tell of them.
    fn adopt(&mut self) -> bool {
        match find_stopped() {
            // An ordinary child of ours that job control has stopped is none.
            Some(found) if !self.members.contains(&found) && is_traced(found) => {
                self.members.push(found);
                true
            }
            Some(_) | None => false,
        }
    }

    fn handle(&mut self, member: Tracee, stop: Stop, wish: Wish) -> Result<Outcome> {
        match stop {
            Stop::Ended(status) => {
                if member == self.leader {
                    self.end = self.end.or(Some(End::Exited(status)));
                }
                return Ok(Outcome::Gone);
            }
            Stop::Signal(signal) => member.resume(Resume::Run, signal)?,
            Stop::Group => member.resume(Resume::Listen, 0)?,
            Stop::Event(Event::Stopped | Event::Other) => member.resume(Resume::Run, 0)?,
            Stop::Event(Event::Born) => {
                let born = Tracee::inherited(i32::try_from(member.message()?).unwrap_or_default());
                if !self.members.contains(&born) {
                    self.members.push(born);
                }
                member.resume(Resume::Run, 0)?
            }
            Stop::Event(Event::Executed) => {
                if member == self.leader {
                    self.end = self.end.or(Some(End::Executed));
                }
                member.resume(Resume::Run, 0)?
            }
            Stop::Event(Event::Filtered) => return self.filtered(member, wish),
        };
        Ok(Outcome::Resumed)
    }

    fn filtered(&self, member: Tracee, wish: Wish) -> Result<Outcome> {
        let registers = member.registers();
        if member.message()? != u64::from(FORK_MARK) {
            // A filter of the container's own says so, and in a container nobody would be there to be told.
            member.set_registers(&registers?.returning(-i64::from(Errno::ENOSYS as i32)))?;
        } else if wish == Wish::Copy && self.is_thread(member) {
            let registers = registers?;
            if let Some(call) = Call::instead_of(&registers) {
                return Ok(Outcome::Forks(Box::new(Forking { thread: member, registers, call })));
            }
        }
        member.resume(Resume::Run, 0)?;
        Ok(Outcome::Resumed)
    }

    /// Whether it is one of the template's process itself.
    fn is_thread(&self, member: Tracee) -> bool {
        let task = format!("/proc/{}/task/{}", self.leader.pid(), member.pid());
        member == self.leader || Path::new(&task).exists()
    }

    /// Takes in threads that were killed before anybody could tell of them: a process's end is told after theirs.
    fn find_threads(&mut self) -> bool {
        let list = |member: &Tracee| std::fs::read_dir(format!("/proc/{}/task", member.pid())).into_iter().flatten();
        let names = self.members.iter().flat_map(list).flatten().map(|entry| entry.file_name());
        let threads = names.filter_map(|name| name.to_str()?.parse().ok().map(Tracee::inherited));
        let found: BTreeSet<i32> =
            threads.filter(|thread| !self.members.contains(thread) && is_traced(*thread)).map(Tracee::pid).collect();
        self.members.extend(found.iter().copied().map(Tracee::inherited));
        !found.is_empty()
    }

    /// Kills and reaps everybody. A process's end is told after those of all its threads, so they are waited for together.
    pub(super) fn end(&mut self, deadline: Instant) -> Result<()> {
        self.members.iter().for_each(|member| member.kill());
        loop {
            self.members.retain(|member| !has_ended(*member));
            if Instant::now() < deadline && (self.adopt() || self.find_threads()) {
                self.members.iter().for_each(|member| member.kill());
                continue;
            }
            let Some(left) = self.members.first() else { return Ok(()) };
            if !await_stop(deadline) {
                let operation = format!("end process {}", left.pid());
                return Err(Error::new(Kind::Busy, operation, "it was killed and does not die"));
            }
        }
    }
}

/// Whether it has ended, and is reaped then.
pub(super) fn has_ended(tracee: Tracee) -> bool {
    match tracee.look() {
        Ok(Some(Stop::Ended(_))) => true,
        Ok(_) => false,
        Err(error) => error.kind() == Kind::NotFound,
    }
}

/// Whether it is us who trace it.
fn is_traced(found: Tracee) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", found.pid())).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok());
    tracer == Some(nix::unistd::getpid().as_raw())
}

/// Kills and reaps somebody, unless that was done before.
pub(super) fn finish(tracee: Tracee, deadline: Instant) -> Result<()> {
    match tracee.look() {
        Ok(Some(Stop::Ended(_))) => Ok(()),
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        Ok(_) | Err(_) => {
            tracee.kill();
            reap(tracee, deadline)
        }
    }
}

/// Kills and reaps copies that nobody was told of, because whoever made them was killed with the container in the middle of
/// that. As they are traced only we can reap them, and until then their container's first process does not end.
pub(super) fn end_strays(init: i32, deadline: Instant) -> Result<()> {
    // One that is gone has no children that wait for somebody.
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok().map(Tracee::inherited));
    children.filter(|child| is_traced(*child)).try_for_each(|stray| finish(stray, deadline))
}

/// Waits for the end of somebody who was killed.
fn reap(tracee: Tracee, deadline: Instant) -> Result<()> {
    loop {
        match tracee.wait(deadline) {
            Ok(Some(Stop::Ended(_))) => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => {
                let operation = format!("end process {}", tracee.pid());
                return Err(Error::new(Kind::Busy, operation, "it was killed and does not die"));
            }
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
