//! A snapshot: an entry of a run that goes on.
//!
//! ```text
//! draft      what the upper holds is copied while the container runs, and what changed meanwhile once more
//! lock       nobody else changes the ring from here on
//! stand      the container stands still ── what changed since is copied ── it goes on
//! seal       journal ── the copy is renamed into the layers ── entry in ring.json
//! note       what the copy holds is written down beside the upper
//! ```
//!
//! With processes ([`memory`](super::memory)) these are saved while the container stands still, after the last file was
//! copied: nothing of it runs between the two. There is then always an entry, also if no file has changed.
//!
//! **The next snapshot of a run is what changed since the one before** (`former` tells): its layer lies over the
//! layers of that one. Where that cannot be told or said, it is a copy of the whole upper, over what the run started from.
//!
//! The copy lies where the upper of a run would, so a crash leaves a run that nobody names and that is swept, or one that the
//! journal names and that is sealed like any other.
//!
//! **Nobody stands still for good.** That the container is made to stand still is written into `ring.json` before, and the
//! lock on the ring is held all the while. So whoever gets the lock and reads that, knows that the one who did it is dead, and
//! lets the container go on. A process that waits for just that is started before ([`crate::ops::snapshot`]).

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chrono::Utc;

use super::diff::differs_from_snapshot;
use super::entry::{Ending, Entry, Outcome, Reason};
use super::former::Former;
use super::memory::{Processes, Stage};
use super::seal::{self, End};
use super::{Locked, Ring};
use crate::cgroup::thaw_at;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::LayerId;
use crate::pack::{LayerCopy, Passed, Upper};
use crate::store::{Run, RunRecord};
use crate::sys::lock::{Lock, Sharing};
use crate::sys::process::Identity;

/// After a pass that took longer, so much may have changed that another one is made before the container stands still.
const LONG_PASS: Duration = Duration::from_millis(300);
/// A container that writes faster than it is copied is not caught up with.
const PASSES_MAX: usize = 3;
/// So many bytes that changed just before a pass are worth waiting for: later they need not be copied again while the
/// container stands still.
const WORTH_WAITING: u64 = 256 << 10;
/// After so long, what changed does not count as changed just now any more.
const SETTLED: Duration = Duration::from_millis(120);

/// A container's upper as it was lately, copied while the container goes on. Nothing is left of one that is dropped.
#[derive(Debug)]
pub struct Draft {
    /// The run that is copied.
    of: LayerId,
    /// Whose upper is the copy. Nobody runs on it.
    run: Run,
    copy: LayerCopy,
    /// The snapshot that it is to be put over.
    former: Option<Former>,
    fate: Fate,
    /// Nobody puts files back into the upper meanwhile, which have other names at first.
    _unrestored: Lock,
}

/// What came of a copy.
#[derive(Debug)]
pub enum Drafted {
    /// There is something to make an entry of.
    Changed(Box<Draft>),
    /// Nothing has changed since this entry, or, if there is none, over the bare base.
    Unchanged(Option<u64>),
}

/// When there is to be an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// If anything has changed.
    IfChanged,
    /// In any case.
    Anyway,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Dropped,
    /// The ring names it.
    Named,
}

/// Does something while the container stands still, and lets it go on whatever comes of it.
pub type WhileStill<'a> = dyn FnMut(&mut dyn FnMut() -> Result<()>) -> Result<()> + 'a;

/// How it comes that the container stands still.
pub enum Stillness<'a> {
    /// Somebody has paused it, and will let it go on.
    Given,
    /// It is made to stand still for as long as the copy needs.
    Made(&'a mut WhileStill<'a>),
}

impl std::fmt::Debug for Stillness<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Given => "Given",
            Self::Made(_) => "Made",
        })
    }
}

/// Says of a file system of so many bytes how many have to stay free.
pub type Floor<'a> = dyn Fn(u64) -> u64 + 'a;

