//! The end of an operation: one transaction with its state, its results, and its markers gone.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::active::{Active, Slot};
use super::core::Core;
use crate::metrics;
use crate::operation::marker::Claim;
use crate::operation::record::write_results;
use crate::operation::{Outcome, Record, State, key};
use crate::registry::{Answer, Applied, Compare, Entry, Failure, Put, Transaction};

/// The longest piece of results.
const PIECE: usize = 512 << 10;
/// How often an operation is written down as how far it is. Most are over before.
const EVERY: Duration = Duration::from_secs(1);
/// How often somebody else may come between.
const ATTEMPTS: u32 = 16;

/// Writes it down now, or has it written down when that is possible again.
pub(super) fn end(core: &Arc<Core>, active: &Arc<Active>) {
    let mut record = last_words(core, active);
    match write_down(core, active, &record) {
        Ok(other) => {
            if let Some(Record { state, ended, error, counts, .. }) = other {
                // Somebody who took us for dead was first.
                record = Record { state, ended, error, counts, ..record };
            }
            tracing::info!(operation = %record.id, kind = %record.kind, state = %record.state, "ended");
            let took = record.ended.and_then(|ended| (ended - record.created).to_std().ok()).unwrap_or_default();
            metrics::operation_ended(record.kind.word(), record.state.word(), took);
            core.close(active, record);
        }
        Err(failure) => {
            let error = crate::error::Error::from(failure);
            tracing::error!(operation = %record.id, "write down its end, tried again soon: {error}");
            core.tender.owe(core, Arc::clone(active));
            // It is over all the same, and whoever waits for it has waited enough.
            active.tell(None, &serde_json::Value::Null);
        }
    }
}

/// How it ended.
fn last_words(core: &Core, active: &Active) -> Record {
    let life = active.lock();
    let results: Vec<Outcome> = life
        .slots
        .iter()
        .map(|slot| match slot {
            Slot::Done(outcome) => outcome.clone(),
            // All are at their end.
            Slot::Waiting | Slot::Running => Outcome::because(State::Unknown, "it did not come to its end"),
        })
        .collect();
    let (state, error) = match &life.verdict {
        Some((state, reason)) if life.counts.succeeded < life.counts.total => (*state, Some(reason.clone())),
        Some(_) | None => (life.counts.verdict(), None),
    };
    // What failed by itself is not hidden by a cancellation.
    let state = if state == State::Cancelled { life.counts.verdict() } else { state };
    let alone = (results.len() == 1).then(|| results[0].error.clone()).flatten();
    Record {
        state,
        ended: Some(core.clock.wall()),
        error: error.or(alone),
        parameters: active.record.parameters.clone(),
        targets: active.record.targets.clone(),
        results,
        ..active.head(&life)
    }
}

