//! The end of an operation: one transaction with its state, its results, and its markers gone.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::active::Active;
use super::core::Core;
use crate::metrics;
use crate::operation::Record;

/// How often an operation is written down as how far it is. Most are over before.
const EVERY: Duration = Duration::from_secs(1);

/// Writes it down now, or has it written down when that is possible again.
pub(super) fn end(core: &Arc<Core>, active: &Arc<Active>) {
    let mut record = last_words(core, active);
    let written = core.book().end(&record, &mut active.claim.lock().unwrap_or_else(PoisonError::into_inner));
    match written {
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
    let (state, error, results) = life.course.last_words();
    Record {
        state,
        ended: Some(core.clock.wall()),
        error,
        parameters: active.record.parameters.clone(),
        targets: active.record.targets.clone(),
        results,
        ..active.head(&life)
    }
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
        let mark = (life.course.state, life.course.counts.done());
        if life.course.is_ending() || life.written == mark || life.noted.elapsed() < EVERY {
            return Noted::No;
        }
        let (parameters, targets) = (active.record.parameters.clone(), active.record.targets.clone());
        (Record { parameters, targets, ..active.head(&life) }, mark)
    };
    match core.book().note(&record, &mut claim) {
        Ok(true) => {
            let mut life = active.lock();
            life.written = mark;
            life.noted = Instant::now();
        }
        Ok(false) => {}
        Err(failure) => tracing::warn!(operation = %record.id, "{}", crate::error::Error::from(failure)),
    }
    Noted::Yes
}
