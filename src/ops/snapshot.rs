//! An entry of a container that goes on.
//!
//! The container stands still only while what changed since the first copy is copied. If we are killed just then, it has to
//! go on all the same: `ring.json` says so, for whoever locks the ring next, and a *waker* is that one. It is a process of its
//! own that waits for our end; told that all went well, it ends without a look at the ring.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::memory::{self, Notes};
use super::{Place, name};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::RingName;
use crate::ring::entry::Entry;
use crate::ring::memory::Processes;
use crate::ring::snapshot::{Draft, Drafted, Stillness, Wanted};
use crate::ring::{Locked, Ring};
use crate::runtime::{self, Hold, StateRoot};
use crate::store::{Run, Store};
use crate::sys::channel::Channel;
use crate::sys::detach::spawn_self_with;

/// The verb that a waker is started with.
pub const VERB: &str = "waker";
/// What it is told when it is not needed.
const ASLEEP: &[u8] = b"done";

/// What came of the wish for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// This entry.
    Entry(Box<Entry>),
    /// The container has changed nothing since this entry, a snapshot of it or where it started; `None` for the bare base.
    Unchanged(Option<u64>),
}

/// What of a container an entry is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Its files.
    Files,
    /// Its processes, too: there is an entry also if no file has changed.
    Memory,
}

/// Makes an entry of the container that has a ring. `allowed` is asked under the ring's lock, before anything is written. What
/// was sealed is packed by a worker, which the caller starts.
///
/// To be called in a process that does one thing at a time with this container: its lock is one of processes.
///
/// # Errors
/// [`Kind::State`] if no container has the ring, [`Kind::Unsupported`] if it can't be frozen, [`Kind::NoSpace`] if the copy
/// does not fit, else those of copying and writing; the container goes on in any case.
pub fn take(place: &Place, ring: &Ring, scope: Scope, allowed: &mut dyn FnMut() -> Result<()>) -> Result<Taken> {
    let operation = || format!("snapshot ring '{}'", ring.name());
    let nobody =
        || Error::new(Kind::State, operation(), "no container runs on it").next("'regen ring log' lists its entries");
    let id = ring.read()?.run.ok_or_else(nobody)?;
    let run = Run::load(ring.store(), &id)?.ok_or_else(nobody)?;
    run.record.living_holder()?.ok_or_else(nobody)?;
    if scope == Scope::Memory {
        // Before anything is copied.
        hold(&run).and_then(|hold| Notes::of(&hold)).context(operation)?;
    }
    let draft = match draft(place, ring, &run, scope).context(operation)? {
        Drafted::Changed(draft) => *draft,
        Drafted::Unchanged(since) => return Ok(Taken::Unchanged(since)),
    };
    let mut locked = ring.lock()?;
    allowed()?;
    let entry = take_locked(place, &mut locked, &run, draft, scope).context(operation)?;
    Ok(Taken::Entry(Box::new(entry)))
}

/// What a container has changed so far, copied while it goes on.
pub(super) fn draft(place: &Place, ring: &Ring, run: &Run, scope: Scope) -> Result<Drafted> {
    let floor = place.config.store.min_free;
    let wanted = match scope {
        Scope::Files => Wanted::IfChanged,
        Scope::Memory => Wanted::Anyway,
    };
    ring.draft(run, wanted, &|total| floor.bytes(total))
}

fn hold(run: &Run) -> Result<Hold> {
    runtime::hold(&StateRoot::new(&run.record.state_root), &name::container_of(run)?)
}

/// Makes an entry of a draft; the container stands still for a moment.
pub(super) fn take_locked(place: &Place, locked: &mut Locked, run: &Run, draft: Draft, scope: Scope) -> Result<Entry> {
    let floor = place.config.store.min_free;
    let floor = |total| floor.bytes(total);
    let hold = hold(run)?;
    let notes = if scope == Scope::Memory { Some(Notes::of(&hold)?) } else { None };
    let saved = locked.ring().clone();
    let mut dump = notes.map(|notes| {
        let (hold, saved) = (&hold, &saved);
        move |directory: &Path, lock: BorrowedFd<'_>| notes.save((hold, saved), directory, lock)
    });
    let processes = match &mut dump {
        Some(dump) => Some(Processes { expected: memory::expect(run, &hold)?, dump }),
        None => None,
    };
    if hold.is_paused() {
        return locked.snapshot(draft, Stillness::Given, &floor, processes);
    }
    let ring = locked.ring().name().clone();
    let mut frozen = |work: &mut dyn FnMut() -> Result<()>| {
        let waker = Waker::start(place, &ring)?;
        hold.while_frozen(work)?;
        waker.dismiss()
    };
    locked.snapshot(draft, Stillness::Made(&mut frozen), &floor, processes)
}

/// A process that lets the container go on if we die.
struct Waker(Channel);

impl Waker {
    fn start(place: &Place, ring: &RingName) -> Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        let mut arguments: Vec<OsString> = vec!["--store".into(), place.store.clone().into()];
        arguments.extend([VERB.into(), ring.to_string().into()]);
        spawn_self_with(theirs, &arguments)
            .context(|| "start who lets the container go on if this process is killed")?;
        Ok(Self(ours))
    }

    fn dismiss(self) -> Result<()> {
        // One that is dead already is not needed either.
        self.0.send(ASLEEP, &[]).map(drop)
    }
}

/// What a waker does: it waits for the end of whoever started it, and if that came too early, for the ring's lock, which
/// does the rest.
///
/// # Errors
/// Those of opening and locking the ring; that it is gone is none.
pub fn wake(place: &Place, ring: &RingName) -> Result<()> {
    let channel = std::io::stdin().as_fd().try_clone_to_owned().map(Channel::from).context(|| "take the channel")?;
    // The standard stream is the other name of our end, and outlives this function; only the far end's counts.
    if channel.receive()?.is_some_and(|message| message.bytes == ASLEEP) {
        return Ok(());
    }
    let Some(store) = Store::open_existing(&place.store)? else { return Ok(()) };
    match Ring::open(&store, ring).and_then(|ring| ring.lock()) {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other.map(drop),
    }
}
