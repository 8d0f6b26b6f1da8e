//! `ring-move`: a ring goes to another node by a registry of images.
//!
//! ```text
//! source         look ──> mark ── push ── take ──────────────────────────────────> over
//! destination      └─ room?                └─ fetch ── key: mine ── at home here       the key: see ops::ownership
//!                                          └─ it fails: key: the source's ── no mark ─> failed, the ring is where it was
//! ```
//!
//! The target is the ring on the node that has it; that one asks the other as it asks for any task of another node, under the
//! same operation, and each passes its own fence. Done again after a crash at any step, what is missing is done: that is how
//! a daemon that starts settles it, too.
//!
//! With `force` the target is the ring on the node that gets it, which takes what was pushed last and asks nobody.

mod destination;
mod source;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ring::{name, read};
use super::{Afterwards, Elsewhere, Executor, Settled, Task};
use crate::distribution::{Reference, Trust};
use crate::error::{Error, Kind as Fault, Result};
use crate::ids::{Digest, NodeName, RingName};
use crate::operation::OperationId;
use crate::ops::cluster::Cluster;
use crate::ops::ownership::{Owner, Ownership};
use crate::ops::push::Registry;
use crate::ops::ring_move::Given;
use crate::ops::transfer::Transfer;

/// Who moves rings. Parameters:
///
/// | name | is |
/// |---|---|
/// | `to` | the node that gets it |
/// | `via` | the repository that it goes by; the one of its last move if nothing is said |
/// | `tls_verify` | whether that has to prove who it is |
/// | `force` | without the node that has it |
/// | `from` | that node, where `force` is given and no key says it |
///
/// The answer has `ring`, `from`, `to`, `moves`, `entries` (how many were fetched), `last_seq`.
#[derive(Debug)]
pub struct Travel {
    ownership: Ownership,
    cluster: Arc<Cluster>,
    /// Who asks the other node; none if nobody can.
    remote: Option<Arc<dyn Elsewhere>>,
    /// Moves that failed, and may have been done all the same.
    doubtful: Mutex<HashSet<OperationId>>,
}

/// What is asked for.
#[derive(Debug, Deserialize)]
struct Wish {
    to: NodeName,
    #[serde(default)]
    from: Option<NodeName>,
    #[serde(default)]
    via: Option<String>,
    #[serde(default = "verified")]
    tls_verify: bool,
    #[serde(default)]
    force: bool,
    /// What the source asks of the destination; callers ask for the whole.
    #[serde(default)]
    part: Option<Part>,
}

/// What the destination does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// Says whether it would take the ring by this move.
    Look(u64),
    /// Takes it.
    Take(Given),
}

fn verified() -> bool {
    true
}

impl Travel {
    /// For a node of a cluster.
    #[must_use]
    pub fn new(ownership: Ownership, cluster: Arc<Cluster>, remote: Option<Arc<dyn Elsewhere>>) -> Self {
        Self { ownership, cluster, remote, doubtful: Mutex::default() }
    }

    /// Where the ring goes by: as was said, or as the last time.
    fn reference(&self, (name, wish): (&RingName, &Wish), last: Option<&Owner>) -> Result<Reference> {
        let text = wish.via.as_deref().or(last.map(|owner| owner.reference.as_str()));
        let text = text.ok_or_else(|| {
            let cause = "it never moved, so nobody knows by which registry it could go";
            Error::new(Fault::Invalid, format!("move ring '{name}'"), cause)
                .next("say so: '--via docker://HOST[:PORT]/REPOSITORY'")
        })?;
        let reference: Reference = text.parse()?;
        match reference.tag() {
            None => Ok(reference),
            Some(tag) => {
                let operation = format!("move ring '{name}' by '{text}'");
                Err(Error::new(Fault::Invalid, operation, format!("tag '{tag}' would be for one entry"))
                    .next("leave the tag out"))
            }
        }
    }

    /// What is written down where this node has a ring.
    fn owner(&self, task: &Task, (registry, moves): (Registry<'_>, u64), index: Option<Digest>) -> Owner {
        Owner {
            node: self.ownership.node().clone(),
            moves,
            operation: task.operation,
            reference: registry.reference.to_string(),
            tls_verify: registry.trust == Trust::Verified,
            index,
            since: chrono::Utc::now(),
            without: Vec::new(),
        }
    }

    fn doubt(&self, task: &Task) {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).insert(task.operation);
    }
}

impl Wish {
    fn trust(&self) -> Trust {
        if self.tls_verify { Trust::Verified } else { Trust::Anyone }
    }
}

/// Between steps is where a move may be given up.
fn check_wanted(task: &Task) -> Result<()> {
    if task.cancel.is_asked() {
        return Err(Error::new(Fault::State, format!("{} of '{}'", task.kind, task.target), "it was given up"));
    }
    Ok(())
}

/// How far blobs are.
fn told(transfer: &Transfer) -> Value {
    json!({"step": transfer.what, "done": transfer.done, "total": transfer.total})
}

impl Executor for Travel {
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let (name, wish): (_, Wish) = (name(task)?, read(task)?);
        match (&wish.part, wish.force) {
            (Some(Part::Look(moves)), _) => self.look(&name, *moves),
            (Some(Part::Take(given)), _) => self.take(task, (&name, &wish), given, tell),
            (None, true) => self.seize(task, (&name, &wish), tell),
            (None, false) => self.send(task, (&name, &wish), tell),
        }
    }

    /// What is done again does what is missing.
    fn settle(&self, _task: &Task) -> Settled {
        Settled::Repeat
    }

    fn afterwards(&self, task: &Task, _error: &Error) -> Afterwards {
        let was_doubtful = self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).remove(&task.operation);
        if was_doubtful { Afterwards::Unknown } else { Afterwards::NotDone }
    }
}
