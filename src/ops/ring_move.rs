//! A ring moves from one node to another, by a registry that both reach. The pieces; whoever calls them sees to it that the
//! other node is told.
//!
//! ```text
//! source        give: mark ── push ──┐                      unmark, if it comes to nothing
//! destination                        └── take: fetch ── verify ── at home here
//! ```
//!
//! Each piece can be done again after a crash of either node at any step, and then does what is missing. The mark comes before
//! the push, so what is fetched is all that there is. Moves are counted in the ring itself, and the count goes with it: a
//! late repetition of a move that is over is refused instead of making a second owner.
//!
//! **At most one of both nodes runs the ring** as long as [`unmark`] is only called when the destination has not taken it and
//! will not: that is for the caller to know.

use serde::{Deserialize, Serialize};

use super::Place;
use super::origin::Origin;
use super::pull::{self, Listing, Order, Pulled};
use super::push::{self, Registry, Watch};
use super::transfer::Transfer;
use crate::distribution::Repository;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{Digest, RingName};
use crate::ring::elsewhere::Elsewhere;
use crate::ring::exchange::{Listed, RING_TAG, Role, Terms, read_index};
use crate::ring::state::RingState;
use crate::ring::{Consent, Heading, Ring};

/// What the source tells the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// The digest of the ring's index in the registry: this is what was given, whatever its tag says by now.
    pub index: Digest,
    /// How often the ring has moved with this one.
    pub moves: u64,
    /// The ring in which a container goes on that had this one.
    pub fork: Option<RingName>,
}

/// How a ring leaves.
#[derive(Clone, Copy)]
pub struct Leave<'a> {
    /// The node that gets it.
    pub to: &'a str,
    /// What is done about a container that has it.
    pub consent: Consent,
    /// So often a ring of its name moved before, if that was another one.
    pub moved: u64,
    /// Asked under the ring's lock, before anything is done.
    pub permit: &'a dyn Fn() -> Result<()>,
}

impl std::fmt::Debug for Leave<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leave").field("to", &self.to).field("consent", &self.consent).finish_non_exhaustive()
    }
}

/// Asks nobody.
pub const FREELY: &dyn Fn() -> Result<()> = &|| Ok(());

/// At the source: marks the ring as that of another node and pushes all of it. From then on no run starts on it here.
///
/// # Errors
/// [`Kind::Busy`] if a container has it and nothing is forced, and those of the permit; the ring is then as it was. Those of
/// pushing: the ring stays marked, until this is done again or [`unmark`] takes the mark away.
pub fn give(
    place: &Place,
    ring: &Ring,
    leave: Leave<'_>,
    registry: Registry<'_>,
    watch: &mut Watch<'_>,
) -> Result<Given> {
    let Leave { to, consent, moved, permit } = leave;
    let operation = || format!("give ring '{}' to node '{to}'", ring.name());
    let reference = registry.reference.to_string();
    let mut locked = ring.lock()?;
    permit()?;
    if locked.state.elsewhere.is_none() {
        locked.state.moves = locked.state.moves.max(moved);
    }
    let fork = locked.depart(Heading { to, reference: &reference }, consent).context(operation)?;
    drop(locked);
    let index = push::push_all(place, ring, registry, watch).context(operation)?;
    Ok(Given { index, moves: ring.read()?.moves, fork })
}

/// At the source: the ring is its own again. Only for a move that the destination has not finished and never will.
///
/// # Errors
/// [`Kind::State`] if the ring went elsewhere; that it is here is no error.
pub fn unmark(ring: &Ring, to: &str) -> Result<()> {
    ring.lock()?.stay(to).context(|| format!("keep ring '{}'", ring.name()))
}

/// At the destination: fetches what was given, verifies it, and is the ring's owner from now on. What an earlier stay of the
/// ring left here gives way to it. `permit` is asked when all is there, under the ring's lock; not if this was done before.
///
/// # Errors
/// As [`pull::pull`]; [`Kind::State`] if this move is over, or the ring is the one that was given away; those of the permit.
/// Nothing has changed then, and no run starts from what was not fetched whole.
pub fn take(
    place: &Place,
    (name, registry): (&RingName, Registry<'_>),
    given: &Given,
    permit: &dyn Fn() -> Result<()>,
    tell: &mut dyn FnMut(&Transfer),
) -> Result<Taken> {
    let operation = || format!("take ring '{name}' from '{}'", registry.reference);
    let state = find(place, name).context(operation)?;
    if is_done(name, state.as_ref(), given.moves)? {
        let last_seq = state.map_or(0, |state| state.last_seq);
        return Ok(Taken { last_seq, moves: given.moves, pulled: Pulled::default() });
    }
    let mut repository = Repository::open(registry.reference, registry.trust).context(operation)?;
    let (entries, terms) = fetch_index(&mut repository, &given.index.to_string()).context(operation)?;
    if terms.moves != given.moves {
        let cause = format!("the index there is of move {}, not of {}", terms.moves, given.moves);
        return Err(Error::new(Kind::Invalid, operation(), cause));
    }
    let listing = Listing { entries, terms };
    let order =
        Order { ring: name, listing: &listing, role: Role::Home, from: &registry.reference.to_string(), permit };
    receive(place, repository, &order, tell).context(operation)
}

/// What a registry has of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of its index.
    pub index: Digest,
    /// How often it had moved by then.
    pub moves: u64,
    /// The number of its newest entry.
    pub last_seq: u64,
}

