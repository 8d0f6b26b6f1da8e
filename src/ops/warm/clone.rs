//! A clone: from a request to a process that runs.
//!
//! ```text
//! take    limits, function ─> descriptors ─> fork ─> it runs ─> name and record ─> answer ─> a worker does the rest
//! enter   place in the foreign container ─> descriptors ─> fork ─> it runs ─> answer; its container's maker does the rest
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use oci_spec::runtime::{LinuxSeccomp, Process as Wanted};

use super::blank::filter_alone;
use super::crew::Urgency;
use super::function;
use super::keeper::Keeper;
use super::stock::{Leaving, Sandbox};
use super::task::Task;
use super::watch::Source;
use super::worker::resources;
use super::zygote;
use crate::cgroup::Cgroup;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::program::{self, persona};
use crate::runtime;
use crate::sys::process::{Identity, Process};
use crate::sys::signal::Signal;
use crate::template::message::{
    Answer, Cleanup, ENTER_DESCRIPTORS, Enter, Extra, Phase, Stage, TAKE_DESCRIPTORS, Take, Terminal,
};
use crate::template::proxy::{Control, Guest, Sandbox as Place};

/// How long the program may take until it forks. It stands in a loop that does nothing else.
const FORK: Duration = Duration::from_secs(10);
/// Sandboxes that are tried for one request, where others have ended one.
const TRIES: usize = 3;

/// Somebody who wants a clone.
#[derive(Debug)]
pub(super) struct Waiting {
    pub caller: u64,
    pub take: Take,
    pub files: Vec<OwnedFd>,
}

/// Who somebody was in a foreign container, so that it need not be decided again for the next one like it.
#[derive(Debug)]
pub(super) struct Persona {
    process: Wanted,
    seccomp: Option<LinuxSeccomp>,
    persona: program::Persona,
}

/// The descriptors of a request by what they are for.
#[derive(Debug)]
struct Files<'a> {
    /// As the clone will have them: 0, 1, 2, the job, and the result if it has one.
    own: Vec<BorrowedFd<'a>>,
    status: Option<BorrowedFd<'a>>,
    function: Option<BorrowedFd<'a>>,
}

/// Sorts the descriptors of a request.
fn sort<'a>(take: &Take, files: &'a [OwnedFd]) -> Result<Files<'a>> {
    let refuse = |cause: &str| Err(Error::new(Kind::Invalid, "take a request", cause));
    if files.len() != TAKE_DESCRIPTORS + take.extra.len() {
        return refuse("it has other descriptors than it says");
    }
    let (fixed, extra) = files.split_at(TAKE_DESCRIPTORS);
    let find = |kind: Extra| {
        let mut found = take.extra.iter().zip(extra).filter(|(extra, _)| **extra == kind).map(|(_, file)| file.as_fd());
        (found.next(), found.next().is_some())
    };
    let ((status, again), (result, twice), (function, more)) =
        (find(Extra::Status), find(Extra::Result), find(Extra::Function));
    if again || twice || more {
        return refuse("it has a descriptor twice");
    }
    let own = fixed[1..].iter().chain(&fixed[..1]).map(AsFd::as_fd).chain(result).collect();
    Ok(Files { own, status, function })
}

/// A clone that runs.
struct Born {
    container: ContainerId,
    process: Process,
}

impl Keeper {
    /// Has a request done now, or as soon as there is a sandbox.
    pub(super) fn take(&mut self, waiting: Waiting) {
        if let Err(error) = self.check(&waiting) {
            return self.answer(waiting.caller, &Answer::Failed { error, stage: Stage::Before });
        }
        if self.sandboxes.is_empty() || !self.waiting.is_empty() {
            if let Some(caller) = self.requests.as_mut().and_then(|callers| callers.get(waiting.caller)) {
                caller.waits = true;
                // Its next request is heard after this one.
                let _ = self.watch.mute(&*caller, Source::Caller(waiting.caller));
            }
            return self.waiting.push_back(waiting);
        }
        self.clone_for(waiting);
    }

