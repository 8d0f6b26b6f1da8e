//! What is written down of operations, also of those that other daemons have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Filter;
use super::core::{Core, missing};
use crate::error::Result;
use crate::operation::book::{fill, head};
use crate::operation::record::read_results;
use crate::operation::{OperationId, Record, Target, key};
use crate::registry::{Answer, Failure, Listing, Registry};

/// How long to rely on a watch before looking anew.
const LOOK: Duration = Duration::from_secs(60);
/// So many targets of each are told in a list.
const FEW: usize = 16;

/// All of it.
pub(super) fn whole(registry: &dyn Registry, id: &OperationId) -> Result<Option<Record>> {
    let Some((mut record, _)) = head(registry, id)? else { return Ok(None) };
    fill(registry, &mut record)?;
    for number in 0..record.chunks {
        if let Some(entry) = registry.get(&key::results(id, number))? {
            record.results.extend(read_results(&entry)?);
        }
    }
    Ok(Some(record))
}

/// The heads in a listing of operations, newest first. What cannot be read is told of and left out.
pub(super) fn heads(listing: &Listing) -> impl Iterator<Item = Record> {
    let heads = listing
        .entries
        .iter()
        .rev()
        .filter(|entry| entry.key.strip_prefix(key::OPERATION).is_some_and(|rest| !rest.contains('/')));
    heads.filter_map(|entry| Record::read(entry).inspect_err(|error| tracing::error!("{error}")).ok())
}

pub(super) fn list(core: &Arc<Core>, filter: Filter) -> Result<Vec<Record>> {
    let limit = filter.limit.unwrap_or(usize::MAX);
    let mut found = Vec::new();
    for beginning in OperationId::beginnings(core.clock.wall()) {
        if found.len() >= limit {
            break;
        }
        let listing = core.registry.list(&format!("{}{beginning}", key::OPERATION))?;
        let records = heads(&listing).map(|record| match core.find(&record.id) {
            Some(active) => Record { targets: few(&active.record), ..active.summary() },
            None => Record { targets: few(&record), ..record.head() },
        });
        let wanted = records.filter(|record| {
            filter.state.is_none_or(|state| record.state == state) && filter.kind.is_none_or(|kind| record.kind == kind)
        });
        found.extend(wanted.take(limit - found.len()));
    }
    Ok(found)
}

/// Those of its targets that are told in a list.
fn few(record: &Record) -> Vec<Target> {
    record.targets.iter().take(FEW).cloned().collect()
}

/// Sleeps until an operation that another daemon has is at its end.
pub(super) fn wait(core: &Arc<Core>, id: &OperationId, deadline: Option<Instant>) -> Result<Option<Record>> {
    loop {
        let (record, modified) = head(&*core.registry, id)?.ok_or_else(|| missing(id))?;
        if record.state.is_final() {
            return whole(&*core.registry, id);
        }
        if let Some(active) = core.find(id) {
            return Ok(active.wait(deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
        match watch(core, id, modified, left.map_or(LOOK, |left| left.min(LOOK))) {
            Ok(()) | Err(Failure::Compacted) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
}

fn watch(core: &Core, id: &OperationId, after: u64, limit: Duration) -> Answer<()> {
    core.registry.watch(&key::head(id), after)?.next(Some(limit)).map(drop)
}
