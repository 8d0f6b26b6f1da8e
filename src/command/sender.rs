//! `sender`: what the detached process does that sends rings where the configuration says.

use crate::command::World;
use crate::error::Result;
use crate::ops::sender;

/// Why a ring could not be sent is noted beside it: nobody sees this process's standard error.
pub(super) fn run(world: &World) -> Result<()> {
    sender::work(&world.place)
}
