//! `run`: create, start, and in the foreground stay until the end, delete, and save.

use oci_spec::runtime::Process;

use crate::bundle::volume::parse_places;
use crate::cli;
use crate::command::world::ring_request;
use crate::command::{World, create, saved};
use crate::error::Result;
use crate::image::process::Overrides;
use crate::ops::load::{self, Network, Source, Supervised, Wish};
use crate::ops::request::Mode;
use crate::ops::warm::start;
use crate::runtime::{self, CreateRequest, Starter, Stdio};
use crate::sys::exe;
use crate::sys::signal::Blocked;

/// The container's exit status, or 0 once it runs detached.
pub(super) fn run(world: &World, arguments: &cli::Run) -> Result<u8> {
    // The command line was read by a lot of code, none of which is needed again.
    exe::forget_code();
    let making = create::absolute_making(world, &arguments.making)?;
    let wish = wish(world, arguments)?;
    let id = &arguments.id;
    if arguments.detach {
        let live = load::create(&world.place, wish, |request| {
            making(request);
            request.starter = Starter::Creator;
        })?;
        return start::start_created(&world.place, id, &live.created)
            .map(|()| 0)
            .inspect_err(|_| saved::discard(&world.place, id));
    }
    // From here on a signal is not ours to die of: it is the container's.
    let signals = Blocked::all()?;
    let mask = signals.before();
    let live = load::create(&world.place, wish, |request| {
        making(request);
        request.starter = Starter::Creator;
        request.mask = Some(mask);
        if wants_terminal(request) {
            request.stdio = Stdio::Pty;
        }
    })?;
    let begin = || start::start_created(&world.place, id, &live.created);
    match runtime::wait_foreground(&world.place.root, id, (&live.created, signals), begin) {
        Ok(status) if arguments.keep => Ok(status.code()),
        Ok(status) => Ok(saved::finish(world, id, status.code(), arguments.wait_pack)),
        Err(error) => {
            saved::discard(&world.place, id);
            Err(error)
        }
    }
}

fn wants_terminal(request: &CreateRequest) -> bool {
    request.spec.process().as_ref().and_then(Process::terminal).unwrap_or(false)
}

fn wish(world: &World, arguments: &cli::Run) -> Result<Wish> {
    let source = match (&arguments.origin.rootfs, &arguments.origin.image) {
        (Some(rootfs), _) => Source::Rootfs(rootfs.clone()),
        (None, Some(image)) => Source::Image(image.parse()?),
        (None, None) => Source::Bundle(arguments.origin.bundle.clone().unwrap_or_else(|| ".".into())),
    };
    let mut ring = ring_request(arguments.ring.as_deref(), arguments.depth.as_deref(), &world.place.owner)?;
    if let Some(ring) = &mut ring {
        ring.rebase = load::rebase(arguments.rebase);
        ring.snapshot_every = arguments.snapshot_every.as_deref().map(str::parse).transpose()?;
        ring.volumes = parse_places(arguments.ring_volume.iter().map(String::as_str))?;
        if arguments.fork {
            ring.mode = Mode::Fork;
        }
    }
    let process = Overrides {
        command: arguments.command.clone(),
        env: arguments.env.clone(),
        workdir: arguments.workdir.clone(),
        user: arguments.user.clone(),
    };
    let supervised = if arguments.detach || arguments.keep { Supervised::Elsewhere } else { Supervised::Here };
    let default_ring = world.default_ring.clone();
    Ok(Wish {
        id: arguments.id.clone(),
        source,
        ring,
        default_ring,
        follows: None,
        process,
        terminal: arguments.tty,
        network: Network::Own,
        notify: None,
        supervised,
    })
}
