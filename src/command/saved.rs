//! The end of a container that a verb started, and what whoever ended it is told of its changes.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::command::World;
use crate::command::progress::Bar;
use crate::error::{Kind, Result};
use crate::ids::ContainerId;
use crate::ops::save::{self, Saved};
use crate::ops::{Place, worker};
use crate::store::Store;

const POLL: Duration = Duration::from_millis(50);

/// Deletes and saves a container that was waited for, and returns its own status: whatever becomes of its changes is said beside
/// it. `wait` is as for [`follow`].
pub(super) fn finish(world: &World, id: &ContainerId, status: u8, wait: bool) -> u8 {
    let ended = save::delete(&world.place, id, false, Some(i32::from(status))).and_then(|saved| {
        warn(id, &saved);
        follow(world, &saved, wait)
    });
    match ended {
        // Somebody else has deleted it under us, which they may.
        Err(error) if error.kind() != Kind::NotFound => tell(&error),
        Ok(()) | Err(_) => {}
    }
    status
}

/// Deletes a container that could not be started: the error that led here is the one that is told.
pub(super) fn discard(place: &Place, id: &ContainerId) {
    match save::delete(place, id, true, None) {
        Err(error) if error.kind() != Kind::NotFound => {
            tracing::warn!("delete container '{id}' after a failure: {error}");
        }
        Ok(_) | Err(_) => {}
    }
}

/// Says so if the changes are not safe in the ring yet; everything else is as expected, and silent.
pub(super) fn warn(id: &ContainerId, saved: &Saved) {
    let Saved::Pending(ring, holders) = saved else { return };
    let who: Vec<_> = holders.iter().map(ToString::to_string).collect();
    let who = if who.is_empty() { "something that is no process".to_owned() } else { who.join(", ") };
    tell(&format_args!(
        "save container '{id}' in ring '{ring}': its state is not final, {who}: it is sealed once that ends"
    ));
}

fn tell(what: &impl Display) {
    // If standard error is closed there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "regen: warning: {what}");
}

/// Stays while a new entry is being packed: as long as it takes if `wait`, and on a terminal with a bar in any case.
fn follow(world: &World, saved: &Saved, wait: bool) -> Result<()> {
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
