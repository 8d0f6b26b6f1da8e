//! The maker's side of a process's birth.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sched::CloneFlags;
use serde_json::json;

use super::init::{self, Init};
use super::message::{self, Handed, Report, Shelter, Word, await_report, say};
use super::plan::{Plan, Seccomp, used_up};
use super::{Born, Order, has_host_hooks, terminal};
use crate::cgroup::{Entrance, Manager};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::program::Intercept;
use crate::runtime::hook::{self, State};
use crate::runtime::record::Record;
use crate::runtime::{Pty, Status};
use crate::sys::channel::Channel;
use crate::sys::clone::{self, Birth, Parent};
use crate::sys::process::Process;
use crate::sys::signal::Signal;

/// A process in the making: killed with everything below it unless it comes of age.
#[derive(Debug)]
pub(super) struct Fledgling {
    process: Option<Process>,
    channel: Channel,
}

impl Fledgling {
    pub(super) fn new(process: Process, channel: Channel) -> Self {
        Self { process: Some(process), channel }
    }

    pub(super) fn pid(&self) -> i32 {
        self.process.as_ref().map_or(0, Process::pid)
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Says a word to it.
    pub(super) fn tell(&mut self, word: Word) -> Result<()> {
        if say(&self.channel, word)? { Ok(()) } else { Err(self.last_words()) }
    }

    /// Waits for what it has to say, which is an error if it failed.
    pub(super) fn ask(&mut self) -> Result<Report> {
        match await_report(&self.channel)? {
            Some(Report::Failed(error)) => Err(error),
            Some(report) => Ok(report),
            None => Err(self.obituary()),
        }
    }

    /// Why nobody hears us any more: it may have said so before.
    fn last_words(&mut self) -> Error {
        loop {
            match await_report(&self.channel) {
                Ok(Some(Report::Failed(error))) | Err(error) => return error,
                Ok(Some(_)) => {}
                Ok(None) => return self.obituary(),
            }
        }
    }

    fn obituary(&mut self) -> Error {
        let status = self.process.take().and_then(|process| process.reap().ok().flatten());
        let cause = match status {
            Some(status) => format!("it ended early, {status}"),
            None => "it ended early".to_owned(),
        };
        Error::new(Kind::System, "make the process", cause).next("see whether a memory or pid limit is too low")
    }

    /// From now on it lives without us.
    pub(super) fn come_of_age(mut self) -> Result<(Process, Channel)> {
        let process = self.process.take().ok_or_else(used_up)?;
        let channel = self.channel.duplicate()?;
        Ok((process, channel))
    }

    /// An intermediate says whom it has made, and ends.
    pub(super) fn replace(&mut self) -> Result<()> {
        let pid = match self.ask()? {
            Report::Cloned(pid) => pid,
            other @ (Report::Mounted
            | Report::Ready(_)
            | Report::Executing
            | Report::Sheltering(_)
            | Report::Adopted
            | Report::Failed(_)) => {
                return Err(unexpected(&other));
            }
        };
        let made = Process::open(pid)?.ok_or_else(|| self.obituary())?;
        if let Some(intermediate) = self.process.replace(made) {
            intermediate.reap()?;
        }
        Ok(())
    }
}

impl Drop for Fledgling {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        let ended = process.signal(Signal::KILL).and_then(|_| process.reap());
        if let Err(error) = ended {
            tracing::warn!("end a half-made process: {error}");
        }
    }
}

