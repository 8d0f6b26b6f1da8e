//! `op wait`, and what verbs do that make an operation: submit it, wait for its end, print what came of it.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::progress::Line;
use super::{connect, show};
use crate::cli::op::{Patience, Wait};
use crate::cli::ring::Output;
use crate::command::World;
use crate::command::answer::print;
use crate::command::argument::milliseconds;
use crate::control::operation::{Details, Operation, Outcome, Submission, Submitted, Waited, Waiting, Which, method};
use crate::error::{Context, Error, Kind, Result};
use crate::operation::{self, OperationId, State};

/// How an operation is made, waited for and told of.
#[derive(Debug, Clone, Copy)]
pub(in crate::command) struct How<'a> {
    /// On which nodes; on this one if nothing is said.
    pub on: &'a [String],
    /// How long to wait.
    pub patience: Patience,
    /// How to print.
    pub output: Output,
}

/// An operation that is over, or whose waiter's time is.
#[derive(Debug, Serialize)]
struct Finished {
    #[serde(flatten)]
    operation: Operation,
    results: Vec<Outcome>,
}

pub(super) fn run(world: &World, arguments: Wait) -> Result<u8> {
    let Wait { id, timeout, output } = arguments;
    let finished = wait(world, &id, timeout)?;
    let Finished { operation, .. } = &finished;
    if operation.state == State::Succeeded {
        print(output, &finished, || format!("{id} {}\n", operation.state))?;
        return Ok(0);
    }
    // Who reads JSON finds all of it there.
    if output.json {
        print(output, &finished, String::new)?;
    }
    Err(failure(&finished))
}

/// Has something done, here by a method of the daemon or on other nodes, and prints what came of it: `show` is given what the
/// method answers.
pub(in crate::command) fn change<T: DeserializeOwned>(
    world: &World,
    (kind, method): (operation::Kind, &str),
    parameters: &impl Serialize,
    how: How<'_>,
    show: impl FnOnce(T) -> Result<()>,
) -> Result<()> {
    let mut parameters = serde_json::to_value(parameters).context(|| format!("call {method}"))?;
    if !how.on.is_empty() {
        return everywhere(world, kind, parameters, how);
    }
    parameters["no_wait"] = Value::Bool(true);
    let (answer, _) = connect(world)?.call::<Value>(method, &parameters)?;
    let read = |value| serde_json::from_value(value).context(|| format!("read the answer of {method}"));
    let Ok(submitted) = serde_json::from_value::<Submitted>(answer.clone()) else {
        // Another operation was at it, and has done it.
        return show(read(answer)?);
    };
    let Some(finished) = attend(world, &submitted, how)? else { return Ok(()) };
    show(read(only_value(finished)?)?)
}

/// Has an operation with one target done, and prints what came of it: `show` is given the result.
pub(in crate::command) fn submit(
    world: &World,
    submission: &Submission,
    how: How<'_>,
    show: impl FnOnce(Value) -> Result<()>,
) -> Result<()> {
    let (submitted, _) = connect(world)?.call::<Submitted>(method::SUBMIT, submission)?;
    let Some(finished) = attend(world, &submitted, how)? else { return Ok(()) };
    show(only_value(finished)?)
}

/// What came of the only target.
fn only_value(finished: Finished) -> Result<Value> {
    let id = finished.operation.id;
    match finished.results.into_iter().next() {
        Some(Outcome { state: State::Succeeded, value: Some(value), .. }) => Ok(value),
        Some(result) => Err(result.failure()),
        None => Err(Error::new(Kind::Damaged, format!("wait for operation {id}"), "nobody says what came of it")),
    }
}

