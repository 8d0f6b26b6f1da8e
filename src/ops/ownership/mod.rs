//! Who has a ring, where several nodes share a registry: one key for each ring that ever went from one node to another.
//!
//! ```text
//! ring/OWNER/NAME     { node, moves, … }        not leased: a node that is gone keeps what it has
//!
//! destination    all is fetched ── key: mine, move N ── ring.json: at home           compared with what it was before
//! source         it comes to nothing ── key: mine, move N ── ring.json: no mark       whoever is first has it
//! ```
//!
//! A ring without a key is that of the node that has it. Of two who write the key one is refused, so one node has the ring
//! whatever dies, and what the key says is made so on every node that is there or comes back (`vigil`): a ring that was
//! taken from it without its consent is let go, and what it has beyond goes on in a fork.

mod key;
mod vigil;

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Place;
use super::ring_move::{self, Pushed};
use crate::distribution::{Reference, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{NodeName, RingName};
use crate::registry::{Applied, Compare, Registry, Transaction};
use crate::ring::elsewhere::Elsewhere;
use crate::ring::state::RingState;
use crate::ring::{Heading, Ring};
use crate::store::Store;

pub use key::{Bereft, Found, Owner, RINGS, read_key, ring_key};

/// So often somebody else may come between.
const ATTEMPTS: u32 = 8;

/// The keys, and the rings of this node.
#[derive(Debug, Clone)]
pub struct Ownership(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Place,
    registry: Arc<dyn Registry>,
    node: NodeName,
    /// Rings that are being fetched: one thread each.
    arriving: Mutex<HashSet<RingName>>,
    arrived: Condvar,
}

/// What came of keeping a ring that was to leave.
#[derive(Debug)]
pub enum Kept {
    /// It is this node's.
    Yes,
    /// This one's, who was first.
    No(Box<Owner>),
}

/// The right to fetch a ring.
#[derive(Debug)]
pub struct Turn<'a>(&'a Shared, RingName);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.arriving().remove(&self.1);
        self.0.arrived.notify_all();
    }
}