/// Looks what of a ring was pushed last.
///
/// # Errors
/// [`Kind::NotFound`] if there is none, [`Kind::Invalid`] for an index that is none; those of talking to the registry.
pub fn look(registry: Registry<'_>) -> Result<Pushed> {
    let operation = || format!("look for a ring in '{}'", registry.reference);
    let mut repository = Repository::open(registry.reference, registry.trust).context(operation)?;
    let missing = || Error::new(Kind::NotFound, operation(), "there is none").next("'regen ring push' puts one there");
    let document = repository.fetch_manifest(RING_TAG).context(operation)?.ok_or_else(missing)?;
    let (_, terms) = read_index(&document.bytes).context(operation)?;
    Ok(Pushed { index: document.digest, moves: terms.moves, last_seq: terms.last_seq })
}

/// At the destination, where the source is out of reach and somebody decides to go on without it: takes the ring as it was
/// pushed, and counts it as move `moves`. The source has to [`disown`] it as soon as it is back.
///
/// # Errors
/// As [`take`].
pub fn take_without_consent(
    place: &Place,
    (name, registry): (&RingName, Registry<'_>),
    (pushed, moves): (&Pushed, u64),
    permit: &dyn Fn() -> Result<()>,
    tell: &mut dyn FnMut(&Transfer),
) -> Result<Taken> {
    let operation = || format!("take ring '{name}' from '{}' without its owner", registry.reference);
    let last_seq = pushed.last_seq;
    if is_done(name, find(place, name)?.as_ref(), moves)? {
        return Ok(Taken { last_seq, moves, pulled: Pulled::default() });
    }
    let mut repository = Repository::open(registry.reference, registry.trust).context(operation)?;
    let (entries, mut terms) = fetch_index(&mut repository, &pushed.index.to_string()).context(operation)?;
    terms.moves = moves;
    let listing = Listing { entries, terms };
    let order =
        Order { ring: name, listing: &listing, role: Role::Home, from: &registry.reference.to_string(), permit };
    receive(place, repository, &order, tell).context(operation)
}

fn receive(place: &Place, repository: Repository, order: &Order<'_>, tell: &mut dyn FnMut(&Transfer)) -> Result<Taken> {
    let pulled = pull::receive(place, &mut Origin::Registry(repository), order, tell)?;
    let terms = &order.listing.terms;
    Ok(Taken { last_seq: terms.last_seq, moves: terms.moves, pulled })
}

/// A ring that is at home here now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The number of the newest entry that there was.
    pub last_seq: u64,
    /// How often the ring has moved with this.
    pub moves: u64,
    /// What was fetched.
    pub pulled: Pulled,
}

/// At a source that was out of reach: the ring is that of node `to`. What this node has beyond entry `last_seq`, containers
/// that run on it included, goes on in a fork, whose name is given.
///
/// # Errors
/// Those of making the fork.
pub fn disown(ring: &Ring, heading: Heading<'_>, last_seq: u64, moves: u64) -> Result<Option<RingName>> {
    let operation = || format!("leave ring '{}' to node '{}'", ring.name(), heading.to);
    ring.lock()?.disown(heading, last_seq, moves).context(operation)
}

fn fetch_index(repository: &mut Repository, name: &str) -> Result<(Vec<Listed>, Terms)> {
    let missing = || Error::new(Kind::NotFound, format!("look for '{name}'"), "there is no ring");
    read_index(&repository.fetch_manifest(name)?.ok_or_else(missing)?.bytes)
}

fn find(place: &Place, name: &RingName) -> Result<Option<RingState>> {
    match Ring::open(&place.open_store()?, name) {
        Ok(ring) => ring.read().map(Some),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the ring came here by this very move already.
fn is_done(name: &RingName, state: Option<&RingState>, moves: u64) -> Result<bool> {
    let Some(state) = state.filter(|state| state.moves >= moves) else { return Ok(false) };
    let refuse = |cause: String| Err(Error::new(Kind::State, format!("take ring '{name}'"), cause));
    match &state.elsewhere {
        None if state.moves == moves => Ok(true),
        Some(Elsewhere::Away { to, .. }) if state.moves == moves => {
            refuse(format!("this node itself gave it to '{to}'"))
        }
        None | Some(Elsewhere::Away { .. } | Elsewhere::Arriving { .. }) => {
            refuse(format!("move {moves} is over: the ring has moved {} times since it was made", state.moves))
        }
    }
}
