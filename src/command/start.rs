//! `start`: the waiting program goes.

use crate::cli;
use crate::command::World;
use crate::error::Result;
use crate::ops::warm::start;

pub(super) fn run(world: &World, arguments: &cli::Container) -> Result<()> {
    start::start(&world.place, &arguments.id)
}
