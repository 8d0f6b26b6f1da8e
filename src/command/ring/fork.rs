//! `ring fork`: new rings that begin with an entry of another.

use super::view::EntryView;
use super::{open, print};
use crate::cli::ring::Fork as Arguments;
use crate::command::World;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::worker;
use crate::ring::selector::Target;

/// The entry that each new ring begins with, as `ring show --json` has it.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<()> {
    let (source, selector) = Target::parse(&arguments.source, &world.place.owner)?.named()?;
    let names = arguments.names.iter().map(|name| RingName::parse(name, &world.place.owner));
    let names = names.collect::<Result<Vec<_>>>()?;
    let mut locked = open(world, &source)?.lock()?;
    let entry = locked.find_fork(&selector)?;
    let forks = locked.fork_to(&entry, &names)?;
    drop(locked);
    let states = forks.iter().map(crate::ring::Ring::read).collect::<Result<Vec<_>>>()?;
    // What is packed already needs no worker, but for whom it is to be sent to.
    if world.place.config.ring.auto_push.is_some() || !states.iter().all(|state| state.is_packed()) {
        worker::start_if_none_waits(&world.place)?;
    }
    for (name, state) in names.iter().zip(&states) {
        let view = state.newest().map(|entry| EntryView::new(state, entry));
        print(arguments.output, &view, || format!("{name}: begins with {source}@{}\n", entry.seq))?;
    }
    Ok(())
}
