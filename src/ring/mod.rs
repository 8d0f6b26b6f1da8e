//! Rings: bounded, timestamped queues of a container's saved states.
//!
//! `ring.json` is the only truth about a ring; [`Locked`] is its only writer. Everything else is derived from it
//! (`index.json`, the manifests) or named by it (layers, runs), so that each step of a change is harmless until the
//! next replacement of `ring.json`, and can be done again after it:
//!
//! ```text
//! seal    ring.json: journal ── rename upper ── ring.json: entry, no journal
//! pack    blobs ── manifest ── index.json ── ring.json: packed
//! fold    merged layer ── ring.json: chains with it
//! repack  blob ── ring.json: the layer's pack ── blobs that no manifest lists
//! evict   ring.json: without entry ── index.json ── blobs, layers
//! ```
//!
//! One run at a time has the ring and makes its main line. [`snapshot`] makes an entry of a run that goes on; a run that
//! gives the ring to a successor is then beside the main line, and so is what it leaves ([`side`]). Who only looks keeps the
//! layers, and nobody from the ring ([`look`]).

mod accept;
mod change;
mod claim;
mod depart;
pub mod diff;
mod disuse;
pub mod elsewhere;
pub mod entry;
pub mod exchange;
mod fold;
mod fork;
mod former;
pub mod gc;
mod holder;
mod index;
pub mod keep;
pub mod look;
pub mod memory;
mod mend;
mod merge;
pub mod offer;
mod pack;
mod pile;
pub mod prune;
pub mod quota;
mod removal;
mod repack;
mod seal;
pub mod selector;
pub mod side;
mod slot;
pub mod snapshot;
pub mod state;
pub mod verify;
mod view;
mod walk;
mod waste;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::RingName;
use crate::store::{Store, make_directory};
use crate::sys::fs::{Durability, TEMPORARY_PREFIX, random_id, remove_tree, sync_directory};
use crate::sys::lock::{Lock, Sharing};

use elsewhere::Elsewhere;
use entry::Reason;
use keep::Keep;

pub use change::{LimitChange, Pin, Revival};
pub use claim::{Base, Claim, Rebase, Start};
pub use depart::{Consent, Heading};
pub use disuse::Disuse;
pub use fork::{NewFork, name_for as name_of_fork};
pub use holder::Holder;
pub use pack::{PackOptions, Progress};
pub use removal::Removal;
pub use seal::Sealing;
pub use slot::Limits;
use state::RingState;
pub use view::View;

/// The file in a ring's directory that carries its lock.
const LOCK: &str = "lock";

/// A ring's place on disk.
#[derive(Debug, Clone)]
pub struct Ring {
    name: RingName,
    directory: PathBuf,
    store: Store,
}

/// A ring that nobody else changes now.
#[derive(Debug)]
pub struct Locked {
    ring: Ring,
    /// What `ring.json` says, with the changes that [`Locked::commit`] will write.
    pub state: RingState,
    lock: Lock,
}

impl Ring {
    /// Finds a ring.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none of that name, [`Kind::Damaged`] if only its packs are there.
    pub fn open(store: &Store, name: &RingName) -> Result<Self> {
        let ring = Self::at(store, name);
        if ring.is_there()? {
            return Ok(ring);
        }
        Err(no_such(format!("open ring '{name}'")))
    }

    /// Finds a ring, or makes an empty one with `limits` and the rules `keep`.
    ///
    /// # Errors
    /// Those of making directories and files; [`Kind::Damaged`] if only the packs of a ring of that name are there.
    pub fn open_or_create(store: &Store, name: &RingName, limits: Limits, keep: Keep) -> Result<Self> {
        let mut first = RingState::new(limits);
        first.keep = keep;
        Self::open_or_make(store, name, first)
    }

    /// The same for a ring that is about to come from somewhere: until that is done, no run starts from it.
    ///
    /// # Errors
    /// As [`Ring::open_or_create`].
    pub fn open_or_expect(store: &Store, name: &RingName, limits: Limits, from: &str) -> Result<Self> {
        let mut first = RingState::new(limits);
        first.elsewhere = Some(Elsewhere::Arriving { from: from.to_owned() });
        Self::open_or_make(store, name, first)
    }

    fn open_or_make(store: &Store, name: &RingName, mut first: RingState) -> Result<Self> {
        let ring = Self::at(store, name);
        if ring.is_there()? {
            return Ok(ring);
        }
        let _lock = ring.make_place()?;
        if !ring.is_there()? {
            crate::image::layout::Layout::create(&ring.directory)?;
            first.write(&ring.directory, Durability::Durable)?;
        }
        Ok(ring)
    }

    /// Packs without a `ring.json` are what is left of a ring: an empty one in their place would look like a loss.
    fn is_there(&self) -> Result<bool> {
        if self.state_file().is_file() {
            return Ok(true);
        }
        if !has_blobs(&self.directory) {
            return Ok(false);
        }
        let error = Error::new(Kind::Damaged, format!("open ring '{}'", self.name), "it has packs but no ring.json");
        Err(error.next(format!("put the file back, or remove {}", quote(&self.directory))))
    }

