//! Exec: one more process in a running container. Nothing of it is written anywhere.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::SigSet;
use oci_spec::runtime::Process;

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::create::{first_closed, keyring_name, write_pid_file};
use crate::runtime::record::Record;
use crate::runtime::spawn::exec as tenant;
use crate::runtime::{Pty, StateRoot, Status, foreground, state};
use crate::sys::process::{self, ExitStatus};
use crate::sys::signal::{self, Blocked};

/// How long a process that has lost its namespaces is given to be dead.
const DYING: Duration = Duration::from_millis(200);

/// What to run in a container.
#[derive(Debug)]
pub struct ExecRequest {
    /// The process, complete (see [`crate::bundle::process`]).
    pub process: Process,
    /// Returns once it runs, instead of when it has ended.
    pub detach: bool,
    /// A socket that gets the terminal's other end, for a detached process that wants a terminal.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the pid.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on stay open.
    pub preserve_fds: u32,
    /// Whether it may wait in a paused container for its resumption.
    pub ignore_paused: bool,
    /// A cgroup below the container's, which exists.
    pub sub_cgroup: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecOutcome {
    /// It runs.
    Detached,
    /// It has ended.
    Exited(ExitStatus),
}

/// Runs a process in a container.
///
/// # Errors
/// [`Kind::State`] if the container does not run, [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for
/// the program.
pub fn exec(root: &StateRoot, id: &ContainerId, request: ExecRequest) -> Result<ExecOutcome> {
    let operation = || format!("exec in container '{id}'");
    let record = Record::load(root, id)?;
    check_state(&record, request.ignore_paused)?;
    check_terminal(&request).context(operation)?;
    if request.detach {
        launch(&record, &request, signal::current_mask()?).context(operation)?;
        return Ok(ExecOutcome::Detached);
    }
    // Blocked before the process exists: a signal that comes meanwhile is kept for it.
    let signals = Blocked::all()?;
    let (child, pty) = launch(&record, &request, signals.before()).context(operation)?;
    foreground::attend(&child, signals, pty.as_ref(), |_| ()).map(ExecOutcome::Exited)
}

fn check_state(record: &Record, ignore_paused: bool) -> Result<()> {
    let refuse = |cause: &str| Err(Error::new(Kind::State, format!("exec in container '{}'", record.id), cause));
    match state::status(record)? {
        // One that was not started yet has its namespaces, and runc lets others in before its own program.
        Status::Running | Status::Created => Ok(()),
        Status::Paused if ignore_paused => Ok(()),
        Status::Paused => refuse("cannot exec in a paused container (use --ignore-paused to override)"),
        Status::Stopped => refuse("cannot exec in a stopped container: container not running"),
        Status::Creating => refuse("container not running: it is being made"),
    }
}

fn check_terminal(request: &ExecRequest) -> Result<()> {
    let terminal = request.process.terminal().unwrap_or(false);
    let refuse = |cause: &str| Err(Error::new(Kind::Invalid, "check the terminal", cause));
    match (terminal && request.detach, request.console_socket.is_some()) {
        (true, false) => refuse("cannot allocate tty if regen will detach without setting console socket"),
        (false, true) => refuse("cannot use console socket if regen will not detach or allocate tty"),
        (true, true) | (false, false) => Ok(()),
    }
}

/// Starts the process; returns it and, if it has a terminal that we show, that.
fn launch(record: &Record, request: &ExecRequest, mask: SigSet) -> Result<(process::Process, Option<Pty>)> {
    let not_running = || Error::new(Kind::State, "find its first process", "container not running");
    let init = record.init()?.open()?.ok_or_else(not_running)?;
    let spec = record.spec()?;
    let entered = || {
        let plan = tenant::plan(&spec, &request.process, &init)?;
        let entrance = match &request.sub_cgroup {
            Some(wish) => record.cgroup.below(wish)?.open()?,
            None => record.cgroup.open_beside(init.pid())?,
        };
        let order = tenant::Order {
            record,
            init: &init,
            entrance,
            console_socket: request.console_socket.as_deref(),
            closed_from: first_closed(request.preserve_fds),
            keyring: record.keyring.then(|| keyring_name(record.former.as_ref().unwrap_or(&record.id))),
            mask,
        };
        tenant::spawn(plan, order)
    };
    let (process, pty) = entered().map_err(|error| match error.kind() {
        // A dying container has no namespaces any more, and kills who is in them, before it is seen to be dead.
        Kind::System | Kind::State | Kind::NotFound if init.wait_end(DYING).unwrap_or(false) => not_running(),
        _ => error,
    })?;
    if let Some(path) = &request.pid_file {
        write_pid_file(path, process.pid())?;
    }
    Ok((process, pty))
}
