//! `delete`: a container goes, with everything that it holds.

use crate::cli;
use crate::command::World;
use crate::error::{Kind, Result};
use crate::runtime;

pub(super) fn run(world: &World, arguments: &cli::Delete) -> Result<()> {
    let id = &arguments.id;
    let done = runtime::stop(&world.root, id, arguments.force).and_then(|()| runtime::remove(&world.root, id));
    match done {
        // Engines delete twice to be sure.
        Err(error) if arguments.force && error.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}
