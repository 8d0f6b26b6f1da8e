//! `snapshots`: what the detached process does that makes entries of a container every so often.

use std::time::Duration;

use crate::cli::handover::Snapshots;
use crate::command::World;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::interval;

pub(super) fn run(world: &World, arguments: &Snapshots) -> Result<()> {
    let ring = RingName::parse(&arguments.ring, &world.place.owner)?;
    interval::keep(&world.place, &ring, &arguments.run, Duration::from_millis(arguments.every))
}
