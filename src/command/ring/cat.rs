//! `ring cat`: one file of a saved state.

use super::open;
use crate::cli::look::Cat;
use crate::command::World;
use crate::error::Result;
use crate::ops::look;
use crate::ring::selector::Target;

pub(super) fn run(world: &World, arguments: &Cat) -> Result<()> {
    let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
    look::cat(&world.place, &open(world, &name)?, &selector, &arguments.path, &mut std::io::stdout())
}
