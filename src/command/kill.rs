//! `kill`: a signal to a container.

use crate::cli;
use crate::command::World;
use crate::error::Result;
use crate::runtime;

pub(super) fn run(world: &World, arguments: &cli::Kill) -> Result<()> {
    runtime::kill(&world.place.root, &arguments.id, arguments.signal, arguments.all)
}