/// Has the same done on several nodes, and prints what came of each.
pub(in crate::command) fn everywhere(
    world: &World,
    kind: operation::Kind,
    parameters: Value,
    how: How<'_>,
) -> Result<()> {
    let on = Some(how.on.to_vec());
    let submission = Submission { kind, on, targets: None, parameters: Some(parameters), key: None, deadline_ms: None };
    let (submitted, _) = connect(world)?.call::<Submitted>(method::SUBMIT, &submission)?;
    let Some(finished) = attend(world, &submitted, how)? else { return Ok(()) };
    let text = || finished.results.iter().map(|result| format!("{}\n", show::describe(result))).collect();
    print(how.output, &finished.results, text)?;
    if finished.operation.state == State::Succeeded { Ok(()) } else { Err(failure(&finished)) }
}

/// Waits, or prints the id for somebody else to do it.
fn attend(world: &World, submitted: &Submitted, how: How<'_>) -> Result<Option<Finished>> {
    let id = submitted.operation;
    if how.patience.no_wait {
        return print(how.output, submitted, || format!("{id}\n")).map(|()| None);
    }
    wait(world, &id, how.patience.timeout).map(Some)
}

/// Waits for the end of an operation.
///
/// # Errors
/// [`Kind::Busy`] when the time is over before; the operation goes on, also without the daemon's answer.
fn wait(world: &World, id: &OperationId, timeout: Option<Duration>) -> Result<Finished> {
    let begun = Instant::now();
    let operation = || format!("wait for operation {id}");
    let later = format!("it goes on: 'regen op wait {id}' tells what came of it");
    let found = loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
        match attempt(world, id, left) {
            Ok(found) => break found,
            // A daemon that executes itself anew has let us go, and answers who comes again.
            Err(error) if error.kind() == Kind::System => match connect(world) {
                Ok(_) => {}
                Err(_) => {
                    let next = format!("once 'regen serve' runs again, 'regen op wait {id}' tells what came of it");
                    return Err(error.during(operation()).next(next));
                }
            },
            Err(error) => return Err(error),
        }
    };
    if !found.operation.state.is_final() {
        let seconds = timeout.unwrap_or_default().as_secs_f64();
        let cause = format!("it is {} after {seconds} s", found.operation.state);
        return Err(Error::new(Kind::Busy, operation(), cause).next(later));
    }
    Ok(found)
}

fn attempt(world: &World, id: &OperationId, timeout: Option<Duration>) -> Result<Finished> {
    let line = Line::new();
    let waiting = Waiting { id: *id, timeout_ms: timeout.map(milliseconds) };
    let mut last = None;
    let mut client = connect(world)?;
    client.stream(method::WAIT, &waiting, |waited: Waited| {
        if let Some(progress) = &waited.progress {
            line.show(progress);
        }
        last = waited.operation.map(|operation| (operation, waited.results));
        Ok(())
    })?;
    drop(line);
    let (operation, results) = last.ok_or_else(|| {
        Error::new(Kind::Damaged, format!("call {}", method::WAIT), "the daemon does not say how the operation is")
    })?;
    let results = match results {
        Some(results) => results,
        None => {
            let mut all = Vec::new();
            client.stream(method::SHOW, &Which { id: *id }, |details: Details| {
                all.extend(details.results);
                Ok(())
            })?;
            all
        }
    };
    Ok(Finished { operation, results })
}

/// Why an operation did not succeed: what its only target says, or the first of many.
fn failure(finished: &Finished) -> Error {
    let Finished { operation, results } = finished;
    let bad = results.iter().filter(|result| result.state != State::Succeeded).collect::<Vec<_>>();
    match bad[..] {
        [one] if operation.total == 1 => one.failure(),
        [] => {
            let cause = operation.error.clone().unwrap_or_else(|| format!("it is {}", operation.state));
            Error::new(Kind::State, format!("operation {}", operation.id), cause)
        }
        [first, ..] => {
            let cause = format!(
                "{} of {} targets did not succeed; the first: {}",
                bad.len(),
                operation.total,
                show::describe(first)
            );
            Error::new(Kind::State, format!("operation {}", operation.id), cause)
                .next(format!("see 'regen op show {}'", operation.id))
        }
    }
}
