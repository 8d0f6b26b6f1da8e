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
    let state = fork.read()?;
    // What is packed already needs no worker, but for whom it is to be sent to.
    if !state.is_packed() || world.place.config.ring.auto_push.is_some() {
        worker::start_if_none_waits(&world.place)?;
    }
    let view = state.newest().map(|entry| EntryView::new(&state, entry));
    print(arguments.output, &view, || format!("{name}: begins with {source}@{}\n", entry.seq))
}