/// Makes a container's first process, up to where it waits for its start. Fills in where systemd put it.
///
/// # Errors
/// Whatever failed on either side; the process is then gone.
pub(in crate::runtime) fn bear(
    record: &mut Record,
    mut plan: Plan,
    entrance: Entrance,
    mut order: Order,
) -> Result<Born> {
    let systemd = record.cgroup.manager == Manager::Systemd;
    let between = plan.namespaces.need_intermediate();
    let new_user = plan.ids.is_some();
    let mut fledgling = launch(record, &mut plan, entrance, &mut order)?;
    if let Some(ids) = &plan.ids {
        ids.write(fledgling.pid(), order.privilege)?;
        if between {
            fledgling.tell(Word::Go)?;
        }
    }
    if between {
        fledgling.replace()?;
    }
    if systemd {
        record.cgroup.admit(fledgling.pid(), order.resources.as_ref())?;
    }
    if between || new_user || systemd {
        fledgling.tell(Word::Go)?;
    }
    let handed = attend(record, &plan, &mut fledgling, &order)?;
    if let Some(program) = &plan.program {
        program.limit(fledgling.pid())?;
    }
    let listener = match (handed.listener, order.intercept) {
        (Some(listener), Intercept::No) => {
            send_listener(record, &plan.seccomp, listener.as_fd(), fledgling.pid())?;
            None
        }
        (listener, Intercept::Binds) => listener,
        (None, Intercept::No) => None,
    };
    let pty = match (handed.terminal, &order.console_socket) {
        (Some(near), Some(socket)) => terminal::send(near.as_fd(), socket).map(|()| None)?,
        (near, None) => near.map(Pty::new),
        (None, Some(_)) => None,
    };
    let (process, channel) = fledgling.come_of_age()?;
    Ok(Born { process, channel, pty, listener })
}

/// Clones the first process, or the intermediate before it.
fn launch(record: &Record, plan: &mut Plan, entrance: Entrance, order: &mut Order) -> Result<Fledgling> {
    let joined = plan.namespaces.open()?;
    if let Some(rootfs) = &mut plan.rootfs {
        rootfs.open_sources()?;
    }
    let between = plan.namespaces.need_intermediate();
    let namespaces = match (between, plan.ids.is_some()) {
        (false, _) => plan.namespaces.at_birth(),
        (true, true) => CloneFlags::CLONE_NEWUSER,
        (true, false) => CloneFlags::empty(),
    };
    let cgroup = entrance.clone_into().map(|directory| directory.try_clone_to_owned()).transpose();
    let cgroup = cgroup.context(|| "open the container's cgroup")?;
    let birth = Birth { namespaces, cgroup: cgroup.as_ref().map(AsFd::as_fd), parent: Parent::Caller };
    let (ours, theirs) = Channel::pair()?;
    let waits = plan.ids.is_some() || record.cgroup.manager == Manager::Systemd;
    let init = Init {
        record,
        plan,
        channel: theirs,
        entrance,
        joined,
        starter: order.starter.take(),
        stdio: std::mem::take(&mut order.stdio),
        closed_from: order.closed_from,
        sockets: std::mem::take(&mut order.sockets),
        keyring: order.keyring.clone(),
        mask: order.mask,
        waits,
    };
    let mut ours = Some(ours);
    let copy = &mut ours;
    // What the child gets is moved into its closure, so that the maker's copies are closed when it is back.
    let process = clone::spawn(birth, move || {
        // The maker's death shows as the end of the connection only if nobody else has its end.
        drop(copy.take());
        if between { init::intermediate(init) } else { init.run() }
    })?;
    Ok(Fledgling::new(process, ours.ok_or_else(used_up)?))
}

/// Runs the hooks whose turn it is, until the process is ready.
fn attend(record: &Record, plan: &Plan, fledgling: &mut Fledgling, order: &Order) -> Result<Handed> {
    loop {
        match fledgling.ask()? {
            Report::Ready(handed) => return Ok(handed),
            Report::Mounted if has_host_hooks(&plan.hooks) => {
                let state = State::of(record, Status::Creating, Some(fledgling.pid()));
                let place = hook::on_host(record, Some(order.mask));
                hook::run("prestart", hook::prestart(&plan.hooks), &state, place)?;
                let hooks = plan.hooks.create_runtime().as_deref().unwrap_or_default();
                hook::run("createRuntime", hooks, &state, place)?;
                fledgling.tell(Word::Go)?;
            }
            other @ (Report::Mounted
            | Report::Cloned(_)
            | Report::Executing
            | Report::Sheltering(_)
            | Report::Adopted
            | Report::Failed(_)) => {
                return Err(unexpected(&other));
            }
        }
    }
}

