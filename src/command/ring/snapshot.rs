//! `ring snapshot`: an entry of the container that runs on a ring.

use super::view::EntryView;
use super::{print, ring};
use crate::cli::ring::Snapshot as Arguments;
use crate::command::World;
use crate::config::human_bytes;
use crate::error::Result;
use crate::ops::snapshot::{self, Scope, Taken};
use crate::ops::worker;

/// The entry as `ring show --json` has it; `null` if nothing has changed.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let name = ring.name().clone();
    let scope = if arguments.with_memory { Scope::Memory } else { Scope::Files };
    match snapshot::take(&world.place, &ring, scope, &mut || Ok(()))? {
        Taken::Entry(entry) => {
            worker::start(&world.place)?;
            let view = EntryView::new(&ring.read()?, &entry);
            let memory = entry.memory_bytes.map(|bytes| format!(", with its processes: {}", human_bytes(bytes)));
            print(arguments.output, &Some(view), || {
                format!("{name}: @{} is what the container is now{}\n", entry.seq, memory.unwrap_or_default())
            })
        }
        Taken::Unchanged(start) => {
            let start = start.map_or("base".to_owned(), |seq| seq.to_string());
            print(arguments.output, &None::<EntryView>, || {
                format!("{name}: nothing has changed since @{start}: no entry is needed\n")
            })
        }
    }
}
