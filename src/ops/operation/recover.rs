//! What a daemon does first: it takes up what is not at its end.
//!
//! ```text
//! its markers are there           ──> they hang on the new lease, the token stays
//! they went, and nobody has them  ──> they are taken anew, with a new token
//! somebody else has one           ──> what was not begun never is
//! then each target: not begun     ──> begun now
//!                   begun         ──> its executor finds out: done, not done, done again, or unknown
//! ```
//!
//! Whether a target was begun is what the fence of its node knows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::active::Active;
use super::core::Core;
use super::read;
use crate::error::Result;
use crate::ids::NodeName;
use crate::operation::fence::Token;
use crate::operation::marker::{Claim, Marker, Taken, Wish};
use crate::operation::{Counts, OperationId, Outcome, Record, Resource, State, key};
use crate::registry::{Applied, Compare, Put, Transaction};

/// Whether this was done, and the turn to do it.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    done: AtomicBool,
    turn: std::sync::Mutex<()>,
}

impl Recovery {
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

/// Takes up what the daemon before has left, once.
pub(super) fn recover(core: &Arc<Core>) -> Result<()> {
    if core.recovery.is_done() {
        return Ok(());
    }
    let turn = core.recovery.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if core.recovery.is_done() {
        return Ok(());
    }
    let prefix = key::active_of(&core.node);
    for entry in core.registry.list(&prefix)?.entries {
        let Some(Ok(id)) = entry.key.strip_prefix(&prefix).map(str::parse::<OperationId>) else { continue };
        if core.find(&id).is_some() {
            continue;
        }
        match read::head(&*core.registry, &id)? {
            Some((record, modified)) if !record.state.is_final() => {
                let taken = take_up(core, record, modified);
                // The daemon before was not dead, and ended it just now.
                if taken.is_err() && read::head(&*core.registry, &id)?.is_none_or(|(there, _)| there.state.is_final()) {
                    continue;
                }
                taken?;
            }
            Some(_) | None => {
                core.registry.apply(&Transaction { deletes: vec![entry.key], ..Transaction::default() })?;
            }
        }
    }
    core.markers.clear(&*core.registry, &core.node)?;
    core.recovery.done.store(true, Ordering::Release);
    drop(turn);
    Ok(())
}

fn take_up(core: &Arc<Core>, mut record: Record, modified: u64) -> Result<()> {
    read::fill(&*core.registry, &mut record)?;
    let registry = core.identity()?;
    // It may have been begun under any of its tokens: what is asked of fences begins with the first.
    let first = record.since.or(record.token).unwrap_or(modified);
    record.since = Some(first);
    let before = Token { registry: registry.clone(), number: first };
    let (lease, claim, barred) = claim(core, &record, modified)?;
    tracing::info!(operation = %record.id, kind = %record.kind, "taken up again");
    let deadline = record.deadline_ms.map(|limit| {
        let passed = (core.clock.wall() - record.created).to_std().unwrap_or_default();
        Instant::now() + Duration::from_millis(limit).saturating_sub(passed)
    });
    let token = Token { registry, number: claim.token };
    let mut active = Active::new(record, token, (lease, claim));
    active.before = Some(before);
    active.barred = barred;
    active.deadline = deadline;
    let mut work = core.work();
    work.load.operations += 1;
    work.load.targets += active.record.targets.len();
    drop(work);
    core.enqueue(Arc::new(active));
    Ok(())
}

/// Its markers: those that it had, new ones, or none and why.
fn claim(core: &Arc<Core>, record: &Record, modified: u64) -> Result<(u64, Claim, Option<String>)> {
    let mut resources = Vec::new();
    for target in &record.targets {
        resources.extend(Resource::all(record.kind, target, &record.parameters)?);
    }
    let held = core.lease.ensure(&*core.registry, &*core.clock)?;
    let marker = Marker { operation: record.id, kind: record.kind, node: core.node.clone(), since: record.created };
    let wish = Wish { marker, resources: &resources, key: None, lease: held.lease, head: modified };
    if let Some(mut claim) = core.markers.take_over(&*core.registry, &wish)? {
        claim.head = modified;
        return Ok((held.number, claim, None));
    }
    let mut write = |token| Ok(vec![Put::new(key::head(&record.id), record.write(token, 0)?)]);
    match core.markers.take(&*core.registry, &wish, &mut write)? {
        Taken::Taken(claim) => Ok((held.number, claim, None)),
        Taken::Held(holder) => {
            let reason = holder.error(&wish.marker, core.clock.wall()).without_next_step();
            let token = record.token.unwrap_or(modified);
            Ok((0, Claim::bare(token, modified), Some(reason)))
        }
        // It asks for no key.
        Taken::Duplicate(_) => Ok((0, Claim::bare(0, modified), Some("its key belongs to another".to_owned()))),
    }
}

/// Ends an operation of which its caller was not told whether it is one.
///
/// To look is not enough: what was sent may be done later. So its end is written down where it would begin, and what comes
/// after that finds the place taken.
pub(super) fn settle_doubt(core: &Arc<Core>, record: &Record) -> Result<()> {
    let id = record.id;
    let reason = "the registry did not answer whether it took it, so it was not begun";
    let state = State::Cancelled;
    let results = vec![Outcome::because(state, reason); record.targets.len()];
    let counts = Counts { cancelled: results.len(), ..record.counts };
    let (ended, error) = (Some(core.clock.wall()), Some(reason.to_owned()));
    let end = Record { state, ended, error, counts, results, key: None, ..record.clone() };
    let transaction = Transaction::replace(&key::head(&id), 0, end.write(None, 0)?);
    if core.registry.apply(&transaction)? != Applied::Refused {
        return Ok(core.markers.forget(&*core.registry, &id)?);
    }
    // It was there: it is ended as any other.
    let Some((there, modified)) = read::head(&*core.registry, &id)? else { return Ok(()) };
    if core.find(&id).is_some() {
        return Ok(());
    }
    if there.state.is_final() {
        // An answer of ours was lost, too.
        return Ok(core.markers.forget(&*core.registry, &id)?);
    }
    let (lease, claim, _) = claim(core, record, modified)?;
    let token = Token { registry: core.identity()?, number: claim.token };
    let active = Arc::new(Active::new(record.clone(), token, (lease, claim)));
    let mut work = core.work();
    work.load.operations += 1;
    work.load.targets += active.record.targets.len();
    work.active.insert(id, Arc::clone(&active));
    drop(work);
    let now = active.give_up((state, reason), None);
    core.end_if(&active, now);
    Ok(())
}

/// Whose operations are not at their end.
pub(super) fn busy_nodes(core: &Core) -> Result<BTreeSet<NodeName>> {
    let listed = core.registry.list(key::ACTIVE)?.entries;
    let names = listed.iter().filter_map(|entry| entry.key.strip_prefix(key::ACTIVE)?.split('/').next()?.parse().ok());
    Ok(names.collect())
}

/// Ends what a node has that does not come back: nobody knows what it did.
pub(super) fn bury(core: &Core, node: &NodeName) -> Result<usize> {
    let prefix = key::active_of(node);
    let mut count = 0;
    for entry in core.registry.list(&prefix)?.entries {
        let Some(Ok(id)) = entry.key.strip_prefix(&prefix).map(str::parse::<OperationId>) else { continue };
        let Some((record, modified)) = read::head(&*core.registry, &id)? else { continue };
        let mut transaction = Transaction { deletes: vec![entry.key], ..Transaction::default() };
        if !record.state.is_final() {
            let counts = Counts { unknown: record.counts.total - record.counts.done(), ..record.counts };
            let error = Some(format!("node '{node}', which had it, is gone"));
            let ended = Some(core.clock.wall());
            let token = record.token.or(Some(modified));
            let end = Record { state: State::Unknown, ended, error, counts, ..record };
            transaction.compares.push(Compare::unchanged(key::head(&id), modified));
            transaction.puts.push(Put::new(key::head(&id), end.write(token, 0)?));
        }
        // Somebody else may have done it, or the node is back.
        count += usize::from(core.registry.apply(&transaction)? != Applied::Refused);
    }
    Ok(count)
}
