//! A ring passes from a container that goes on to the one that is to follow it.
//!
//! ```text
//! prepare   snapshot of the old one ── it steps aside ──> the ring is free     then the new one is created, on the snapshot
//!                                                                  │
//!           the new one serves ── the old one ends ──> an entry beside the main line, of what it wrote after the snapshot
//!           the new one fails ── undo ──> the ring is the old one's again, as if nothing had been
//! ```
//!
//! Each step is one replacement of `ring.json`. Whoever is killed in between leaves a ring on which the old container still
//! runs, or beside which it does; both ends add an entry, and as long as nobody followed it, one of the main line.
//!
//! Whoever makes the new container does all of this by saying whom it follows ([`super::load::Wish::follows`]).

use serde::{Deserialize, Serialize};

use super::save::attachment;
use super::snapshot::Scope;
use super::{Place, snapshot, worker};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{ContainerId, RingName};
use crate::ring::side::{Line, Side};
use crate::ring::snapshot::Drafted;
use crate::ring::{Locked, Ring};
use crate::runtime::{self, Status};
use crate::store::{Run, Store};

/// A hand-over that was prepared: keep it until the new container serves, for [`undo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// The ring.
    pub ring: RingName,
    /// Where the new container starts, as long as it names nothing else: the snapshot, or if the old one has changed nothing,
    /// where that started; `None` for the bare base.
    pub entry: Option<u64>,
    /// What the ring remembers of the old one.
    pub side: Side,
}

/// Frees the ring of a container that goes on, for one that is to start from its present state. Call it just before that is
/// created; if it does not come up, [`undo`] it. There is nothing to call if it does.
///
/// `None` if the container has no ring, or has ended: whoever takes its ring then starts from what it left.
///
/// A hand-over of the same container that was prepared before and that nobody followed is replaced by a new one.
///
/// To be called in a process that does one thing at a time with this container: its lock is one of processes. Takes as long
/// as the bytes need that the container has changed; it stands still for a fraction of that.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such container, [`Kind::Busy`] if it has handed its ring over already,
/// [`Kind::Unsupported`] if it can't be frozen, [`Kind::NoSpace`] if the copy does not fit, else those of copying and
/// writing. The container goes on in any case, and has its ring unless it had handed it over.
pub fn prepare(place: &Place, id: &ContainerId) -> Result<Option<HandOver>> {
    let operation = || format!("hand the ring of container '{id}' over");
    let Some((ring, run)) = find(place, id).context(operation)? else { return Ok(None) };
    hand_over(place, id, (&ring, &run))
}

/// As [`prepare`], if it is this ring that the container has. One that is not there, or never was a container, has none.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_for(place: &Place, id: &ContainerId, wanted: &RingName) -> Result<Option<HandOver>> {
    match find_wherever(place, id).context(|| format!("hand the ring of container '{id}' over"))? {
        Some((ring, run)) if ring.name() == wanted => hand_over(place, id, (&ring, &run)),
        Some(_) | None => Ok(None),
    }
}

fn hand_over(place: &Place, id: &ContainerId, (ring, run): (&Ring, &Run)) -> Result<Option<HandOver>> {
    let operation = || format!("hand the ring of container '{id}' over");
    take_back_if_alone(ring, run).context(operation)?;
    let place = Place { store: ring.store().directory().to_owned(), ..place.clone() };
    let draft = snapshot::draft(&place, ring, run, Scope::Files);
    let mut locked = ring.lock()?;
    // Somebody may have deleted it while it was copied.
    if locked.state.run.as_ref() != Some(run.id()) {
        return Ok(None);
    }
    let taken = draft.and_then(|draft| match draft {
        Drafted::Changed(draft) => {
            snapshot::take_locked(&place, &mut locked, run, *draft, Scope::Files).map(|entry| Some(entry.seq))
        }
        // An earlier snapshot is as good as a new one; where the run started needs none.
        Drafted::Unchanged(since) => Ok(since.filter(|_| since != run.record.parent)),
    });
    let taken = match taken {
        Ok(taken) => taken,
        Err(_) if has_ended(&place, id)? => return Ok(None),
        Err(error) => return Err(error.during(operation())),
    };
    let side = locked.step_aside(run, taken).context(operation)?;
    let entry = locked.state.next;
    drop(locked);
    if taken.is_some() {
        worker::start(&place)?;
    }
    Ok(Some(HandOver { ring: ring.name().clone(), entry, side }))
}

