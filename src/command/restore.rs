//! `restore`: a container whose processes come from files, and go on where they were.

use crate::cli::checkpoint::Restore;
use crate::command::world::absolute;
use crate::command::{World, checkpoint, saved};
use crate::error::{Error, Kind, Result};
use crate::image::process::Overrides;
use crate::ops::load::{self, Network, Source, Supervised, Wish};
use crate::ops::save;
use crate::runtime::{self, RestoreRequest, Starter};
use crate::sys::signal::Blocked;

/// The container's exit status, or 0 once it runs detached.
pub(super) fn run(world: &World, arguments: &Restore) -> Result<u8> {
    let id = &arguments.id;
    // A signal that comes from here on is the container's.
    let signals = if arguments.detach { None } else { Some(Blocked::all()?) };
    let request = RestoreRequest {
        images: checkpoint::images(&arguments.images)?,
        trees: Vec::new(),
        lazy_pages: arguments.lazy_pages,
        lsm_profile: arguments.lsm_profile.clone(),
        lsm_mount_context: arguments.lsm_mount_context.clone(),
        mask: signals.as_ref().map(Blocked::before),
    };
    let pid_file = arguments.pid_file.as_deref().map(absolute).transpose()?;
    let console_socket = arguments.console_socket.as_deref().map(absolute).transpose()?;
    let wish = Wish {
        id: id.clone(),
        source: Source::Bundle(arguments.bundle.clone()),
        ring: None,
        default_ring: world.default_ring.clone(),
        process: Overrides::default(),
        terminal: false,
        network: Network::Own,
        follows: None,
        notify: None,
        supervised: if arguments.detach { Supervised::Elsewhere } else { Supervised::Here },
    };
    let live = load::create(&world.place, wish, |made| {
        made.mask = request.mask;
        made.restore = Some(request);
        made.starter = Starter::Creator;
        made.pid_file = pid_file;
        made.console_socket = console_socket;
        made.cgroups = world.cgroups;
    })?;
    let ended = match signals {
        None => live.created.start(&world.place.root, id).map(|()| None),
        Some(signals) => {
            let begin = || live.created.start(&world.place.root, id);
            runtime::wait_foreground(&world.place.root, id, (&live.created, signals), begin).map(Some)
        }
    };
    match ended {
        Ok(None) => Ok(0),
        Ok(Some(status)) => finish(world, arguments, status.code()),
        Err(error) => {
            // The first error is the one that is told.
            if let Err(stuck) = save::delete(&world.place, id, true, None) {
                tracing::warn!("delete container '{id}' after a failure: {stuck}");
            }
            Err(error)
        }
    }
}

fn finish(world: &World, arguments: &Restore, status: u8) -> Result<u8> {
    let gone = |error: &Error| error.kind() == Kind::NotFound;
    match save::delete(&world.place, &arguments.id, false, Some(i32::from(status))) {
        Ok(saved) => {
            saved::warn(&arguments.id, &saved)?;
            saved::follow(world, &saved, false)?;
        }
        // Somebody else has deleted it under us, which they may.
        Err(error) if gone(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(status)
}
