//! `waker`: what the detached process does that lets a container go on whose snapshot was cut short.

use crate::cli::handover::Waker;
use crate::command::World;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::snapshot;

pub(super) fn run(world: &World, arguments: &Waker) -> Result<()> {
    let ring = RingName::parse(&arguments.ring, &world.place.owner)?;
    snapshot::wake(&world.place, &ring)
}
