//! `start`: the waiting program goes.

use crate::cli;
use crate::command::World;
use crate::error::Result;
use crate::runtime;

pub(super) fn run(world: &World, arguments: &cli::Container) -> Result<()> {
    runtime::start(&world.place.root, &arguments.id)
}