impl Ring {
    /// Copies what a run has changed since the last snapshot of it, or since its start, while its container goes on.
    ///
    /// Takes as long as the bytes need, unless the file system can share blocks, and keeps nobody from the ring.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if the file system would fall below its floor, [`Kind::Unsupported`] for an upper that cannot be a
    /// layer, else those of reading and writing.
    pub fn draft(&self, run: &Run, wanted: Wanted, floor: &Floor<'_>) -> Result<Drafted> {
        let operation = || format!("copy what container '{}' has changed", run.record.container);
        if let Some((former, known)) = Former::find(self, run).context(operation)? {
            let seq = former.seq;
            match self.draft_over(run, wanted, floor, (former, &known)) {
                Ok(Some(draft)) => return Ok(Drafted::Changed(Box::new(draft))),
                Ok(None) => return Ok(Drafted::Unchanged(Some(seq))),
                Err(error) if error.kind() == Kind::NoSpace => return Err(error.during(operation())),
                // A copy of everything needs nothing of what was before, and tells of what else is wrong.
                Err(error) => tracing::debug!(ring = %self.name(), "the next snapshot is a whole one: {error}"),
            }
        }
        // What cannot be looked at is being changed; if not, the copy tells what is wrong with it.
        if wanted == Wanted::IfChanged && !seal::has_changes(self.store(), run).unwrap_or(true) {
            return Ok(Drafted::Unchanged(run.record.parent));
        }
        let mut draft = Draft::begin(self, run, None).context(operation)?;
        draft.follow(self, floor).context(operation)?;
        Ok(Drafted::Changed(Box::new(draft)))
    }

    /// A draft of what changed since a former one; `None` if that is nothing.
    fn draft_over(
        &self,
        run: &Run,
        wanted: Wanted,
        floor: &Floor<'_>,
        former: (Former, &[u8]),
    ) -> Result<Option<Draft>> {
        let mut draft = Draft::begin(self, run, Some(former))?;
        let (changed, doubtful) = draft.follow(self, floor)?;
        let differs = wanted == Wanted::Anyway || changed > doubtful || changed > 0 && draft.differs(self, run)?;
        Ok(differs.then_some(draft))
    }
}

impl Draft {
    fn begin(ring: &Ring, of: &Run, former: Option<(Former, &[u8])>) -> Result<Self> {
        let store = ring.store();
        let holders = vec![Identity::of(nix::unistd::getpid().as_raw())?];
        // What would be swept as a run that nobody lives on has no cgroups to look into, and no mount.
        let record =
            RunRecord { holders, cgroups: Vec::new(), device: None, mount_namespace: None, ..of.record.clone() };
        let lock = store.lock_against_collection()?;
        let run = Run::create(store, record)?;
        drop(lock);
        let (layer, target) = (of.upper(), run.upper());
        let unrestored = Lock::wait_at(&layer, Sharing::Shared)?;
        let (former, copy) = match former {
            Some((former, known)) => (Some(former), LayerCopy::over(&layer, &target, run.record.class, known)?),
            None => (None, LayerCopy::new(&layer, &target, run.record.class)?),
        };
        Ok(Self { of: of.id().clone(), run, copy, former, fate: Fate::Dropped, _unrestored: unrestored })
    }

    /// Copies until little is left to copy; how many changes that were, and of how many it could not be told.
    fn follow(&mut self, ring: &Ring, floor: &Floor<'_>) -> Result<(u64, u64)> {
        let (mut changed, mut doubtful) = (0, 0);
        for _ in 0..PASSES_MAX {
            let began = Instant::now();
            let passed = self.pass(ring, Upper::Living, floor)?;
            changed += passed.changed;
            doubtful += passed.doubtful;
            if passed.fresh >= WORTH_WAITING {
                sleep(SETTLED);
            } else if began.elapsed() < LONG_PASS {
                break;
            }
        }
        Ok((changed, doubtful))
    }

    /// Whether what was copied again is another than what the snapshot before has; `true` where that cannot be told.
    fn differs(&self, ring: &Ring, of: &Run) -> Result<bool> {
        let locked = ring.lock()?;
        let Some(chain) = self.chain(&locked)? else { return Ok(true) };
        let present = |directories: &Vec<PathBuf>| directories.iter().all(|directory| directory.is_dir());
        let bases = [&of.record.base_lasting, &of.record.base_directories];
        let Some(base) = bases.into_iter().find(|base| !base.is_empty() && present(base)) else { return Ok(true) };
        let before = locked.stack(&chain, base.clone(), "a snapshot")?;
        let after = locked.stack_below(Some(self.run.upper()), &chain, base.clone(), "what changed since")?;
        differs_from_snapshot(before, after, self.run.record.class, &[self.run.upper()])
    }

    fn pass(&mut self, ring: &Ring, upper: Upper, floor: &Floor<'_>) -> Result<Passed> {
        let room = |bytes| ring.check_space(bytes, floor).map_err(|error| error.next("free that much, then try again"));
        let began = Instant::now();
        let passed = self.copy.pass(upper, &room)?;
        tracing::debug!(ring = %ring.name(), ?upper, ?passed, "a pass over an upper took {:?}", began.elapsed());
        Ok(passed)
    }

