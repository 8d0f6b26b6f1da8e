//! The process that executes the template's program, from its birth to execve(2). It acts; what to do was decided before.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use oci_spec::runtime::Process as Wanted;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::{LANE, Origin};
use crate::error::{Context, Error, Kind, Result};
use crate::program::{self, Given, Kernel, Role, Surrender, UserNamespace};
use crate::sys::channel::Channel;
use crate::sys::clone::{self, Birth, Parent, close_on_exec_from, lift, place_from, replace_stream};
use crate::sys::keyring::join_session_keyring;
use crate::sys::process::Process;
use crate::sys::signal::reset_actions;
use crate::sys::trace::{Event, Resume, Stop, Tracee};

/// Where the program finds the zygote socket.
const ZYGOTE: u32 = 3;
/// Above every descriptor that is put in a place.
const ABOVE: i32 = LANE.cast_signed() + 8;

/// The namespaces that are joined at once; that of processes is for children only.
pub(super) const PLACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// The far ends of what leads to the template.
#[derive(Debug)]
pub(super) struct Ends {
    /// Of the zygote socket.
    pub zygote: OwnedFd,
    /// Of the way by which descriptors come.
    pub lane: OwnedFd,
}

/// Makes a process that has executed the template's program, and none of its instructions: it is stopped there, has every
/// right of ours, and its children will be in the container's pid namespace.
///
/// # Errors
/// What it could not do; it is gone then.
pub(super) fn load(origin: &Origin<'_>, ends: Ends, deadline: Instant) -> Result<Tracee> {
    let plan = plan(origin)?;
    let (ours, theirs) = Channel::pair()?;
    let directory = origin.sandbox.entrance.clone_into().map(|directory| directory.try_clone_to_owned()).transpose();
    let cgroup = directory.context(|| "open the template's cgroup")?;
    let birth =
        Birth { namespaces: CloneFlags::empty(), cgroup: cgroup.as_ref().map(AsFd::as_fd), parent: Parent::Caller };
    let mut near = Some(ours);
    let copy = &mut near;
    let loader = Loader { origin, plan: Some(plan), ends, channel: theirs };
    let process = clone::spawn(birth, move || {
        drop(copy.take());
        loader.run()
    })?;
    let ours = near.ok_or_else(|| Error::new(Kind::System, "load a template", "the way to its process is gone"))?;
    follow(&process, &ours, deadline).inspect_err(|_| {
        // The failure that led here is what is told.
        let _ = super::crew::finish(Tracee::inherited(process.pid()), deadline);
    })
}

/// Traces it until it has executed the program.
fn follow(process: &Process, channel: &Channel, deadline: Instant) -> Result<Tracee> {
    let tracee = Tracee::seize(process.pid())?;
    channel.send(b"G", &[])?;
    loop {
        match tracee.wait(deadline)? {
            None => return Err(Error::new(Kind::Busy, "load a template", "its program is not executed in time")),
            Some(Stop::Ended(status)) => return Err(told(channel, &status.to_string())),
            Some(Stop::Event(Event::Executed)) => break,
            Some(Stop::Event(_)) => tracee.resume(Resume::Run, 0)?,
            Some(Stop::Group) => tracee.resume(Resume::Listen, 0)?,
            Some(Stop::Signal(signal)) => tracee.resume(Resume::Run, signal)?,
        };
    }
    // To the end of execve(2), in the middle of which registers say nothing.
    tracee.resume(Resume::Step, 0)?;
    loop {
        match tracee.wait(deadline)? {
            Some(Stop::Signal(_)) => return Ok(tracee),
            Some(Stop::Event(_) | Stop::Group) => tracee.resume(Resume::Step, 0)?,
            Some(Stop::Ended(status)) => return Err(told(channel, &status.to_string())),
            None => return Err(Error::new(Kind::Busy, "load a template", "its program does not begin in time")),
        };
    }
}

