//! `delete`: a container goes, with everything that it holds; its changes go into its ring.

use crate::cli;
use crate::command::World;
use crate::command::saved;
use crate::error::{Kind, Result};
use crate::ops::save;

pub(super) fn run(world: &World, arguments: &cli::Delete) -> Result<()> {
    match save::delete(&world.place, &arguments.id, arguments.force, None) {
        Ok(saved) => {
            saved::warn(&arguments.id, &saved);
            Ok(())
        }
        // Engines delete twice to be sure.
        Err(error) if arguments.force && error.kind() == Kind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
