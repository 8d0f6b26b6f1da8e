//! Operations that other nodes have: waited for by what the registry tells of them, and cancelled by the node that has them.

use std::time::{Duration, Instant};

use super::{Cancelled, News, Operation, Progress, Which};
use crate::control::{Answer, Call, Fault, Nodes, Origin};
use crate::error::{Error, Kind as Reason};
use crate::ids::NodeName;
use crate::operation::{OperationId, Record};
use crate::ops::operation::Engine;

/// It is looked at anew after so long at the latest.
const LOOK: Duration = Duration::from_secs(60);
/// While the registry is away, so often.
const AWAY: Duration = Duration::from_secs(1);

/// Waits until an operation is at its end or the time is over, and tells meanwhile how it is. A registry that goes away is
/// waited for, too.
///
/// # Errors
/// If there is no such operation, or the registry is away at first; those of waiting.
pub(super) fn attend(
    engine: &Engine,
    call: &Call<'_>,
    id: &OperationId,
    deadline: Option<Instant>,
    tell: &dyn Fn(&Record) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut looked = engine.look(id);
    if let Err(error) = looked {
        return Err(error.into());
    }
    let mut last = None;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        let within = |limit: Duration| Some(left.map_or(limit, |left| left.min(limit)));
        match &looked {
            Ok((record, watch)) => {
                if record.state.is_final() {
                    return Ok(());
                }
                let now = (record.state, record.counts.done());
                if last.replace(now) != Some(now) {
                    tell(record)?;
                }
                let _ = call.wait(watch.bell(), within(LOOK))?;
            }
            Err(error) if error.kind() == Reason::NotFound => return Err(error.clone().into()),
            Err(_) => call.sleep(within(AWAY))?,
        }
        looked = engine.look(id);
    }
}

/// Has the node that has an operation cancel it.
///
/// # Errors
/// [`Reason::State`] if it cannot be reached; what it answers.
pub(super) fn cancel(nodes: &Nodes, call: &Call<'_>, node: &NodeName, which: &Which) -> Result<Answer, Fault> {
    if let Origin::Node(_) = call.peer().origin {
        // It was here a moment ago.
        let cause = format!("node '{node}' has it");
        return Err(Error::new(Reason::State, format!("cancel operation {}", which.id), cause).into());
    }
    let cancelled: Cancelled = nodes.cancel_on(node, which)?;
    Answer::new(&cancelled)
}

/// What is told of one while it goes on.
pub(super) fn progress(record: &Record) -> Progress {
    Progress { target: None, step: None, done: record.counts.done(), total: record.counts.total }
}

/// Tells of an operation until its end.
///
/// # Errors
/// As [`attend`].
pub(super) fn watch(engine: &Engine, call: &Call<'_>, id: &OperationId) -> Result<Answer, Fault> {
    let news = |record: &Record| News {
        id: *id,
        operation: Some(Operation::of(&record.head(), crate::control::Access::Read)),
        progress: None,
    };
    attend(engine, call, id, None, &|record| call.send(&news(record)))?;
    Answer::new(&news(&engine.show(id)?))
}