/// Gives what is written down instead, if somebody else was first.
fn write_down(core: &Core, active: &Active, record: &Record) -> Answer<Option<Record>> {
    let pieces = write_results(&record.results, PIECE).map_err(Failure::Refused)?;
    let mut claim = active.claim.lock().unwrap_or_else(PoisonError::into_inner);
    let (chunks, many) = (u32::try_from(pieces.len()).unwrap_or(u32::MAX), pieces.len() > 1);
    let mut puts = Vec::new();
    for (number, piece) in (0..).zip(pieces) {
        let put = Put::new(key::results(&record.id, number), piece);
        if many {
            // Nobody reads them before the head says that they are there.
            core.registry.apply(&Transaction { puts: vec![put], ..Transaction::default() })?;
        } else {
            puts.push(put);
        }
    }
    let head = record.write(record.token, chunks).map_err(Failure::Refused)?;
    puts.push(Put::new(key::head(&record.id), head));
    let active_key = key::active(&core.node, &record.id);
    for _ in 0..ATTEMPTS {
        let mut transaction =
            Transaction { puts: puts.clone(), deletes: vec![active_key.clone()], ..Transaction::default() };
        transaction.compares.push(Compare::unchanged(key::head(&record.id), claim.head));
        claim.release(&mut transaction);
        match core.registry.apply(&transaction) {
            Ok(Applied::Committed(_)) => return Ok(None),
            Ok(Applied::Refused) | Err(Failure::Indeterminate(_)) => {
                match look(core, record, &mut claim)? {
                    Found::Ended(there) => return let_go(core, &claim).map(|()| there.map(|there| *there)),
                    // Its end and its markers are theirs.
                    Found::Taken(there) => return Ok(Some(*there)),
                    Found::NotEnded => {}
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    let cause = "others came between again and again";
    let operation = format!("write down the end of operation {}", record.id);
    Err(Failure::Unavailable(crate::error::Error::new(crate::error::Kind::Busy, operation, cause)))
}

enum Found {
    /// As this, if it is not gone altogether.
    Ended(Option<Box<Record>>),
    /// Another daemon of this node has it, which took this one for dead; as those see it who asked this one.
    Taken(Box<Record>),
    NotEnded,
}

/// What is there in place of what was expected.
fn look(core: &Core, record: &Record, claim: &mut Claim) -> Answer<Found> {
    let Some(entry) = core.registry.get(&key::head(&record.id))? else { return Ok(Found::Ended(None)) };
    if let Ok(there) = Record::read(&entry) {
        if there.state.is_final() {
            claim.reread(&*core.registry, &record.id)?;
            return Ok(Found::Ended(Some(Box::new(there))));
        }
        if is_anothers(&entry, &there, claim) {
            let error = Some("another daemon of its node has taken it up".to_owned());
            return Ok(Found::Taken(Box::new(Record { state: State::Unknown, error, ..there })));
        }
    }
    claim.reread(&*core.registry, &record.id)?;
    claim.head = entry.modified;
    Ok(Found::NotEnded)
}

/// Whether another daemon took it up, with markers that are newer than these.
fn is_anothers(entry: &Entry, there: &Record, claim: &Claim) -> bool {
    there.token.unwrap_or(entry.modified) > claim.token
}

/// Markers that are left where the end was written down without them.
fn let_go(core: &Core, claim: &Claim) -> Answer<()> {
    let mut transaction = Transaction::default();
    claim.release(&mut transaction);
    if transaction.deletes.is_empty() {
        return Ok(());
    }
    core.registry.apply(&transaction).map(drop)
}

/// Whether something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    Yes,
    No,
}

/// Writes down how far an operation is, for those who read the registry, if that is not there yet.
pub(super) fn note(core: &Core, active: &Active) -> Noted {
    // Whoever has it writes something newer.
    let Ok(mut claim) = active.claim.try_lock() else { return Noted::No };
    let (record, mark) = {
        let life = active.lock();
        let mark = (life.state, life.counts.done());
        if life.ending || life.written == mark || life.noted.elapsed() < EVERY {
            return Noted::No;
        }
        let (parameters, targets) = (active.record.parameters.clone(), active.record.targets.clone());
        (Record { parameters, targets, ..active.head(&life) }, mark)
    };
    let name = key::head(&record.id);
    let written = record
        .write(record.token, 0)
        .map_err(Failure::Refused)
        .and_then(|value| core.registry.apply(&Transaction::replace(&name, claim.head, value)));
    match written {
        Ok(Applied::Committed(revision)) => {
            claim.head = revision;
            let mut life = active.lock();
            life.written = mark;
            life.noted = Instant::now();
        }
        Ok(Applied::Refused) | Err(Failure::Indeterminate(_)) => {
            // What another daemon wrote is found at the end.
            if let Ok(Some(entry)) = core.registry.get(&name)
                && !Record::read(&entry).is_ok_and(|there| is_anothers(&entry, &there, &claim))
            {
                claim.head = entry.modified;
            }
        }
        Err(failure) => tracing::warn!(operation = %record.id, "{}", crate::error::Error::from(failure)),
    }
    Noted::Yes
}
