//! `events`: what a container uses, and when it ran out of memory, as JSON lines.

use std::io::Write;

use crate::cli::events::Events;
use crate::command::World;
use crate::error::{Context, Result};
use crate::runtime::{self, Event};

pub(super) fn run(world: &World, arguments: &Events) -> Result<()> {
    let root = &world.place.root;
    if arguments.stats {
        return print(&runtime::stats(root, &arguments.id)?);
    }
    runtime::watch(root, &arguments.id, arguments.interval, print)
}

fn print(event: &Event) -> Result<()> {
    let operation = || "print an event";
    let line = serde_json::to_string(event).context(operation)?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).context(operation)
}