/// Gives the ring back to the container that handed it over, because its successor did not come up. What that has left, or
/// will leave, stands beside the main line, to which the old one goes on to belong; the snapshot stays an entry of it.
///
/// To do it again is harmless, and so is to do it after the old one has ended.
///
/// # Errors
/// Those of writing the ring; that it is gone is none.
pub fn undo(place: &Place, handover: &HandOver) -> Result<()> {
    let Some(store) = Store::open_existing(&place.store)? else { return Ok(()) };
    let mut locked = match Ring::open(&store, &handover.ring).and_then(|ring| ring.lock()) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    locked.take_back(&handover.side).context(|| format!("give ring '{}' back", handover.ring))
}

/// As [`undo`], for whoever has another failure to report.
pub(super) fn give_back(place: &Place, handover: &HandOver) {
    if let Err(error) = undo(place, handover) {
        tracing::error!("{error}");
    }
}

/// Gives the ring back to a container that lives, whoever took it over: for whoever knows that nobody should have, and not
/// whether that was done. Nothing happens to one that has not handed its ring over, or is gone.
///
/// # Errors
/// Those of writing the ring.
pub fn recall(place: &Place, id: &ContainerId) -> Result<()> {
    let operation = || format!("give the ring of container '{id}' back");
    let Some((ring, run)) = find_wherever(place, id).context(operation)? else { return Ok(()) };
    let mut locked = ring.lock()?;
    let Some(side) = locked.state.sides.iter().find(|side| side.run == *run.id()).cloned() else { return Ok(()) };
    locked.take_back(&side).context(operation)
}

fn find_wherever(place: &Place, id: &ContainerId) -> Result<Option<(Ring, Run)>> {
    match find(place, id) {
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        other => other,
    }
}

/// The ring of a container and its run, if it has one and lives.
fn find(place: &Place, id: &ContainerId) -> Result<Option<(Ring, Run)>> {
    let Some(attachment) = attachment(place, id)? else { return Ok(None) };
    let Some(store) = Store::open_existing(&attachment.store)? else { return Ok(None) };
    let Some(run) = Run::load(&store, &attachment.run)? else { return Ok(None) };
    let Some(name) = run.record.ring.clone() else { return Ok(None) };
    // Whoever waits for its end may live on, and is about to save what it left.
    if run.record.living_holder()?.is_none() || has_ended(place, id)? {
        return Ok(None);
    }
    match Ring::open(&store, &name) {
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        ring => Ok(Some((ring?, run))),
    }
}

fn has_ended(place: &Place, id: &ContainerId) -> Result<bool> {
    match runtime::state(&place.root, id) {
        Ok(state) => Ok(state.status == Status::Stopped),
        Err(error) if error.kind() == Kind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whoever prepared a hand-over before and was killed left the ring to nobody.
fn take_back_if_alone(ring: &Ring, run: &Run) -> Result<()> {
    let mut locked = ring.lock()?;
    let Some(side) = locked.state.sides.iter().find(|side| side.run == *run.id()).cloned() else { return Ok(()) };
    match locked.state.line_of(run.id()) {
        Some(Line::Main) | None => locked.take_back(&side),
        Some(Line::Side) => Err(refuse(&locked)),
    }
}

fn refuse(locked: &Locked) -> Error {
    let operation = format!("take ring '{}' back", locked.ring().name());
    Error::new(Kind::Busy, operation, "the container has handed it over already, and another one took it")
        .next("hand over that one's")
}
