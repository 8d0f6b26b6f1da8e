//! `run`: create, start, and in the foreground stay until the end and delete.

use crate::bundle::Bundle;
use crate::cli;
use crate::command::{World, create};
use crate::error::{Error, Result};
use crate::ids::ContainerId;
use crate::runtime::{self, Stdio};
use crate::sys::process::check_preserved_fds;
use crate::sys::signal::Blocked;

/// The container's exit status, or 0 once it runs detached.
pub(super) fn run(world: &World, arguments: &cli::Run) -> Result<u8> {
    check_preserved_fds(arguments.making.preserve_fds)?;
    let mut bundle = Bundle::load(&arguments.bundle)?;
    let mut terminal = false;
    if let Some(process) = bundle.spec.process_mut() {
        if !arguments.command.is_empty() {
            process.set_args(Some(arguments.command.clone()));
        }
        if arguments.tty {
            process.set_terminal(Some(true));
        }
        terminal = process.terminal().unwrap_or(false);
    }
    let mut request = create::request(world, &arguments.id, bundle, &arguments.making)?;
    if arguments.detach {
        runtime::create(&world.root, request)?;
        return runtime::start(&world.root, &arguments.id).map(|()| 0).inspect_err(|_| discard(world, &arguments.id));
    }
    if terminal {
        request.stdio = Stdio::Pty;
    }
    // From here on a signal is not ours to die of: it is the container's.
    let signals = Blocked::all()?;
    request.mask = Some(signals.before());
    let created = runtime::create(&world.root, request)?;
    let ended = runtime::wait_foreground(&world.root, &arguments.id, &created, signals);
    match (ended, arguments.keep) {
        (Ok(status), true) => Ok(status.code()),
        (Ok(status), false) => delete(world, &arguments.id).map(|()| status.code()),
        (Err(error), _) => {
            discard(world, &arguments.id);
            Err(error)
        }
    }
}

fn delete(world: &World, id: &ContainerId) -> Result<()> {
    let gone = |error: Error| match error.kind() {
        // Somebody else has deleted it under us, which they may.
        crate::error::Kind::NotFound => Ok(()),
        _ => Err(error),
    };
    runtime::stop(&world.root, id, true).and_then(|()| runtime::remove(&world.root, id)).or_else(gone)
}

/// After a failure: the first error is the one that is told.
fn discard(world: &World, id: &ContainerId) {
    if let Err(error) = delete(world, id) {
        tracing::warn!("delete container '{id}' after a failure: {error}");
    }
}
