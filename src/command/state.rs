//! `state`: a container as JSON.

use std::io::Write;

use crate::cli;
use crate::command::World;
use crate::error::{Context, Result};
use crate::runtime;

pub(super) fn run(world: &World, arguments: &cli::Container) -> Result<()> {
    let state = runtime::state(&world.place.root, &arguments.id)?;
    let text = serde_json::to_string_pretty(&state).context(|| "write the state")?;
    writeln!(std::io::stdout(), "{text}").context(|| "print the state")
}