impl Shared {
    fn arriving(&self) -> MutexGuard<'_, HashSet<RingName>> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ownership {
    /// Of the rings of a place, which is node `node`.
    #[must_use]
    pub fn new(place: Place, registry: Arc<dyn Registry>, node: NodeName) -> Self {
        let (arriving, arrived) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { place, registry, node, arriving, arrived }))
    }

    /// Where the rings are.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.0.node
    }

    /// Who has a ring, if it ever moved.
    ///
    /// # Errors
    /// Those of the registry; [`Kind::Damaged`] for a key that nobody can read.
    pub fn find(&self, name: &RingName) -> Result<Found> {
        let operation = || format!("look who has ring '{name}'");
        match self.0.registry.get(&ring_key(name)).map_err(|failure| Error::from(failure).during(operation()))? {
            None => Ok(Found::default()),
            Some(entry) => Ok(Found { owner: Some(Owner::read(&entry)?), revision: entry.modified }),
        }
    }

    /// Writes down that this node has a ring, unless somebody else has it by a later move, or by the same.
    ///
    /// # Errors
    /// [`Kind::State`] if somebody has; those of the registry: then it may be written or not.
    pub fn claim(&self, name: &RingName, owner: &Owner) -> Result<()> {
        let operation = || format!("have ring '{name}'");
        for _ in 0..ATTEMPTS {
            let found = self.find(name)?;
            if let Some(there) = &found.owner {
                if there.node == self.0.node && there.moves == owner.moves {
                    return Ok(());
                }
                if there.moves >= owner.moves {
                    let cause = format!("by now it is node '{}''s, by move {}", there.node, there.moves);
                    return Err(Error::new(Kind::State, operation(), cause));
                }
            }
            let owner = owner.after(found.owner.as_ref());
            if self.write(name, &owner, found.revision)? {
                return Ok(());
            }
        }
        Err(Error::new(Kind::Busy, operation(), "others came between again and again").next("try again"))
    }

    /// Writes down that this node keeps a ring that it has given away by move `owner.moves`, unless it was taken.
    ///
    /// # Errors
    /// Those of the registry: then nobody knows whether it may still be taken.
    pub fn keep(&self, name: &RingName, owner: &Owner) -> Result<Kept> {
        match self.claim(name, owner) {
            Ok(()) => Ok(Kept::Yes),
            Err(error) if error.kind() == Kind::State => match self.find(name)?.owner {
                Some(there) if there.node != self.0.node => Ok(Kept::No(Box::new(there))),
                Some(_) | None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Whether it is as it was.
    fn write(&self, name: &RingName, owner: &Owner, revision: u64) -> Result<bool> {
        let operation = || format!("write down who has ring '{name}'");
        let value = serde_json::to_vec(owner).context(operation)?;
        let transaction = Transaction::replace(&ring_key(name), revision, value);
        match self.0.registry.apply(&transaction).map_err(|failure| Error::from(failure).during(operation()))? {
            Applied::Committed(_) => Ok(true),
            Applied::Refused => Ok(false),
        }
    }

    /// Waits until nobody else in this process fetches the ring.
    #[must_use]
    pub fn turn(&self, name: &RingName) -> Turn<'_> {
        let mut arriving = self.0.arriving();
        while !arriving.insert(name.clone()) {
            arriving = self.0.arrived.wait(arriving).unwrap_or_else(PoisonError::into_inner);
        }
        drop(arriving);
        Turn(&self.0, name.clone())
    }

    /// The same, if nobody does.
    fn try_turn(&self, name: &RingName) -> Option<Turn<'_>> {
        self.0.arriving().insert(name.clone()).then(|| Turn(&self.0, name.clone()))
    }

    /// The ring on this node, with what is known of it here.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn here(&self, name: &RingName) -> Result<Option<(Ring, RingState)>> {
        let Some(store) = Store::open_existing(&self.0.place.store)? else { return Ok(None) };
        match Ring::open(&store, name) {
            Ok(ring) => {
                let state = ring.read()?;
                Ok(Some((ring, state)))
            }
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes so on this node what a key says.
    ///
    /// # Errors
    /// Those of looking at the ring, and of changing it.
    pub fn settle(&self, name: &RingName, owner: &Owner) -> Result<()> {
        let here = self.here(name)?;
        if owner.node != self.0.node {
            return match owner.without.iter().find(|bereft| bereft.node == self.0.node) {
                Some(bereft) => self.let_go(name, here, (owner, bereft)),
                None => here.map_or(Ok(()), |(ring, state)| self.clear(&ring, &state, owner)),
            };
        }
        match here {
            None => self.forget(name),
            // It is being given away, and was not taken yet.
            Some((_, state)) if state.moves > owner.moves => Ok(()),
            Some((ring, state)) if state.moves == owner.moves => match state.elsewhere {
                None => Ok(()),
                Some(Elsewhere::Away { to, .. }) => {
                    tracing::info!("ring '{name}' stays on this node: it did not go to node '{to}'");
                    ring_move::unmark(&ring, &to)
                }
                Some(Elsewhere::Arriving { .. }) => self.finish(name, owner),
            },
            // The one that moved was removed, and this is a new one.
            Some((_, state)) if state.elsewhere.is_none() => Ok(()),
            Some(_) => self.finish(name, owner),
        }
    }

    /// It was to come here by a move that came to nothing: what is here of it goes.
    fn clear(&self, ring: &Ring, state: &RingState, owner: &Owner) -> Result<()> {
        match &state.elsewhere {
            Some(Elsewhere::Arriving { from }) if *from == owner.reference => {}
            Some(_) | None => return Ok(()),
        }
        match self.try_turn(ring.name()) {
            Some(_turn) => ring.lock()?.remove_unarrived(),
            None => Ok(()),
        }
    }

    /// It was this node's, and was removed: it is as if it had never moved, unless somebody has still to be told.
    fn forget(&self, name: &RingName) -> Result<()> {
        let Some(_turn) = self.try_turn(name) else { return Ok(()) };
        let found = self.find(name)?;
        let is_over = |owner: &Owner| owner.node == self.0.node && owner.without.is_empty();
        if !found.owner.as_ref().is_some_and(is_over) || self.here(name)?.is_some() {
            return Ok(());
        }
        let key = ring_key(name);
        let compares = vec![Compare::unchanged(&key, found.revision)];
        let transaction = Transaction { compares, deletes: vec![key], ..Transaction::default() };
        // Who changed it meanwhile is heard.
        self.0
            .registry
            .apply(&transaction)
            .map(drop)
            .map_err(|failure| Error::from(failure).during(format!("forget who had ring '{name}'")))
    }

    /// It was taken from this node, which is told of it now.
    fn let_go(
        &self,
        name: &RingName,
        here: Option<(Ring, RingState)>,
        (owner, bereft): (&Owner, &Bereft),
    ) -> Result<()> {
        if let Some((ring, state)) = here
            && !matches!(state.elsewhere, Some(Elsewhere::Arriving { .. }))
        {
            let heading = Heading { to: owner.node.as_str(), reference: &owner.reference };
            match ring_move::disown(&ring, heading, bereft.last_seq, owner.moves)? {
                Some(fork) => tracing::warn!(
                    "ring '{name}' was taken by node '{}' without this node: what it has beyond goes on in ring '{fork}'",
                    owner.node
                ),
                None => tracing::warn!("ring '{name}' was taken by node '{}' without this node", owner.node),
            }
        }
        // It is enough to be told once. If somebody else writes it now, this comes again.
        let found = self.find(name)?;
        if let Some(mut owner) = found.owner {
            owner.without.retain(|bereft| bereft.node != self.0.node);
            self.write(name, &owner, found.revision)?;
        }
        Ok(())
    }

    /// The daemon ended between the last two steps of taking a ring.
    fn finish(&self, name: &RingName, owner: &Owner) -> Result<()> {
        let Some(index) = &owner.index else { return Ok(()) };
        let _turn = self.turn(name);
        let is_here = |state: &RingState| state.moves >= owner.moves && state.elsewhere.is_none();
        if self.here(name)?.is_some_and(|(_, state)| is_here(&state)) {
            return Ok(());
        }
        let reference: Reference = owner.reference.parse()?;
        let trust = if owner.tls_verify { Trust::Verified } else { Trust::Anyone };
        let registry = super::push::Registry { reference: &reference, trust };
        let pushed = Pushed { index: index.clone(), moves: owner.moves, last_seq: 0 };
        let permit = || self.claim(name, owner);
        let ring = (name, registry);
        ring_move::take_without_consent(&self.0.place, ring, (&pushed, owner.moves), &permit, &mut |_| {})?;
        tracing::info!("ring '{name}' is here: what was missing of move {} is done", owner.moves);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::config::Config;
    use crate::registry::Sqlite;
    use crate::runtime::StateRoot;

    /// Two nodes that share a registry.
    fn nodes(directory: &std::path::Path) -> (Ownership, Ownership) {
        let registry: Arc<dyn Registry> = Arc::new(Sqlite::open(directory).unwrap());
        let node = |name: &str| {
            let place = Place {
                root: StateRoot::new(directory.join("run")),
                store: directory.join(name),
                config: Config::default(),
                config_file: None,
                owner: "root".parse().unwrap(),
            };
            Ownership::new(place, Arc::clone(&registry), name.parse().unwrap())
        };
        (node("n0"), node("n1"))
    }

    fn owner(of: &Ownership, moves: u64) -> Owner {
        Owner {
            node: of.node().clone(),
            moves,
            operation: "0".repeat(32).parse().unwrap(),
            reference: "docker://r.example/a".to_owned(),
            tls_verify: true,
            index: None,
            since: DateTime::UNIX_EPOCH,
            without: Vec::new(),
        }
    }

    fn ring() -> RingName {
        RingName { owner: "root".parse().unwrap(), name: "a".parse().unwrap() }
    }

    #[test]
    fn who_comes_to_take_what_was_kept_comes_too_late() {
        let directory = tempfile::tempdir().unwrap();
        let (source, destination) = nodes(directory.path());
        assert!(matches!(source.keep(&ring(), &owner(&source, 1)).unwrap(), Kept::Yes));
        let line = destination.claim(&ring(), &owner(&destination, 1)).unwrap_err().to_string();
        assert!(line.contains("by now it is node 'n0''s, by move 1"), "{line}");
        assert!(matches!(source.keep(&ring(), &owner(&source, 1)).unwrap(), Kept::Yes), "again");
        destination.claim(&ring(), &owner(&destination, 2)).unwrap();
    }

    #[test]
    fn what_was_taken_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (source, destination) = nodes(directory.path());
        destination.claim(&ring(), &owner(&destination, 1)).unwrap();
        destination.claim(&ring(), &owner(&destination, 1)).unwrap();
        let Kept::No(there) = source.keep(&ring(), &owner(&source, 1)).unwrap() else { panic!("both have it") };
        assert_eq!(there.node, *destination.node());
        assert_eq!(source.find(&ring()).unwrap().owner.unwrap().node, *destination.node());
    }
}
