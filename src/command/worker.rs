//! `worker`: what the detached process does that packs.

use chrono::Utc;

use crate::command::World;
use crate::error::{Error, Result};
use crate::ops::worker;
use crate::ring::entry::timestamp;
use crate::store::Store;

pub(super) fn run(world: &World) -> Result<()> {
    worker::work(&world.place).inspect_err(|error| leave_note(world, error))
}

/// Nobody sees a worker's standard error: what it failed at is left in the store for whoever looks.
fn leave_note(world: &World, error: &Error) {
    let line = format!("{} {error}\n", timestamp(Utc::now()));
    if let Ok(Some(store)) = Store::open_existing(&world.place.store) {
        // Where the disk is full not even the note can be left; 'ring log' still shows what is only sealed.
        let _ = store.note_failure(&line);
    }
}
