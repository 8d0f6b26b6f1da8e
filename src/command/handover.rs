//! `handover`: a hot restart's part in a ring, for who can't call the library in a process of its own.

use std::io::Write;

use crate::cli::handover::Handover;
use crate::command::World;
use crate::error::{Context, Result};
use crate::ops::handover::{self, HandOver};

/// `prepare` prints `null` for a container without a ring, or one that has ended.
pub(super) fn run(world: &World, arguments: &Handover) -> Result<()> {
    match arguments {
        Handover::Prepare(container) => {
            let prepared = handover::prepare(&world.place, &container.id)?;
            let text = serde_json::to_string(&prepared).context(|| "write JSON")?;
            writeln!(std::io::stdout(), "{text}").context(|| "print the answer")
        }
        Handover::Undo { handover } => {
            let handover: Option<HandOver> =
                serde_json::from_str(handover).context(|| "read what 'prepare' printed")?;
            handover.map_or(Ok(()), |handover| handover::undo(&world.place, &handover))
        }
    }
}
