//! What became of a container's changes, for whoever ended it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::command::World;
use crate::command::progress::Bar;
use crate::error::{Context, Result};
use crate::ids::ContainerId;
use crate::ops::save::Saved;
use crate::ops::worker;
use crate::store::Store;

const POLL: Duration = Duration::from_millis(50);

/// Says so if the changes are not safe in the ring yet; everything else is as expected, and silent.
pub(super) fn warn(id: &ContainerId, saved: &Saved) -> Result<()> {
    let Saved::Pending(ring, holders) = saved else { return Ok(()) };
    let who: Vec<_> = holders.iter().map(ToString::to_string).collect();
    let who = if who.is_empty() { "something that is no process".to_owned() } else { who.join(", ") };
    let text =
        format!("save container '{id}' in ring '{ring}': its state is not final, {who}: it is sealed once that ends");
    writeln!(std::io::stderr(), "regen: warning: {text}").context(|| "print a warning")
}

/// Stays while a new entry is being packed: as long as it takes if `wait`, and on a terminal with a bar in any case.
pub(super) fn follow(world: &World, saved: &Saved, wait: bool) -> Result<()> {
    let Saved::Sealed(..) = saved else { return Ok(()) };
    if !wait && !std::io::stderr().is_terminal() {
        return Ok(());
    }
    let Some(store) = Store::open_existing(&world.place.store)? else { return Ok(()) };
    let mut bar = Bar::new();
    if wait {
        return worker::pack_now(&world.place, &store, None, &mut |report| bar.show(report));
    }
    let started = Instant::now();
    while worker::is_busy(&store)? || started.elapsed() < POLL {
        if let Some(report) = worker::read_report(&store)? {
            bar.show(&report);
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