    /// The layers that the copy is to be put over, if that is a former snapshot; `None` for those that its run stands on.
    fn chain(&self, locked: &Locked) -> Result<Option<Vec<LayerId>>> {
        let Some(former) = &self.former else { return Ok(None) };
        let gone = || Error::new(Kind::State, "find the snapshot before it", "it is gone").next("try again");
        locked
            .state
            .entries
            .iter()
            .find(|entry| former.is(entry))
            .map(|entry| Some(entry.layers.clone()))
            .ok_or_else(gone)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.fate == Fate::Dropped {
            // What cannot be removed is swept once we are dead.
            let _ = self.run.remove();
        }
    }
}

impl Locked {
    /// Makes an entry of a draft, with what changed since. It is the newest of the main line, and the next run starts there,
    /// unless the run that goes on ends before. `processes` are saved with it.
    ///
    /// # Errors
    /// [`Kind::State`] if that run does not have the ring any more; those of standing still and of copying: the ring is then
    /// as it was. Those of writing; a started entry is finished by whoever locks the ring next.
    pub fn snapshot(
        &mut self,
        mut draft: Draft,
        stillness: Stillness<'_>,
        floor: &Floor<'_>,
        mut processes: Option<Processes<'_>>,
    ) -> Result<Entry> {
        self.check_owner(&draft.of)?;
        let store = self.ring().store.clone();
        let of = Run::load(&store, &draft.of)?;
        let of =
            of.ok_or_else(|| Error::new(Kind::Damaged, format!("look at run {}", draft.of), "its record is gone"))?;
        let ring = self.ring().clone();
        let chain = draft.chain(self)?;
        if let Stillness::Made(_) = stillness {
            draft.copy.get_ready();
        }
        let stage = processes.as_ref().map(|processes| Stage::make(self, processes, floor)).transpose()?;
        let lock = self.lock.duplicate()?;
        let mut last_pass = || {
            // After an error, the next snapshot is a whole one.
            let passed = draft.pass(&ring, Upper::Still, floor).map(drop);
            passed.inspect_err(|_| Former::forget(&of))?;
            match (&mut processes, &stage) {
                (Some(processes), Some(stage)) => (processes.dump)(stage.path(), lock.as_fd()),
                (_, None) | (None, _) => Ok(()),
            }
        };
        match stillness {
            Stillness::Given => last_pass()?,
            Stillness::Made(while_still) => {
                self.state.frozen = Some(of.id().clone());
                self.commit_claim()?;
                let copied = while_still(&mut last_pass);
                self.state.frozen = None;
                if let Err(error) = copied {
                    // What went wrong is reported; the note does no harm to a container that goes on.
                    let _ = self.commit_claim();
                    return Err(error);
                }
            }
        }
        // Until the journal names it, only its living holder keeps the copy from being swept.
        let _lock = store.lock_against_collection()?;
        let ending = Ending { exit_code: None, requested: false };
        let outcome = Outcome::of(ending, of.record.started, Utc::now());
        let end = End { reason: Reason::Snapshot, exit_code: None, outcome };
        let mut entry = seal::new_entry(self, &of, draft.run.id(), &end)?;
        if let Some(mut chain) = chain {
            chain.push(draft.run.id().clone());
            entry.layers = chain;
        }
        entry.memory_bytes = stage.map(|stage| stage.publish(&ring, &entry)).transpose()?;
        draft.fate = Fate::Named;
        seal::begin(self, &of, &entry)?;
        seal::finish(self)?;
        Former::note(&of, &entry, &draft.copy);
        Ok(entry)
    }
}

/// Lets a container go on that somebody made to stand still who is dead by now, for else we would not have the ring's lock.
pub(super) fn thaw_left(locked: &mut Locked) -> Result<()> {
    let Some(id) = locked.state.frozen.clone() else { return Ok(()) };
    if let Some(run) = Run::load(&locked.ring().store, &id)? {
        let operation =
            || format!("let container '{}' go on after a snapshot that was cut short", run.record.container);
        thaw_at(&run.record.cgroups).context(operation)?;
    }
    locked.state.frozen = None;
    // Whatever keeps it from being swept keeps nobody from the ring: the worker tries again.
    let _ = locked.sweep_memory();
    locked.commit_claim()
}