    fn at(store: &Store, name: &RingName) -> Self {
        let directory = store.rings().join(name.owner.as_str()).join(name.name.as_str());
        Self { name: name.clone(), directory, store: store.clone() }
    }

    /// The full name.
    #[must_use]
    pub fn name(&self) -> &RingName {
        &self.name
    }

    /// The directory, which is an OCI image layout.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The store in which it lies.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the ring holds now, for those who only look.
    ///
    /// # Errors
    /// [`Kind::Damaged`] or [`Kind::Unsupported`] if `ring.json` is not one that this regen understands.
    pub fn read(&self) -> Result<RingState> {
        RingState::read(&self.directory).context(|| format!("read ring '{}'", self.name))
    }

    /// Keeps everybody else from changing the ring, and finishes what a crash interrupted.
    ///
    /// # Errors
    /// As [`Ring::read`]; [`Kind::NotFound`] if the ring was removed meanwhile.
    pub fn lock(&self) -> Result<Locked> {
        let lock = self.wait_lock()?;
        let mut locked = Locked { ring: self.clone(), state: self.read()?, lock };
        snapshot::thaw_left(&mut locked)?;
        locked.mend()?;
        seal::finish(&mut locked)?;
        Ok(locked)
    }

    /// It vanishes in one step under a name that is no ring's, and is then deleted at leisure.
    fn discard(&self) -> Result<()> {
        let owner = self.store.rings().join(self.name.owner.as_str());
        let gone = owner.join(format!("{TEMPORARY_PREFIX}{:032x}", u128::from_ne_bytes(random_id()?)));
        fs::rename(&self.directory, &gone).context(|| format!("remove ring '{}'", self.name))?;
        sync_directory(&owner)?;
        remove_tree(&gone)
    }

    /// The lock of the ring that has the name now: whoever had it before may have removed the ring.
    fn wait_lock(&self) -> Result<Lock> {
        let (path, operation) = (self.directory.join(LOCK), || format!("lock ring '{}'", self.name));
        loop {
            match Lock::wait(&path, Sharing::Exclusive) {
                Err(error) if error.kind() == Kind::NotFound && !self.directory.exists() => {
                    return Err(no_such(operation()));
                }
                other => {
                    let lock = other.context(operation)?;
                    if lock.is_at(&path).context(operation)? {
                        return Ok(lock);
                    }
                }
            }
        }
    }

    /// Makes the directory, and locks it. A sweep takes one that nobody has locked yet: then it is made again.
    fn make_place(&self) -> Result<Lock> {
        loop {
            make_directory(&self.directory)?;
            match self.wait_lock() {
                Err(error) if error.kind() == Kind::NotFound && !self.directory.exists() => {}
                other => return other,
            }
        }
    }

    fn state_file(&self) -> PathBuf {
        self.directory.join(state::NAME)
    }
}

fn no_such(operation: String) -> Error {
    Error::new(Kind::NotFound, operation, "there is no such ring").next("'regen ring ls' lists the rings")
}

impl Locked {
    /// The ring that is locked.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Makes the changed state the ring's state, in one durable step.
    ///
    /// # Errors
    /// Those of write; the ring is then as it was.
    pub fn commit(&mut self) -> Result<()> {
        self.write(Durability::Durable)
    }

    /// Removes the ring if no container ever ran on it: one whose first container could not be made leaves no trace. Neither
    /// does one that was made for a container as a fork, and in which that changed nothing.
    ///
    /// # Errors
    /// Those of rename and unlink.
    pub fn remove_unused(self) -> Result<()> {
        let RingState { run, sides, last_exit, last_seq, moves, made_for, entries, .. } = &self.state;
        // One that a container was given goes with it, if that left nothing.
        let is_untouched = match made_for {
            Some(_) => *last_seq <= 1 && entries.iter().all(|entry| entry.reason == Reason::Fork && !entry.pinned),
            None => last_exit.is_none() && *last_seq == 0,
        };
        if run.is_none() && sides.is_empty() && is_untouched && *moves == 0 { self.ring.discard() } else { Ok(()) }
    }

    /// As [`Locked::commit`], for what a power cut may undo: who has the ring. A run that began just before it is then one
    /// that never was; what an upper holds that old, the kernel has not written either. Containers wait for this.
    pub(super) fn commit_claim(&mut self) -> Result<()> {
        self.write(Durability::Whole)
    }

    fn write(&mut self, durability: Durability) -> Result<()> {
        self.state.write(&self.ring.directory, durability).context(|| format!("write ring '{}'", self.ring.name))
    }
}

/// Whether a directory holds packs.
fn has_blobs(ring: &Path) -> bool {
    fs::read_dir(ring.join("blobs/sha256")).is_ok_and(|mut blobs| blobs.next().is_some())
}