/// Hands the listener of a filter to whoever decides for the container, as the runtime specification has it.
pub(in crate::runtime::spawn) fn send_listener(
    record: &Record,
    seccomp: &Seccomp,
    listener: BorrowedFd<'_>,
    pid: i32,
) -> Result<()> {
    let path = seccomp.path.as_deref().ok_or_else(|| {
        Error::new(Kind::Invalid, "check linux.seccomp.listenerPath", "it is missing, and a rule asks a listener")
    })?;
    let operation = || format!("send the seccomp listener to {}", quote(path));
    let status = if record.init.is_some() { Status::Running } else { Status::Creating };
    let state_pid = record.init.as_ref().map_or(pid, |init| init.pid);
    let mut state = json!({
        "ociVersion": record.oci_version,
        "fds": ["seccompFd"],
        "pid": pid,
        "state": serde_json::to_value(State::of(record, status, Some(state_pid))).context(operation)?,
    });
    if let Some(metadata) = &seccomp.metadata {
        state["metadata"] = metadata.clone().into();
    }
    let stream = UnixStream::connect(path).context(operation)?;
    // One message on a stream: whoever reads it finds the descriptor with the first byte.
    match Channel::from(std::os::fd::OwnedFd::from(stream)).send(state.to_string().as_bytes(), &[listener])? {
        true => Ok(()),
        false => Err(Error::new(Kind::System, operation(), "nobody reads it")),
    }
}

/// Lets a process that is on record wait for whoever starts it.
///
/// # Errors
/// [`Kind::State`] if it has ended meanwhile.
pub(in crate::runtime) fn release(channel: &Channel) -> Result<()> {
    if say(channel, Word::Listen)? {
        return Ok(());
    }
    Err(Error::new(Kind::State, "let the container's process wait", "container not running: it has ended"))
}

/// Says "start" to a process that waits, or that shelters, and hears what comes of it.
///
/// # Errors
/// [`Kind::CommandNotFound`] and the like for the program, those of hooks, [`Kind::State`] if the process is gone.
pub(in crate::runtime) fn start(channel: &Channel) -> Result<()> {
    if !say(channel, Word::Start)? {
        return Err(gone());
    }
    let mut executing = false;
    loop {
        match await_report(channel)? {
            Some(Report::Executing) => executing = true,
            Some(Report::Failed(error)) => return Err(error),
            Some(
                other @ (Report::Cloned(_)
                | Report::Mounted
                | Report::Ready(_)
                | Report::Sheltering(_)
                | Report::Adopted),
            ) => return Err(unexpected(&other)),
            // The program has taken the place of whoever held the other end.
            None if executing => return Ok(()),
            None => return Err(gone()),
        }
    }
}

/// Says "shelter" to a process that waits: the startContainer hooks run, and it hands out what the program is to have.
///
/// # Errors
/// Those of hooks, [`Kind::State`] if the process is gone.
pub(in crate::runtime) fn shelter(channel: &Channel) -> Result<Shelter> {
    if !say(channel, Word::Shelter)? {
        return Err(gone());
    }
    match await_report(channel)? {
        Some(Report::Sheltering(shelter)) => Ok(shelter),
        other => Err(failure(other)),
    }
}

/// Tells a process that shelters whom it is to look after, by the pid that it sees, and where it writes how that ended.
///
/// # Errors
/// [`Kind::State`] if the process is gone.
pub(in crate::runtime) fn adopt(channel: &Channel, pid: i32, status: Option<BorrowedFd<'_>>) -> Result<()> {
    propose(channel, pid, status)?;
    hear_adopted(channel)
}

/// The first half of [`adopt`].
///
/// # Errors
/// [`Kind::State`] if the process is gone.
pub(in crate::runtime) fn propose(channel: &Channel, pid: i32, status: Option<BorrowedFd<'_>>) -> Result<()> {
    if message::adopt(channel, pid, status)? { Ok(()) } else { Err(gone()) }
}

/// The second half of [`adopt`].
///
/// # Errors
/// [`Kind::State`] if the process is gone; its own.
pub(in crate::runtime) fn hear_adopted(channel: &Channel) -> Result<()> {
    match await_report(channel)? {
        Some(Report::Adopted) => Ok(()),
        other => Err(failure(other)),
    }
}

fn failure(report: Option<Report>) -> Error {
    match report {
        Some(Report::Failed(error)) => error,
        Some(other) => unexpected(&other),
        None => gone(),
    }
}

fn gone() -> Error {
    Error::new(Kind::State, "start the program", "container not running: its process has ended")
}

pub(super) fn unexpected(report: &Report) -> Error {
    Error::new(Kind::System, "make the process", format!("it said {report:?} at the wrong time"))
}