/// The failure that the process has told of.
fn told(channel: &Channel, status: &str) -> Error {
    let silent = || Error::new(Kind::System, "load a template", format!("its process ended {status}"));
    match channel.receive() {
        Ok(Some(received)) => serde_json::from_slice(&received.bytes).unwrap_or_else(|_| silent()),
        Ok(None) | Err(_) => silent(),
    }
}

fn plan(origin: &Origin<'_>) -> Result<program::Plan> {
    let mut process = origin.process.clone();
    process.set_env(Some(environment(&process)));
    let given = Given { surrender: Surrender::Traced, ..Given::default() };
    let kernel = Kernel::observe(&process, UserNamespace::Own)?;
    // Its filter is loaded by whoever traces it.
    program::plan(&process, None, Role::Init, &kernel, given)
}

/// What the program finds in its environment beside its own.
fn environment(process: &Wanted) -> Vec<String> {
    let own = process.env().iter().flatten().filter(|variable| !variable.starts_with("REGEN_OCI_ZYGOTE"));
    own.cloned().chain(["REGEN_OCI_ZYGOTE=1".to_owned(), format!("REGEN_OCI_ZYGOTE_FD={ZYGOTE}")]).collect()
}

/// The process itself.
struct Loader<'a> {
    origin: &'a Origin<'a>,
    plan: Option<program::Plan>,
    ends: Ends,
    channel: Channel,
}

impl Loader<'_> {
    fn run(mut self) -> i32 {
        let Err(error) = self.live();
        let status = i32::from(error.exit_code());
        // If nobody is left to be told, nobody waits for it either.
        let _ = self.channel.send(&serde_json::to_vec(&error).unwrap_or_default(), &[]);
        status
    }

    fn live(&mut self) -> Result<Infallible> {
        close_on_exec_from(3)?;
        // Whoever is in the container must not look into us, or take over what we have open.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context(|| "hide from other processes")?;
        if self.channel.receive()?.is_none() {
            return Err(Error::new(Kind::System, "load a template", "its keeper is gone"));
        }
        let sandbox = self.origin.sandbox;
        sandbox.entrance.enter()?;
        setns(&sandbox.init, PLACES).context(|| "join the template's namespaces")?;
        setns(&sandbox.init, CloneFlags::CLONE_NEWPID).context(|| "join the template's pid namespace")?;
        rustix::process::chdir("/").context(|| "enter the template's root")?;
        join_session_keyring("_ses.regen.template")?;
        self.place()?;
        let used_up = || Error::new(Kind::System, "load a template", "its plan was used twice");
        let mut plan = self.plan.take().ok_or_else(used_up)?;
        plan.prepare()?;
        // Clones have the actions of their template, whatever the daemon was started by.
        reset_actions()?;
        Err(plan.execute(&SigSet::empty()))
    }

    /// Puts every descriptor where the program, or its tracer, looks for it.
    fn place(&mut self) -> Result<()> {
        let lifted: Vec<OwnedFd> = self.origin.stdio.iter().map(|stream| lift(stream, ABOVE)).collect::<Result<_>>()?;
        for (stream, number) in lifted.iter().zip(0..) {
            replace_stream(stream.as_fd(), number)?;
        }
        let (zygote, lane) = (lift(&self.ends.zygote, ABOVE)?, lift(&self.ends.lane, ABOVE)?);
        self.channel = Channel::from(lift(&self.channel, ABOVE)?);
        place_from(ZYGOTE, &[zygote.as_fd()])?;
        place_from(LANE, &[lane.as_fd()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zygote_is_told_where_its_socket_is_whatever_its_environment_says() {
        let process: Wanted = serde_json::from_value(serde_json::json!({"cwd": "/", "user": {"uid": 0, "gid": 0},
            "args": ["x"], "env": ["A=b", "REGEN_OCI_ZYGOTE_FD=9"]}))
        .unwrap();
        assert_eq!(environment(&process), ["A=b", "REGEN_OCI_ZYGOTE=1", "REGEN_OCI_ZYGOTE_FD=3"]);
    }
}
