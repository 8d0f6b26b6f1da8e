//! `ring fork`: a new ring that begins with an entry of another.

use super::view::EntryView;
use super::{open, print};
use crate::cli::ring::Fork as Arguments;
use crate::command::World;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::worker;
use crate::ring::NewFork;
use crate::ring::selector::Target;

/// The entry that the new ring begins with, as `ring show --json` has it.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<()> {
    let (source, selector) = Target::parse(&arguments.source, &world.place.owner)?.named()?;
    let name = RingName::parse(&arguments.name, &world.place.owner)?;
    let mut locked = open(world, &source)?.lock()?;
    let entry = locked.find_fork(&selector)?;
    let fork = locked.fork_from(Some(&entry), NewFork { name: &name, made_for: None })?;
    drop(locked);
    // It writes the manifest; what is only sealed it packs.
    worker::start_if_none_waits(&world.place)?;
    let state = fork.read()?;
    let view = state.newest().map(|entry| EntryView::new(&state, entry));
    print(arguments.output, &view, || format!("{name}: begins with {source}@{}\n", entry.seq))
}
