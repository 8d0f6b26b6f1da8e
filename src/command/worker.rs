//! `worker`: what the detached process does that packs.

use crate::command::World;
use crate::error::Result;
use crate::ops::worker;

pub(super) fn run(world: &World) -> Result<()> {
    worker::work(&world.place)
}
