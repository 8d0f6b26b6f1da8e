//! `op show`: all that is known of one.

use std::collections::BTreeMap;

use super::{connect, ls};
use crate::cli::op::Show;
use crate::command::World;
use crate::command::answer::print;
use crate::command::table::local;
use crate::control::operation::{Details, Operation, Outcome, Which, method};
use crate::error::{Error, Kind, Result};
use crate::operation::State;

/// So many results are shown to people one by one.
const LINES: usize = 20;

pub(super) fn run(world: &World, arguments: Show) -> Result<()> {
    let Show { id, output } = arguments;
    let (mut found, mut all) = (None, Vec::new());
    connect(world)?.stream(method::SHOW, &Which { id }, |details: Details| {
        found = found.take().or(details.operation);
        all.extend(details.results);
        Ok(())
    })?;
    let operation: Operation = found.ok_or_else(|| {
        Error::new(Kind::Damaged, format!("call {}", method::SHOW), "the daemon does not say how the operation is")
    })?;
    let value = Whole { operation: &operation, results: &all };
    print(output, &value, || text(&operation, &all))
}

/// As `--json` has it.
#[derive(Debug, serde::Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    operation: &'a Operation,
    results: &'a [Outcome],
}

pub(super) fn text(operation: &Operation, results: &[Outcome]) -> String {
    let mut lines = vec![
        ("operation", operation.id.to_string()),
        ("kind", operation.kind.to_string()),
        ("state", operation.state.to_string()),
        ("node", operation.node.to_string()),
        ("requester", operation.requester.clone()),
        ("created", local(operation.created)),
    ];
    lines.extend(operation.started.map(|time| ("started", local(time))));
    lines.extend(operation.ended.map(|time| ("ended", local(time))));
    lines.extend(ls::took(operation).map(|time| ("took", time)));
    lines.push(("targets", counts(operation)));
    lines.extend(operation.error.clone().map(|error| ("error", error)));
    lines.extend(operation.key.clone().map(|key| ("key", key)));
    lines.extend(results.iter().take(LINES).map(|result| ("result", describe(result))));
    if results.len() > LINES {
        lines.extend(summary(&results[LINES..]).into_iter().map(|line| ("…", line)));
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    lines.iter().map(|(name, text)| format!("{name:<width$}  {text}\n")).collect()
}

fn counts(operation: &Operation) -> String {
    let ended = [
        (operation.succeeded, "succeeded"),
        (operation.failed, "failed"),
        (operation.cancelled, "cancelled"),
        (operation.unknown, "unknown"),
    ];
    let ended: Vec<_> =
        ended.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if ended.is_empty() { operation.total.to_string() } else { format!("{}: {}", operation.total, ended.join(", ")) }
}

/// A line for what came of a target.
pub(super) fn describe(result: &Outcome) -> String {
    let Outcome { target, state, error, .. } = result;
    match error {
        Some(error) => format!("{target} {state}: {error}"),
        None => format!("{target} {state}"),
    }
}

/// How many of the rest ended how.
fn summary(rest: &[Outcome]) -> Vec<String> {
    let mut counts: BTreeMap<State, usize> = BTreeMap::new();
    for result in rest {
        *counts.entry(result.state).or_default() += 1;
    }
    counts.into_iter().map(|(state, count)| format!("and {count} more {state}")).collect()
}
