//! Containers that start from an entry of a ring without having the ring: any number of them at once.
//!
//! ```text
//! fork       ring locked for a moment ── entry becomes a ring of the container's own ── that one is claimed as any other
//! readonly   ring locked for a moment ── scratch upper on the entry's layers, which the run keeps ── thrown away
//! ```

use super::id_map::id_map;
use super::load::Plan;
use super::request::RingRequest;
use crate::error::{Error, Kind, Result};
use crate::ids::RingName;
use crate::ring::selector::Selector;
use crate::ring::{Base, NewFork, Ring, name_of_fork};
use crate::store::Store;

use super::request::Create;

/// The ring of its own in which a container goes on that asks for a fork; made if this is its first run.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such ring or entry, [`Kind::Exists`] if somebody else's ring has the name; as
/// [`crate::ring::Locked::find_start`].
pub(super) fn own_ring(store: &Store, plan: &Plan, base: &Base, request: &RingRequest) -> Result<RingRequest> {
    let container = &plan.wish.id;
    let name = name_of_fork(&request.ring, container);
    let own = RingRequest { ring: name.clone(), selector: Selector::Unsaid, create: Create::Never, ..request.clone() };
    match Ring::open(store, &name) {
        Ok(ring) if ring.read()?.made_for.as_ref() == Some(container) => return Ok(own),
        Ok(_) => {
            let operation = format!("fork ring '{}' for container '{container}'", request.ring);
            let cause = format!("there is a ring '{name}', which was not made for that");
            return Err(Error::new(Kind::Exists, operation, cause).next("give the container another id"));
        }
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut locked = Ring::open(store, &request.ring)?.lock()?;
    locked.settle_for(&request.selector, "fork")?;
    let start = locked.find_start(&request.selector, base, request.rebase)?;
    locked.check_ids(&start, id_map(plan.spec.as_ref()).as_deref())?;
    let entry = start.entry.and_then(|seq| locked.state.entry(seq));
    locked.fork_from(entry, NewFork { name: &name, made_for: Some(container) })?;
    Ok(own)
}

/// After a failure: a ring that was made for a container, as a fork or empty, and in which nothing ever ran goes.
pub(super) fn discard_unused(store: &Store, name: &RingName) {
    let discarded = Ring::open(store, name).and_then(|ring| ring.lock()?.remove_unused());
    if let Err(error) = discarded.or_else(|error| if error.kind() == Kind::NotFound { Ok(()) } else { Err(error) }) {
        // One that cannot be read was not made just now, and is told of; an empty one does no harm.
        tracing::debug!("remove the ring '{name}', which was not used: {error}");
    }
}
