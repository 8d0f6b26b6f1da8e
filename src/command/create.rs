//! `create`: a bundle becomes a container whose program waits.

use crate::cli::{self, Making};
use crate::command::World;
use crate::command::world::absolute;
use crate::error::Result;
use crate::image::process::Overrides;
use crate::ops::load::{self, Network, Source, Supervised, Wish};
use crate::runtime::CreateRequest;

pub(super) fn run(world: &World, arguments: &cli::Create) -> Result<()> {
    let making = absolute_making(world, &arguments.making)?;
    let wish = Wish {
        id: arguments.id.clone(),
        source: Source::Bundle(arguments.bundle.clone()),
        ring: None,
        default_ring: world.default_ring.clone(),
        process: Overrides::default(),
        terminal: false,
        network: Network::Own,
        follows: None,
        notify: None,
        supervised: Supervised::Elsewhere,
    };
    load::create(&world.place, wish, |request| making(request)).map(drop)
}

/// Puts into a request what `create` and `run` have in common; relative paths are the caller's.
pub(super) fn absolute_making(world: &World, making: &Making) -> Result<impl Fn(&mut CreateRequest) + use<>> {
    let console_socket = making.console_socket.as_deref().map(absolute).transpose()?;
    let pid_file = making.pid_file.as_deref().map(absolute).transpose()?;
    let (preserve_fds, no_pivot, no_new_keyring) = (making.preserve_fds, making.no_pivot, making.no_new_keyring);
    let cgroups = world.cgroups;
    Ok(move |request: &mut CreateRequest| {
        request.console_socket.clone_from(&console_socket);
        request.pid_file.clone_from(&pid_file);
        request.preserve_fds = preserve_fds;
        request.no_pivot = no_pivot;
        request.no_new_keyring = no_new_keyring;
        request.cgroups = cgroups;
    })
}
