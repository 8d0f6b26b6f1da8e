//! The end of a container, and what becomes of its upper.

use super::load::Attachment;
use super::{Place, worker};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{ContainerId, RingName};
use crate::ring::entry::{Ending, Entry};
use crate::ring::{Holder, Locked, Ring, Sealing};
use crate::runtime::{self, Stop};
use crate::store::{Run, Store};

/// What became of a container's changes.
#[derive(Debug)]
pub enum Saved {
    /// It was in no ring, or somebody had sealed its upper already.
    Nothing,
    /// It changed nothing.
    Unchanged(RingName),
    /// They are this entry.
    Sealed(RingName, Box<Entry>),
    /// Somebody can still write into them; they are sealed once that is over.
    Pending(RingName, Vec<Holder>),
}

/// Ends a container for good: its processes, its upper's life, its state, in this order. A container that is
/// interrupted in between is found by the next `delete`, its upper by the next run.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such container, [`Kind::State`] if it runs and `force` is not set.
pub fn delete(place: &Place, id: &ContainerId, force: bool, exit_code: Option<i32>) -> Result<Saved> {
    let attachment = attachment(place, id)?;
    let how = how(force, attachment.as_ref());
    runtime::stop(&place.root, id, how)?;
    let requested = runtime::stop_requested(&place.root, id)?.is_some();
    let saved = match &attachment {
        Some(attachment) => {
            let ending = Ending { exit_code, requested };
            end_run(attachment, ending).context(|| format!("save container '{id}'"))
        }
        None => Ok(Saved::Nothing),
    };
    // The container goes even where its state cannot be sealed now: the run stays, and the next one tries again.
    let removed = runtime::remove(&place.root, id, how);
    let saved = saved?;
    removed?;
    let work = match (&saved, &attachment) {
        (Saved::Sealed(..), _) => true,
        (Saved::Unchanged(_), Some(attachment)) => is_left(attachment)?,
        (Saved::Unchanged(_), None) | (Saved::Nothing | Saved::Pending(..), _) => false,
    };
    if work {
        worker::start(&Place { store: attachment.map_or_else(|| place.store.clone(), |a| a.store), ..place.clone() })?;
    }
    Ok(saved)
}

/// As [`delete`] by force, for a container in no ring whose maker may have been killed over it: before there was a container, or
/// before that said which run is its own. A worker then takes the run away.
///
/// # Errors
/// As [`delete`]; that there is no such container is none.
pub(super) fn delete_unfinished(place: &Place, id: &ContainerId) -> Result<()> {
    let run_known = matches!(attachment(place, id), Ok(Some(_)));
    let deleted = match delete(place, id, true, None) {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other.map(drop),
    };
    let swept = if run_known { Ok(()) } else { worker::start(place) };
    deleted.and(swept)
}

/// Whether something of a run is still to be swept.
fn is_left(attachment: &Attachment) -> Result<bool> {
    let store = Store::open_existing(&attachment.store)?;
    Ok(store.map(|store| Run::load(&store, &attachment.run)).transpose()?.flatten().is_some())
}

/// What a program left running in the background may still be writing what the ring is to keep: it is killed only if
/// that was asked for.
fn how(force: bool, attachment: Option<&Attachment>) -> Stop {
    let in_ring = attachment.is_some_and(|attachment| attachment.ring.is_some());
    match (force, in_ring) {
        (true, _) => Stop::Kill,
        (false, true) => Stop::EndedSparing,
        (false, false) => Stop::Ended,
    }
}

/// What the runtime kept for us; a container whose record is damaged has nothing.
pub(super) fn attachment(place: &Place, id: &ContainerId) -> Result<Option<Attachment>> {
    match runtime::attachment(&place.root, id) {
        Ok(attachment) => attachment
            .map(|value| serde_json::from_value(value).context(|| format!("read what belongs to container '{id}'")))
            .transpose(),
        Err(error) if error.kind() == Kind::Damaged => Ok(None),
        Err(error) => Err(error),
    }
}

fn end_run(attachment: &Attachment, ending: Ending) -> Result<Saved> {
    let Some(store) = Store::open_existing(&attachment.store)? else { return Ok(Saved::Nothing) };
    let Some(run) = Run::load(&store, &attachment.run)? else { return Ok(Saved::Nothing) };
    // Its ring may have gone to another node without it: then it is in a fork.
    let Some(name) = run.record.ring.clone() else {
        return run.remove().map(|()| Saved::Nothing);
    };
    let ring = match Ring::open(&store, &name) {
        // It was removed while the container ran.
        Err(error) if error.kind() == Kind::NotFound => return run.remove().map(|()| Saved::Nothing),
        other => other?,
    };
    let is_full = |error: &Error| error.kind() == Kind::NoSpace;
    let sealing = ring
        .seal(&run, ending)
        .map_err(|error| if is_full(&error) { error.next(kept(&store, &run)) } else { error })?;
    Ok(match sealing {
        Sealing::Sealed(entry) => Saved::Sealed(name, entry),
        Sealing::Unchanged => {
            // One that was made for this container goes with it; that it is gone is no failure of this end.
            match ring.lock().and_then(Locked::remove_unused) {
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                Ok(()) | Err(_) => Saved::Unchanged(name),
            }
        }
        Sealing::Held(holders) => Saved::Pending(name, holders),
        Sealing::NotHeldByRun => Saved::Nothing,
    })
}

/// Where what a container changed is that could not become an entry, and how it becomes one.
fn kept(store: &Store, run: &Run) -> String {
    let place = if run.is_over() { store.layers().content(run.id()) } else { run.upper() };
    let how = "make room, then the next run on the ring, or 'regen ring recover', makes an entry of it";
    format!("nothing is lost, what it changed is in {}: {how}", quote(place))
}
