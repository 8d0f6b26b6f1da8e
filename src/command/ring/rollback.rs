//! `ring rollback`: the next run starts somewhere else.

use super::view::EntryView;
use super::{print, ring};
use crate::cli::ring::Rollback;
use crate::command::World;
use crate::command::table::local;
use crate::error::{Context, Error, Kind, Result};
use crate::ring::Revival;
use crate::ring::selector::{Selected, Selector, Target};

pub(super) fn run(world: &World, arguments: &Rollback) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let selector = selector(world, arguments)?;
    let operation = || format!("roll back ring '{}' to '{selector}'", ring.name());
    let revival = if arguments.without_memory { Revival::Unwanted } else { Revival::Wanted };
    let mut locked = ring.lock()?;
    let entry = if arguments.dry_run {
        match locked.state.select_view(&selector).context(operation)? {
            Selected::Base => None,
            Selected::Entry(entry) => Some(entry.clone()),
        }
    } else {
        locked.rollback(&selector, revival).context(operation)?
    };
    let goes_on = entry.as_ref().is_some_and(|entry| entry.memory_bytes.is_some()) && revival == Revival::Wanted;
    let with = if goes_on { ", and goes on with its processes" } else { "" };
    let would = if arguments.dry_run { "would start" } else { "starts" };
    let view = entry.as_ref().map(|entry| EntryView::new(&locked.state, entry));
    print(arguments.output, &view, || match &entry {
        Some(entry) => {
            format!("{}: the next run {would} from @{} of {}{with}\n", ring.name(), entry.seq, local(entry.created))
        }
        None => format!("{}: the next run {would} from the bare base\n", ring.name()),
    })
}

/// `@-1` and `RING@-1` are the same; `-1` alone too, since nothing else could be meant.
pub(super) fn selector(world: &World, arguments: &Rollback) -> Result<Selector> {
    if !arguments.to.contains('@') {
        return arguments.to.parse();
    }
    let target = Target::parse(&arguments.to, &world.place.owner)?;
    let named = Target::parse(&arguments.ring, &world.place.owner)?.ring;
    if target.ring.is_some() && target.ring != named {
        return Err(Error::new(Kind::Usage, format!("read --to '{}'", arguments.to), "it names another ring"));
    }
    Ok(target.selector)
}
