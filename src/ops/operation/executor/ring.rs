//! Tasks that change rings, as the command line's verbs do: under the ring's lock, and there past the fence.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{Executor, Settled, Task};
use crate::error::{Context, Error, Kind as Fault, Result, quote};
use crate::ids::{Name, RingName};
use crate::operation::Kind;
use crate::ops::snapshot::{Scope, Taken};
use crate::ops::{Place, snapshot, worker};
use crate::ring::entry::{Entry, Reason};
use crate::ring::keep::KeepChange;
use crate::ring::selector::{Selector, Target};
use crate::ring::{LimitChange, Pin, Revival, Ring as OneRing};
use crate::store::Store;

/// Who changes rings.
///
/// | kind | parameters | answer |
/// |---|---|---|
/// | rollback | `to`: a selector | `ring`, `seq` (null for the base) |
/// | snapshot | | `ring`, `seq` (null if nothing has changed) |
/// | pin, unpin | `entry`: a selector | `ring`, `seq` |
/// | set | `depth`, `max_bytes` (null for no limit), `keep` (`last`, `hourly`, `daily`, `weekly`) | `ring`, these, `evicted` |
/// | remove | | `ring`, `entries`, `bytes` |
/// | pack | | `ring`, `packed`; told: `seq`, `done`, `total` bytes |
#[derive(Debug)]
pub struct Ring(Place);

#[derive(Debug, Deserialize)]
struct Rollback {
    to: String,
}

#[derive(Debug, Deserialize)]
struct OneEntry {
    entry: String,
}

#[derive(Debug, Deserialize)]
struct Limits {
    depth: Option<usize>,
    /// Not said, none, or so many.
    #[serde(default, deserialize_with = "said")]
    max_bytes: Option<Option<u64>>,
    #[serde(default)]
    keep: KeepChange,
}

fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Ring {
    /// The kinds that it is for.
    pub const KINDS: [Kind; 7] = [
        Kind::RingRollback,
        Kind::RingSnapshot,
        Kind::RingPin,
        Kind::RingUnpin,
        Kind::RingSet,
        Kind::RingRemove,
        Kind::RingPack,
    ];

    /// One for the rings of a store.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self(place)
    }

    fn open(&self, name: &RingName) -> Result<OneRing> {
        let store = Store::open_existing(&self.0.store)?.ok_or_else(|| {
            let cause = format!("there is no store at {}", quote(&self.0.store));
            Error::new(Fault::NotFound, format!("open ring '{name}'"), cause)
        })?;
        OneRing::open(&store, name)
    }

    fn rollback(&self, task: &Task, ring: &OneRing) -> Result<Value> {
        let Rollback { to } = read(task)?;
        let selector = selector(&to, &self.0.owner)?;
        let mut locked = ring.lock()?;
        task.pass()?;
        let entry = locked
            .rollback(&selector, Revival::Wanted)
            .context(|| format!("roll back ring '{}' to '{selector}'", ring.name()))?;
        Ok(json!({"ring": ring.name().to_string(), "seq": entry.map(|entry| entry.seq)}))
    }

    fn snapshot(&self, task: &Task, ring: &OneRing) -> Result<Value> {
        let taken = snapshot::take(&self.0, ring, Scope::Files, &mut || task.pass().map(drop))?;
        let seq = match taken {
            Taken::Entry(entry) => {
                worker::start_apart(&self.0)?;
                Some(entry.seq)
            }
            Taken::Unchanged(_) => None,
        };
        Ok(json!({"ring": ring.name().to_string(), "seq": seq}))
    }

    fn pin(&self, task: &Task, ring: &OneRing, pin: Pin) -> Result<Value> {
        let OneEntry { entry } = read(task)?;
        let selector = selector(&entry, &self.0.owner)?;
        let mut locked = ring.lock()?;
        task.pass()?;
        let entry = locked.pin(&selector, pin).context(|| format!("change '{}@{selector}'", ring.name()))?;
        Ok(json!({"ring": ring.name().to_string(), "seq": entry.seq}))
    }

    fn remove(&self, task: &Task, ring: &OneRing) -> Result<Value> {
        let removal = ring.removal()?;
        task.pass()?;
        let (entries, bytes) = (removal.state().entries.len(), removal.bytes()?);
        removal.carry_out()?;
        // Its layers are collected by whoever comes next, if not by this one.
        worker::start_apart(&self.0)?;
        Ok(json!({"ring": ring.name().to_string(), "entries": entries, "bytes": bytes}))
    }

    fn pack(&self, task: &Task, ring: &OneRing, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let locked = ring.lock()?;
        task.pass()?;
        // Packing takes the lock again and again, for moments.
        drop(locked);
        let mut report = |report: &worker::Report| {
            tell(json!({"seq": report.seq, "done": report.done, "total": report.total}));
        };
        worker::pack_now(&self.0, ring.store(), Some(ring.name()), &mut report)?;
        Ok(json!({"ring": ring.name().to_string(), "packed": true}))
    }
}

