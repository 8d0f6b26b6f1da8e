//! `pause` and `resume`: the processes of a container stop where they are, and go on.

use crate::cli;
use crate::command::World;
use crate::error::Result;
use crate::runtime;

pub(super) fn pause(world: &World, arguments: &cli::Container) -> Result<()> {
    runtime::pause(&world.place.root, &arguments.id)
}

pub(super) fn resume(world: &World, arguments: &cli::Container) -> Result<()> {
    runtime::resume(&world.place.root, &arguments.id)
}
