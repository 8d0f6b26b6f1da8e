//! `op ls`: operations, newest first.

use super::ask;
use crate::cli::op::Ls;
use crate::command::World;
use crate::command::answer::print;
use crate::command::table::{local, table};
use crate::control::operation::{List, Operation, Question, method};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Ls) -> Result<()> {
    let Ls { state, kind, limit, output } = arguments;
    let List { operations } = ask(world, method::LIST, &Question { state, kind, limit: Some(limit) })?;
    print(output, &operations, || text(&operations))
}

fn text(operations: &[Operation]) -> String {
    let head = ["OPERATION", "KIND", "STATE", "TARGETS", "DONE", "REQUESTER", "CREATED", "TOOK"].map(str::to_owned);
    let row = |operation: &Operation| {
        [
            operation.id.to_string(),
            operation.kind.to_string(),
            operation.state.to_string(),
            targets(operation),
            format!("{}/{}", done(operation), operation.total),
            operation.requester.clone(),
            local(operation.created),
            took(operation).unwrap_or_else(|| "-".to_owned()),
        ]
    };
    table(&std::iter::once(head).chain(operations.iter().map(row)).collect::<Vec<_>>())
}

/// One target is named, more are counted.
fn targets(operation: &Operation) -> String {
    match (&operation.targets[..], operation.total) {
        ([one], 1) => one.clone(),
        (_, 1) => "1 target".to_owned(),
        (_, total) => format!("{total} targets"),
    }
}

/// How many targets are over.
pub(super) fn done(operation: &Operation) -> usize {
    operation.succeeded + operation.failed + operation.cancelled + operation.unknown
}

/// From when it was begun to its end.
pub(super) fn took(operation: &Operation) -> Option<String> {
    let time = (operation.ended? - operation.started?).to_std().ok()?;
    Some(if time.as_secs() >= 60 {
        format!("{}m{:02}s", time.as_secs() / 60, time.as_secs() % 60)
    } else {
        format!("{:.3}s", time.as_secs_f64())
    })
}
