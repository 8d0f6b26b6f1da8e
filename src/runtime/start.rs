//! Start: the waiting process becomes the container's program.

use std::io::Write;
use std::os::unix::net::UnixStream;

use libcontainer::container::ContainerStatus;
use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::{self, Record};
use crate::runtime::{StateRoot, Status, hook, state};
use crate::sys::fs::by_descriptor;
use crate::sys::signal::Signal;

/// The socket on which the engine's init waits, in the engine's directory.
const NOTIFY: &str = "notify.sock";

/// Starts a created container and runs its poststart hooks.
///
/// # Errors
/// [`Kind::State`] if it is not `created`. If a poststart hook fails, the container is killed.
pub fn start(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let operation = || format!("start container '{id}'");
    let lock = record::lock(root, id)?;
    let mut record = Record::load(root, id)?;
    match state::status(&record)? {
        Status::Created => {}
        Status::Stopped => {
            return Err(Error::new(Kind::State, operation(), "cannot start a container that has stopped"));
        }
        Status::Running | Status::Paused => {
            return Err(Error::new(Kind::State, operation(), "cannot start an already running container"));
        }
        Status::Creating => return Err(Error::new(Kind::State, operation(), "it is still being created")),
    }
    notify(root, id).context(operation)?;
    record.started(root)?;
    // A hook may ask for the state, or even delete the container.
    drop(lock);
    if record.hooks.poststart.is_empty() {
        return Ok(());
    }
    hook::run(&record.hooks.poststart, &record, ContainerStatus::Running).map_err(|error| {
        let killed = record.init().and_then(|init| init.open()).and_then(|process| match process {
            Some(process) => process.signal(Signal::KILL).map(drop),
            None => Ok(()),
        });
        if let Err(error) = killed {
            tracing::warn!("kill container '{id}' after a failed hook: {error}");
        }
        error.during("run poststart hooks").during(operation())
    })
}

/// Says "go" to the process that waits. The socket's path may be longer than an address may be.
fn notify(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let operation = || "wake its first process";
    let directory = record::engine(root, id).join(id.as_str());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(&directory, flags, Mode::empty()).context(operation)?;
    let mut stream = UnixStream::connect(by_descriptor(&handle).join(NOTIFY)).context(operation)?;
    stream.write_all(b"start container").context(operation)
}
