//! `ring snapshot`: an entry of the container that runs on a ring.

use super::view::EntryView;
use super::{print, ring};
use crate::cli::ring::Snapshot as Arguments;
use crate::command::World;
use crate::error::Result;
use crate::ops::snapshot::{self, Taken};
use crate::ops::worker;

/// The entry as `ring show --json` has it; `null` if nothing has changed.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let name = ring.name().clone();
    match snapshot::take(&world.place, &ring, &mut || Ok(()))? {
        Taken::Entry(entry) => {
            worker::start(&world.place)?;
            let view = EntryView::new(&ring.read()?, &entry);
            print(arguments.output, &Some(view), || format!("{name}: @{} is what the container is now\n", entry.seq))
        }
        Taken::Unchanged(start) => {
            let start = start.map_or("base".to_owned(), |seq| seq.to_string());
            print(arguments.output, &None::<EntryView>, || {
                format!("{name}: nothing has changed since @{start}: no entry is needed\n")
            })
        }
    }
}
