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
use crate::error::Result;
use crate::ids::NodeName;
use crate::operation::book::{Doubt, Reclaimed, head};
use crate::operation::course::Afterwards;
use crate::operation::fence::Token;
use crate::operation::{Record, State, key};

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
    for (record, modified) in core.book().unfinished(&|id| core.find(id).is_some())? {
        let id = record.id;
        let taken = take_up(core, record, modified);
        // The daemon before was not dead, and ended it just now.
        if taken.is_err() && head(&*core.registry, &id)?.is_none_or(|(there, _)| there.state.is_final()) {
            continue;
        }
        taken?;
    }
    core.markers.clear(&*core.registry, &core.node)?;
    core.recovery.done.store(true, Ordering::Release);
    drop(turn);
    Ok(())
}

fn take_up(core: &Arc<Core>, record: Record, modified: u64) -> Result<()> {
    let registry = core.identity()?;
    let Reclaimed { lease, claim, barred } = core.book().reclaim(&record, modified)?;
    tracing::info!(operation = %record.id, kind = %record.kind, "taken up again");
    let deadline = record.deadline_ms.map(|limit| {
        let passed = (core.clock.wall() - record.created).to_std().unwrap_or_default();
        Instant::now() + Duration::from_millis(limit).saturating_sub(passed)
    });
    let token = Token { registry, number: claim.token };
    // Each target may have been done: whoever asks its fence knows more.
    let mut active = Active::new(record, token, (lease, claim), Afterwards::Unknown);
    active.barred = barred;
    active.deadline = deadline;
    let mut work = core.work();
    work.load.operations += 1;
    work.load.targets += active.record.targets.len();
    drop(work);
    core.enqueue(Arc::new(active));
    Ok(())
}

/// Ends an operation of which its caller was not told whether it is one.
pub(super) fn settle_doubt(core: &Arc<Core>, record: &Record) -> Result<()> {
    let reason = "the registry did not answer whether it took it, so it was not begun";
    let modified = match core.book().entomb(record, reason, &|id| core.find(id).is_some())? {
        Doubt::Over => return Ok(()),
        Doubt::There(modified) => modified,
    };
    let Reclaimed { lease, claim, .. } = core.book().reclaim(record, modified)?;
    let token = Token { registry: core.identity()?, number: claim.token };
    let active = Arc::new(Active::new(record.clone(), token, (lease, claim), Afterwards::NotDone));
    let mut work = core.work();
    work.load.operations += 1;
    work.load.targets += active.record.targets.len();
    work.active.insert(record.id, Arc::clone(&active));
    drop(work);
    let now = active.give_up((State::Cancelled, reason), None);
    core.end_if(&active, now);
    Ok(())
}

/// Whose operations are not at their end.
pub(super) fn busy_nodes(core: &Core) -> Result<BTreeSet<NodeName>> {
    let listed = core.registry.list(key::ACTIVE)?.entries;
    let names = listed.iter().filter_map(|entry| entry.key.strip_prefix(key::ACTIVE)?.split('/').next()?.parse().ok());
    Ok(names.collect())
}