fn set(task: &Task, ring: &OneRing) -> Result<Value> {
    let Limits { depth, max_bytes, keep } = read(task)?;
    let operation = || format!("set ring '{}'", ring.name());
    let change = LimitChange { depth, max_bytes, keep };
    if change.is_nothing() {
        return Err(Error::new(Fault::Usage, operation(), "no limit was given"));
    }
    if depth == Some(0) || max_bytes == Some(Some(0)) {
        return Err(Error::new(Fault::Invalid, operation(), "it would keep nothing"));
    }
    let mut locked = ring.lock()?;
    task.pass()?;
    let evicted = locked.set_limits(change)?;
    let state = &locked.state;
    let name = ring.name().to_string();
    let (depth, max_bytes) = (state.depth, state.max_bytes);
    let mut answer = json!({"ring": name, "depth": depth, "max_bytes": max_bytes, "evicted": evicted});
    if !state.keep.is_nothing() {
        answer["keep"] = json!(state.keep);
    }
    Ok(answer)
}

impl Executor for Ring {
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let name = name(task)?;
        if task.kind == Kind::RingMove {
            let cause = "this node is alone: nobody would learn where the ring is";
            return Err(Error::new(Fault::Unsupported, format!("move ring '{name}'"), cause)
                .next("start the daemons of both with '--cluster'"));
        }
        let ring = self.open(&name)?;
        match task.kind {
            Kind::RingRollback => self.rollback(task, &ring),
            Kind::RingSnapshot => self.snapshot(task, &ring),
            Kind::RingPin => self.pin(task, &ring, Pin::Pinned),
            Kind::RingUnpin => self.pin(task, &ring, Pin::Unpinned),
            Kind::RingSet => set(task, &ring),
            Kind::RingRemove => self.remove(task, &ring),
            Kind::RingPack => self.pack(task, &ring, tell),
            Kind::ServiceAdd
            | Kind::ServiceAdopt
            | Kind::ServiceRestart
            | Kind::ServiceUpgrade
            | Kind::ServiceRemove
            | Kind::TemplateCreate
            | Kind::TemplateRemove
            | Kind::Clone
            | Kind::RingMove
            | Kind::NodeDrain
            | Kind::Probe => {
                Err(Error::new(Fault::Unsupported, format!("carry out {}", task.kind), "it is nothing about a ring"))
            }
        }
    }

    fn settle(&self, task: &Task) -> Settled {
        if task.kind.repeatable() {
            return Settled::Repeat;
        }
        let looked = name(task).and_then(|name| match self.open(&name) {
            Err(error) if error.kind() == Fault::NotFound && task.kind == Kind::RingRemove => {
                Ok(Settled::Succeeded(json!({"ring": name.to_string()})))
            }
            // Whoever locks it finishes what was half done.
            Err(error) => Err(error),
            Ok(ring) => self.look(task, &ring),
        });
        looked.unwrap_or_else(Settled::Failed)
    }
}

impl Ring {
    /// What the ring tells of a task that was begun.
    fn look(&self, task: &Task, ring: &OneRing) -> Result<Settled> {
        let locked = ring.lock()?;
        let answer = |seq: Option<u64>| Settled::Succeeded(json!({"ring": ring.name().to_string(), "seq": seq}));
        let undone = || {
            let cause = "the daemon ended while it was being done, and nothing of it is left";
            Settled::Failed(Error::new(Fault::State, format!("{} of '{}'", task.kind, task.target), cause))
        };
        Ok(match task.kind {
            Kind::RingRollback => {
                let Rollback { to } = read(task)?;
                let view = locked.state.select_view(&selector(&to, &self.0.owner)?)?;
                let seq = match view {
                    crate::ring::selector::Selected::Base => None,
                    crate::ring::selector::Selected::Entry(entry) => Some(entry.seq),
                };
                // A run that began meanwhile took it up, or there was nothing to take up.
                if locked.state.next == seq && seq.is_some() { answer(seq) } else { Settled::Unknown }
            }
            Kind::RingSnapshot => {
                let asked = task.operation.time();
                let ours = |entry: &&Entry| entry.reason == Reason::Snapshot && entry.created >= asked;
                match locked.state.entries.iter().rev().find(ours) {
                    Some(entry) => answer(Some(entry.seq)),
                    None => undone(),
                }
            }
            // It vanishes in one step.
            Kind::RingRemove => undone(),
            Kind::RingPin
            | Kind::RingUnpin
            | Kind::RingSet
            | Kind::RingPack
            | Kind::RingMove
            | Kind::ServiceAdd
            | Kind::ServiceAdopt
            | Kind::ServiceRestart
            | Kind::ServiceUpgrade
            | Kind::ServiceRemove
            | Kind::TemplateCreate
            | Kind::TemplateRemove
            | Kind::Clone
            | Kind::NodeDrain
            | Kind::Probe => Settled::Unknown,
        })
    }
}

/// The ring that a task is about.
pub(super) fn name(task: &Task) -> Result<RingName> {
    let parts = task.target.subject.strip_prefix("ring/").and_then(|rest| rest.split_once('/'));
    let Some((owner, name)) = parts else {
        let operation = format!("{} of '{}'", task.kind, task.target);
        return Err(Error::new(Fault::Invalid, operation, "it has to be ring/OWNER/NAME"));
    };
    Ok(RingName { owner: owner.parse()?, name: name.parse()? })
}

/// `-1`, `@-1` and `RING@-1` are the same: nothing else could be meant.
fn selector(text: &str, owner: &Name) -> Result<Selector> {
    if text.contains('@') { Target::parse(text, owner).map(|target| target.selector) } else { text.parse() }
}

pub(super) fn read<T: DeserializeOwned>(task: &Task) -> Result<T> {
    let operation = || format!("read what {} of '{}' was asked with", task.kind, task.target);
    T::deserialize(&*task.parameters).map_err(|error| Error::new(Fault::Invalid, operation(), error.to_string()))
}
