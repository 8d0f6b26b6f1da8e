//! The way in: decided, taken, written down, queued.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::active::Active;
use super::core::Core;
use super::{Request, Submitted, recover};
use crate::error::{Error, Kind as Fault, Result};
use crate::metrics;
use crate::operation::book;
use crate::operation::course::Afterwards;
use crate::operation::fence::Token;
use crate::operation::lease::Held;
use crate::operation::marker::{Marker, Taken, owner};
use crate::operation::queue::{Admission, Asked, Late, admit};
use crate::operation::resource::first_overlap;
use crate::operation::{Counts, Kind, OperationId, Record, Resource, State, Target, key};
use crate::registry::Failure;

/// The longest idempotency key.
const KEY_MAX: usize = 200;

/// Room in the queue, given back where it is not used.
struct Room<'a> {
    core: &'a Core,
    targets: usize,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut work = self.core.work();
        work.load.operations -= 1;
        work.load.targets -= self.targets;
    }
}

pub(super) fn submit(core: &Arc<Core>, request: Request) -> Result<Submitted> {
    let began = Instant::now();
    recover::recover(core)?;
    let known = known(core, &request)?;
    let resources = resources(&request)?;
    let room = match reserve(core, &request, known)? {
        Ok(room) => room,
        Err(id) => return repeated(core, id, (request.kind, &request.targets)),
    };
    let registry = core.identity()?;
    let record = record(core, request)?;
    let (id, deadline) = (record.id, record.deadline_ms);
    let marker = Marker { operation: id, kind: record.kind, node: core.node.clone(), since: record.created };
    let (held, taken) = take(core, &record, &resources)?;
    let claim = match taken {
        Taken::Taken(claim) => claim,
        Taken::Duplicate(id) => return repeated(core, id, (record.kind, &record.targets)),
        Taken::Held(holder) => {
            metrics::operation_conflicted(marker.kind.word());
            return Err(holder.error(&marker, core.clock.wall()));
        }
    };
    metrics::operation_accepted(marker.kind.word());
    tracing::info!(operation = %id, kind = %record.kind, targets = record.counts.total, requester = record.requester, "queued");
    let token = Token { registry, number: claim.token };
    let mut active = Active::new(record, token, (held.number, claim), Afterwards::NotDone);
    active.deadline = deadline.and_then(|limit| began.checked_add(Duration::from_millis(limit)));
    active.asked = tracing::Span::current();
    std::mem::forget(room);
    core.enqueue(Arc::new(active));
    Ok(Submitted { id, duplicate: false })
}

/// Who asks for the same again, by its idempotency key, is given the operation that there is.
fn repeated(core: &Core, id: OperationId, (kind, targets): (Kind, &[Target])) -> Result<Submitted> {
    if let Some((known, _)) = book::head(&*core.registry, &id)? {
        let same_targets = known.targets.is_empty() || known.targets == targets;
        if known.kind != kind || known.counts.total != targets.len() || !same_targets {
            let cause = format!("its key belongs to operation {id}, which is another one: {}", known.kind);
            return Err(Error::new(Fault::Exists, format!("submit {kind}"), cause)
                .next("give each thing that is asked for a key of its own"));
        }
    }
    Ok(Submitted { id, duplicate: true })
}

/// The operation that has its idempotency key.
fn known(core: &Core, request: &Request) -> Result<Option<OperationId>> {
    let Some(text) = &request.key else { return Ok(None) };
    if text.is_empty() || text.len() > KEY_MAX || text.chars().any(|c| c.is_control() || c == '/') {
        let cause = format!("an idempotency key has 1 to {KEY_MAX} bytes, without '/' and control characters");
        return Err(Error::new(Fault::Invalid, format!("submit {}", request.kind), cause));
    }
    Ok(core.registry.get(&key::idempotency(text))?.as_ref().and_then(owner))
}

/// What it takes, each once.
fn resources(request: &Request) -> Result<Vec<Resource>> {
    let mut resources = Vec::with_capacity(request.targets.len());
    for target in &request.targets {
        resources.extend(Resource::all(request.kind, target, &request.parameters)?);
    }
    match first_overlap(&resources) {
        None => Ok(resources),
        Some(twice) => {
            let operation = format!("submit {}", request.kind);
            Err(Error::new(Fault::Usage, operation, format!("'{twice}' is named twice")).next("name each target once"))
        }
    }
}

/// Room in the queue; or the operation that there is already.
fn reserve<'a>(
    core: &'a Core,
    request: &Request,
    known: Option<OperationId>,
) -> Result<std::result::Result<Room<'a>, OperationId>> {
    let mut last = None;
    let stranger = request.targets.iter().map(|target| &target.node).find(|node| {
        let new = last != Some(*node) && !core.executors.knows(&core.node, node);
        last = Some(*node);
        new
    });
    let late = if request.deadline.is_some_and(|deadline| deadline.is_zero()) { Late::Yes } else { Late::No };
    let (kind, targets) = (request.kind, request.targets.len());
    let asked = Asked { kind, targets, stranger: stranger.cloned(), late, known };
    let mut work = core.work();
    match admit(&work.load, &core.limits.bounds, &asked) {
        Admission::Accept => {
            work.load.operations += 1;
            work.load.targets += targets;
            Ok(Ok(Room { core, targets }))
        }
        Admission::Duplicate(id) => Ok(Err(id)),
        Admission::Refuse(reason) => {
            metrics::operation_refused(reason.word());
            Err(reason.error(kind, &core.limits.bounds))
        }
    }
}

fn record(core: &Core, request: Request) -> Result<Record> {
    let created = core.clock.wall();
    Ok(Record {
        id: OperationId::draw(created)?,
        kind: request.kind,
        state: State::Queued,
        node: core.node.clone(),
        requester: request.requester,
        created,
        started: None,
        ended: None,
        counts: Counts { total: request.targets.len(), ..Counts::default() },
        error: None,
        key: request.key,
        deadline_ms: request.deadline.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        since: None,
        token: None,
        chunks: 0,
        parameters: request.parameters,
        targets: request.targets,
        results: Vec::new(),
    })
}

/// Takes its markers and writes it down.
fn take(core: &Arc<Core>, record: &Record, resources: &[Resource]) -> Result<(Held, Taken)> {
    match core.book().admit(record, resources) {
        Ok(taken) => Ok(taken),
        Err(Failure::Indeterminate(error)) => {
            core.tender.doubt(core, record.clone());
            let next = format!("see 'regen op show {}'", record.id);
            Err(error.during(format!("submit operation {}", record.id)).next(next))
        }
        Err(failure) => Err(Error::from(failure).during(format!("submit {}", record.kind))),
    }
}