    /// Those who wait, as far as there are sandboxes.
    pub(super) fn serve_waiting(&mut self) {
        while !self.sandboxes.is_empty()
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.release(waiting.caller);
            self.clone_for(waiting);
        }
    }

    /// From now on its next request is heard.
    pub(super) fn release(&mut self, number: u64) {
        if let Some(caller) = self.requests.as_mut().and_then(|callers| callers.get(number)) {
            caller.waits = false;
            let _ = self.watch.unmute(&*caller, Source::Caller(number));
        }
    }

    fn check(&self, waiting: &Waiting) -> Result<()> {
        let refuse =
            |kind, cause: &str| Err(Error::new(kind, format!("clone template '{}'", self.order.definition), cause));
        if self.held.is_none() || self.loaded.is_none() || !matches!(self.phase, Phase::Ready | Phase::Retiring) {
            return Err(self.unavailable());
        }
        sort(&waiting.take, &waiting.files)?;
        match (&waiting.take.id, waiting.take.cleanup) {
            (None, Cleanup::Keep) => refuse(Kind::Usage, "a clone that is to be kept needs a name"),
            (Some(id), _) if self.place.root.container(id).exists() => {
                let cause = format!("container with given ID already exists: '{id}'");
                let error = Error::new(Kind::Exists, format!("clone template '{}'", self.order.definition), cause);
                Err(error.next("choose another id or delete that container"))
            }
            (Some(_), _) | (None, Cleanup::WithConnection) => Ok(()),
        }
    }

    fn clone_for(&mut self, waiting: Waiting) {
        let mut last = None;
        for _ in 0..TRIES {
            let Some(sandbox) = self.sandboxes.pop_front() else { break };
            match self.clone_into(sandbox, &waiting) {
                Ok(()) => return,
                Err((Stage::Before, error)) if self.held.is_some() => last = Some(error),
                Err((stage, error)) => {
                    let error = error.during(format!("clone template '{}'", self.order.definition));
                    return self.answer(waiting.caller, &Answer::Failed { error, stage });
                }
            }
        }
        match last {
            Some(error) => {
                let error = error.during(format!("clone template '{}'", self.order.definition));
                self.answer(waiting.caller, &Answer::Failed { error, stage: Stage::Before });
            }
            None => self.take(waiting),
        }
    }

    /// A clone in this sandbox. What comes before the fork is only what the clone needs.
    fn clone_into(&mut self, sandbox: Sandbox, waiting: &Waiting) -> std::result::Result<(), (Stage, Error)> {
        let before = |error| (Stage::Before, error);
        let files = sort(&waiting.take, &waiting.files).map_err(before)?;
        let Sandbox { number, container, init, cgroup, berth, guest } = sandbox;
        let forked = self
            .furnish_for(&waiting.take, &files, (init, &cgroup, guest))
            .and_then(|guest| self.fork(guest, waiting.take.terminal));
        let process = match forked {
            Ok(process) => process,
            Err(error) => {
                self.watch.remove(berth.channel());
                self.crew.push(Task::Remove { container }, Urgency::Later);
                return Err(before(error));
            }
        };
        // It runs.
        self.status.clones += 1;
        let adopted = process.inner_pid().and_then(|pid| {
            let identity = Identity::of(process.pid())?;
            berth.adopt(pid, files.status)?;
            Ok(identity)
        });
        self.leaving.insert(number, Leaving { container: container.clone(), berth });
        match adopted {
            Ok(identity) => self.conclude(Born { container, process }, &identity, waiting),
            Err(error) => Err(self.give_up(container, error)),
        }
    }

    /// Gives a clone's place what the request wants there. The place goes if that fails.
    fn furnish_for(
        &mut self,
        take: &Take,
        files: &Files<'_>,
        (init, cgroup, mut guest): (Process, &Cgroup, Guest),
    ) -> Result<Guest> {
        let given = (|| {
            if let Some(memory) = take.limits.memory {
                cgroup.apply(&resources(memory)?)?;
            }
            files.function.map_or(Ok(()), |function| function::mount(&init, function))
        })();
        if let Err(error) = given {
            self.dismiss(guest);
            return Err(error);
        }
        if let Some(workdir) = &take.workdir {
            // A place is made where its clone begins: this one is made anew.
            self.dismiss(guest);
            let directory = function::open_directory(&init, workdir)?;
            let (Some(held), Some(loaded)) = (&mut self.held, &self.loaded) else { return Err(self.unavailable()) };
            let prepared = held.prepare(&Place::new(init, cgroup)?, &loaded.persona, directory.as_fd());
            guest = self.check_sound(prepared)?;
        }
        match self.furnish(&mut guest, &files.own) {
            Ok(()) => Ok(guest),
            Err(error) => {
                self.dismiss(guest);
                Err(error)
            }
        }
    }

    /// Puts a clone that runs on record, and tells of it.
    fn conclude(
        &mut self,
        born: Born,
        identity: &Identity,
        waiting: &Waiting,
    ) -> std::result::Result<(), (Stage, Error)> {
        let Born { container, process } = born;
        let Take { id, cleanup, limits, .. } = &waiting.take;
        let root = self.place.root.clone();
        let name = id.clone().unwrap_or_else(|| container.clone());
        let told = Answer::Taken { container: name.clone(), pid: process.pid() };
        if *cleanup == Cleanup::WithConnection
            && let Some(caller) = self.requests.as_mut().and_then(|callers| callers.get(waiting.caller))
        {
            caller.attended.push(name.clone());
        }
        if id.is_none() {
            self.answer(waiting.caller, &told);
            // It may have been deleted already: by whoever heard of it.
            if let Err(error) = runtime::record_program(&root, &container, &container, identity) {
                tracing::debug!("{error}");
            }
        } else {
            if let Err(error) = runtime::record_program(&root, &container, &name, identity) {
                if let Some(caller) = self.requests.as_mut().and_then(|callers| callers.get(waiting.caller)) {
                    caller.attended.retain(|attended| *attended != name);
                }
                // Nobody may run under a name that is another's.
                let _ = process.signal(Signal::KILL);
                return Err(self.give_up(container, error));
            }
            self.answer(waiting.caller, &told);
        }
        let task = Task::Settle { container: name, renamed: id.is_some(), limits: limits.clone() };
        self.crew.push(task, Urgency::Later);
        Ok(())
    }

    fn give_up(&mut self, container: ContainerId, error: Error) -> (Stage, Error) {
        self.crew.push(Task::Remove { container }, Urgency::Later);
        (Stage::After, error)
    }

    fn furnish(&mut self, guest: &mut Guest, files: &[BorrowedFd<'_>]) -> Result<()> {
        let Some(held) = &mut self.held else { return Err(self.unavailable()) };
        let furnished = held.furnish(guest, files);
        self.check_sound(furnished)
    }

    fn fork(&mut self, guest: Guest, terminal: Terminal) -> Result<Process> {
        let Some(held) = &mut self.held else { return Err(self.unavailable()) };
        let control = match terminal {
            Terminal::None => Control::None,
            Terminal::Controlling => Control::Terminal,
        };
        let number = self.forks + 1;
        let forked = match held.channel().send_now(zygote::fork(number).as_bytes()) {
            Ok(true) => {
                self.forks = number;
                held.fork(guest, control, FORK)
            }
            Ok(false) => Err(Error::new(Kind::State, "tell the template's program to fork", "it does not listen")),
            Err(error) => Err(error),
        };
        self.check_sound(forked)
    }

    fn dismiss(&mut self, guest: Guest) {
        if let Some(held) = &mut self.held
            && let Err(error) = held.dismiss(guest)
        {
            tracing::debug!("{error}");
        }
    }

    /// A clone in a container that somebody else has made.
    pub(super) fn enter(&mut self, enter: Enter, files: Vec<OwnedFd>) -> Answer {
        if self.held.is_none() || self.loaded.is_none() {
            return Answer::Failed { error: self.unavailable(), stage: Stage::Before };
        }
        let container = enter.container.clone();
        match self.try_enter(enter, &files) {
            Ok(process) => match process.inner_pid() {
                Ok(inner_pid) => {
                    self.status.clones += 1;
                    Answer::Entered { pid: process.pid(), inner_pid }
                }
                Err(error) => {
                    let _ = process.signal(Signal::KILL);
                    Answer::Failed { error, stage: Stage::After }
                }
            },
            Err(error) if error.kind() == Kind::Unsupported => Answer::Unfit { reason: error.without_next_step() },
            Err(error) => {
                let operation = format!("clone template '{}' into container '{container}'", self.order.definition);
                Answer::Failed { error: error.during(operation), stage: Stage::Before }
            }
        }
    }

    fn try_enter(&mut self, enter: Enter, files: &[OwnedFd]) -> Result<Process> {
        let Enter { container, init, cgroup, process, seccomp, terminal } = enter;
        let operation = || format!("enter container '{container}'");
        let Ok([job, stdin, stdout, stderr, directory]) = <&[OwnedFd; ENTER_DESCRIPTORS]>::try_from(files) else {
            return Err(Error::new(Kind::Invalid, operation(), "its request has other descriptors than it should"));
        };
        self.recall(process, seccomp)?;
        let gone = || Error::new(Kind::State, operation(), "its first process has ended");
        let place = Place::new(init.open()?.ok_or_else(gone)?, &cgroup)?;
        let (Some(held), Some(foreign)) = (&mut self.held, &self.foreign) else { return Err(self.unavailable()) };
        let prepared = held.prepare(&place, &foreign.persona, directory.as_fd());
        let mut guest = self.check_sound(prepared)?;
        let own = [stdin, stdout, stderr, job].map(AsFd::as_fd);
        if let Err(error) = self.furnish(&mut guest, &own) {
            self.dismiss(guest);
            return Err(error);
        }
        self.fork(guest, terminal)
    }

    /// Decides who somebody is in a foreign container, unless the one before was the same.
    fn recall(&mut self, process: Wanted, seccomp: Option<LinuxSeccomp>) -> Result<()> {
        let same = |known: &Persona| known.process == process && known.seccomp == seccomp;
        if !self.foreign.as_ref().is_some_and(same) {
            let persona = persona(&process, Some(&filter_alone(seccomp.clone())))?;
            self.foreign = Some(Persona { process, seccomp, persona });
        }
        Ok(())
    }
}
