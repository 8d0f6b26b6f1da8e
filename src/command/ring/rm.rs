//! `ring rm`: a ring goes, with all its entries.

use serde_json::json;

use super::{print, ring};
use crate::cli::ring::Remove;
use crate::command::World;
use crate::config::human_bytes;
use crate::error::Result;
use crate::ops::worker;

pub(super) fn run(world: &World, arguments: &Remove) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let removal = ring.removal()?;
    let (entries, bytes) = (removal.state().entries.len(), removal.bytes()?);
    if arguments.dry_run {
        // What the removal would be refused for, this is.
        removal.check()?;
    } else {
        removal.carry_out()?;
        // Its layers are collected by whoever comes next, if not by this one.
        worker::start(&world.place)?;
    }
    let verb = if arguments.dry_run { "would be removed" } else { "removed" };
    let value = json!({"ring": ring.name().to_string(), "entries": entries, "bytes": bytes});
    print(arguments.output, &value, || format!("{}: {entries} entries, {} {verb}\n", ring.name(), human_bytes(bytes)))
}
