//! Start: the waiting process becomes the container's program.

use nix::sys::signal::SigSet;

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::create::Way;
use crate::runtime::record::{self, Locked, Record};
use crate::runtime::{Created, StateRoot, Status, checkpoint, hook, spawn, state};
use crate::sys::channel::Channel;
use crate::sys::fs::open_path;
use crate::sys::signal::Signal;

/// The socket on which a container's first process waits, in the container's directory.
pub(super) const SOCKET: &str = "start";

/// Starts a created container and runs its poststart hooks.
///
/// # Errors
/// [`Kind::State`] if it is not `created`, [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for the
/// program. If a poststart hook fails, the container is killed.
pub fn start(root: &StateRoot, id: &ContainerId) -> Result<()> {
    begin(root, id, (&Way::Socket, None))
}

impl Created {
    /// Starts the container that the calling process has just created, for [`super::Starter::Creator`].
    ///
    /// # Errors
    /// As [`start`].
    pub fn start(&self, root: &StateRoot, id: &ContainerId) -> Result<()> {
        begin(root, id, (&self.way, self.mask))
    }
}

/// `mask` is that of the hooks; ours if none.
fn begin(root: &StateRoot, id: &ContainerId, (way, mask): (&Way, Option<SigSet>)) -> Result<()> {
    let operation = || format!("start container '{id}'");
    let (lock, record) = find_waiting(root, id)?;
    match way {
        Way::Channel(channel) => spawn::start(channel).context(operation)?,
        Way::Socket if record.restored => checkpoint::go_on(&record).context(operation)?,
        Way::Socket => connect(root, id).and_then(|channel| spawn::start(&channel)).context(operation)?,
        Way::Restored => checkpoint::go_on(&record).context(operation)?,
    }
    complete(root, (lock, record), mask)
}

/// A container that waits for its start, and that nobody else can start meanwhile.
pub(super) fn find_waiting(root: &StateRoot, id: &ContainerId) -> Result<(Locked, Record)> {
    let operation = || format!("start container '{id}'");
    let lock = record::lock(root, id)?;
    let record = Record::load(root, id)?;
    let refuse = |cause: &str| Err(Error::new(Kind::State, operation(), cause));
    match state::status(&record)? {
        Status::Created => Ok((lock, record)),
        Status::Stopped => refuse("cannot start a container that has stopped"),
        Status::Running | Status::Paused => refuse("cannot start an already running container"),
        Status::Creating => refuse("it is still being created"),
    }
}

/// Puts on record that the program runs, and runs the hooks whose turn it is then.
pub(super) fn complete(root: &StateRoot, (lock, mut record): (Locked, Record), mask: Option<SigSet>) -> Result<()> {
    record.started(root)?;
    // A hook may ask for the state, or even delete the container.
    drop(lock);
    run_poststart(&record, mask)
}

/// Runs the hooks whose turn it is once the program runs. If one fails, the container is killed.
pub(super) fn run_poststart(record: &Record, mask: Option<SigSet>) -> Result<()> {
    if record.poststart.is_empty() {
        return Ok(());
    }
    let id = &record.id;
    let state = hook::State::of(record, Status::Running, record.init.as_ref().map(|init| init.pid));
    hook::run("poststart", &record.poststart, &state, hook::on_host(record, mask)).map_err(|error| {
        let killed = record.init().and_then(|init| init.open()).and_then(|process| match process {
            Some(process) => process.signal(Signal::KILL).map(drop),
            None => Ok(()),
        });
        if let Err(error) = killed {
            tracing::warn!("kill container '{id}' after a failed hook: {error}");
        }
        error.during(format!("start container '{id}'"))
    })
}

/// Reaches the process that waits.
pub(super) fn connect(root: &StateRoot, id: &ContainerId) -> Result<Channel> {
    let directory = open_path(&root.container(id))?;
    Channel::connect(&directory, SOCKET).map_err(|error| match error.kind() {
        Kind::NotFound => Error::new(Kind::State, "reach its first process", "only its creator, 'run', can start it"),
        _ => error,
    })
}
