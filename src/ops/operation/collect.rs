//! Operations that ended long ago are forgotten: those that are too old, and of many the oldest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::core::Core;
use super::read;
use crate::error::Result;
use crate::operation::{OperationId, Record, key};
use crate::registry::Transaction;

/// So many keys go in one transaction, so that others come between.
const BATCH: usize = 64;

/// One at a time.
#[derive(Debug, Default)]
pub(super) struct Collection(AtomicBool);

/// Collects in a thread of its own.
pub(super) fn start(core: &Arc<Core>) {
    if core.collection.0.swap(true, Ordering::AcqRel) {
        return;
    }
    let ours = Arc::clone(core);
    let thread = std::thread::Builder::new().name("collector".to_owned()).spawn(move || {
        if let Err(error) = collect(&ours) {
            tracing::warn!("forget old operations: {error}");
        }
        ours.collection.0.store(false, Ordering::Release);
    });
    if let Err(error) = thread {
        core.collection.0.store(false, Ordering::Release);
        tracing::error!("start a thread: {error}");
    }
}

/// Forgets what is too much; how many that were.
pub(super) fn collect(core: &Core) -> Result<usize> {
    let now = core.clock.wall();
    let (mut kept, mut gone, mut keys) = (0, 0, Vec::new());
    for beginning in OperationId::beginnings(now) {
        let listing = core.registry.list(&format!("{}{beginning}", key::OPERATION))?;
        for record in read::heads(&listing).filter(|record| record.node == core.node && record.state.is_final()) {
            let age = record.ended.and_then(|ended| (now - ended).to_std().ok()).unwrap_or_default();
            if kept < core.limits.keep && age <= core.limits.keep_for {
                kept += 1;
                continue;
            }
            gone += 1;
            let mut of_record = keys_of(&record);
            // Results and targets first: what a crash leaves is found by its head.
            while keys.len() + of_record.len() > BATCH {
                let rest = of_record.split_off(of_record.len().min(BATCH - keys.len()));
                keys.append(&mut of_record);
                delete(core, &mut keys)?;
                of_record = rest;
            }
            keys.append(&mut of_record);
        }
    }
    delete(core, &mut keys)?;
    Ok(gone)
}

fn keys_of(record: &Record) -> Vec<String> {
    let mut keys: Vec<_> = (0..record.chunks).map(|chunk| key::results(&record.id, chunk)).collect();
    if record.targets.is_empty() {
        keys.push(key::targets(&record.id));
    }
    keys.extend(record.key.as_deref().map(key::idempotency));
    keys.push(key::head(&record.id));
    keys
}

fn delete(core: &Core, keys: &mut Vec<String>) -> Result<()> {
    if !keys.is_empty() {
        core.registry.apply(&Transaction { deletes: std::mem::take(keys), ..Transaction::default() })?;
    }
    Ok(())
}
