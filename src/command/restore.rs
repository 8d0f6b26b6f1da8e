//! `restore`: a container whose processes come from files, and go on where they were.

use crate::cli::checkpoint::Restore;
use crate::command::world::absolute;
use crate::command::{World, checkpoint, saved};
use crate::error::Result;
use crate::image::process::Overrides;
use crate::ops::load::{self, Network, Source, Supervised, Wish};
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
        Ok(Some(status)) => Ok(saved::finish(world, id, status.code(), false)),
        Err(error) => {
            saved::discard(&world.place, id);
            Err(error)
        }
    }
}
