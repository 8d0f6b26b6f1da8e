//! What is written down of an operation.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::target::Runs;
use super::{Kind, OperationId, State, Target, dense};
use crate::error::{Context, Error, Kind as Fault, Result};
use crate::ids::NodeName;
use crate::registry::Entry;

/// Of so many targets at most the head has them; those of more are a value of their own, so that heads stay small.
pub const FEW: usize = 16;

/// How many targets are in which state. Those that are missing from the total are queued or running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// All of them.
    pub total: usize,
    /// Done.
    #[serde(default)]
    pub succeeded: usize,
    /// Not done.
    #[serde(default)]
    pub failed: usize,
    /// Not begun, or given up.
    #[serde(default)]
    pub cancelled: usize,
    /// Done or not, nobody knows.
    #[serde(default)]
    pub unknown: usize,
}

/// What came of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// A final state.
    #[serde(default = "succeeded", skip_serializing_if = "is_succeeded")]
    pub state: State,
    /// What it led to, as the interface's method would have answered.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub value: Value,
    /// Why it is not done: one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What sort of failure that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// The end of that line, if it says what can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What is written down of an operation: `operation/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: OperationId,
    /// What it does.
    pub kind: Kind,
    /// Where it is in its life.
    pub state: State,
    /// The node whose daemon carries it out.
    pub node: NodeName,
    /// Who asked for it.
    pub requester: String,
    /// When.
    pub created: DateTime<Utc>,
    /// When the first target was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<DateTime<Utc>>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<DateTime<Utc>>,
    /// How far it is.
    #[serde(flatten)]
    pub counts: Counts,
    /// Why it did not succeed, where that is one reason for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How long it may take, from when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The first of its tokens, if it lost that and took another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Its token; without one it is the revision that made this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Into how many values its results are divided.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub chunks: u32,
    /// What the interface's method would have been asked.
    #[serde(default)]
    pub parameters: Value,
    /// What it is about, if that is little; [`Record::targets`] has all of it once it was read whole.
    #[serde(default, with = "runs", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// What came of each target, once it is over and was read whole.
    #[serde(skip)]
    pub results: Vec<Outcome>,
}

/// The keys of the registry.
pub mod key {
    use super::{NodeName, OperationId};

    /// What keys of operations begin with.
    pub const OPERATION: &str = "operation/";

    /// The head.
    #[must_use]
    pub fn head(id: &OperationId) -> String {
        format!("{OPERATION}{id}")
    }

    /// The targets of an operation that has many.
    #[must_use]
    pub fn targets(id: &OperationId) -> String {
        format!("{OPERATION}{id}/targets")
    }

    /// A piece of the results.
    #[must_use]
    pub fn results(id: &OperationId, chunk: u32) -> String {
        format!("{OPERATION}{id}/results/{chunk:04}")
    }

    /// An idempotency key.
    #[must_use]
    pub fn idempotency(key: &str) -> String {
        format!("operation-key/{key}")
    }

    /// What keys of unfinished operations begin with.
    pub const ACTIVE: &str = "active/";

    /// What keys of unfinished operations of a node begin with.
    #[must_use]
    pub fn active_of(node: &NodeName) -> String {
        format!("active/{node}/")
    }

    /// That an operation is not at its end.
    #[must_use]
    pub fn active(node: &NodeName, id: &OperationId) -> String {
        format!("active/{node}/{id}")
    }
}

impl Counts {
    /// How many are at their end.
    #[must_use]
    pub fn done(&self) -> usize {
        self.succeeded + self.failed + self.cancelled + self.unknown
    }

    /// One more is at its end. A state that is none is not counted.
    pub fn add(&mut self, state: State) {
        match state {
            State::Queued | State::Running => {}
            State::Succeeded => self.succeeded += 1,
            State::Failed => self.failed += 1,
            State::Cancelled => self.cancelled += 1,
            State::Unknown => self.unknown += 1,
        }
    }

    /// How an operation ended whose targets ended so: what is worst about them.
    #[must_use]
    pub fn verdict(&self) -> State {
        match self {
            Self { unknown: 1.., .. } => State::Unknown,
            Self { failed: 1.., .. } => State::Failed,
            Self { cancelled: 1.., .. } => State::Cancelled,
            Self { .. } => State::Succeeded,
        }
    }
}

impl Outcome {
    /// Done.
    #[must_use]
    pub fn succeeded(value: Value) -> Self {
        Self { value, ..Self::in_state(State::Succeeded) }
    }

    /// Not done, or nobody knows.
    #[must_use]
    pub fn because(state: State, error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::in_state(state) }
    }

    /// Not done, or nobody knows, because of an error.
    #[must_use]
    pub fn failed(state: State, error: &Error) -> Self {
        let next = error.next_step().map(str::to_owned);
        Self { fault: Some(error.kind()), next, ..Self::because(state, error.to_string()) }
    }

    /// Nothing is known of it but this.
    #[must_use]
    pub fn in_state(state: State) -> Self {
        Self { state, value: Value::Null, error: None, fault: None, next: None }
    }

    /// The error that it failed with, for whoever would have been told if they had done it themselves.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        let line = self.error.as_deref()?;
        let said = self.next.as_deref().and_then(|next| line.strip_suffix(next)?.strip_suffix(": "));
        let (operation, cause) = said.unwrap_or(line).split_once(": ").unwrap_or(("carry out the operation", line));
        let error = Error::new(self.fault.unwrap_or(Fault::System), operation, cause);
        Some(match (&self.next, said) {
            (Some(next), Some(_)) => error.next(next),
            (Some(_) | None, _) => error,
        })
    }
}

impl Record {
    /// Reads a head.
    ///
    /// # Errors
    /// [`crate::error::Kind::Invalid`] for what is none.
    pub fn read(entry: &Entry) -> Result<Self> {
        serde_json::from_slice(&entry.value).context(|| format!("read '{}'", entry.key))
    }

    /// A head for the registry, with this token and so many pieces of results; without targets if there are many.
    ///
    /// # Errors
    /// None that anybody has seen.
    pub fn write(&self, token: Option<u64>, chunks: u32) -> Result<Vec<u8>> {
        let targets = if self.targets.len() <= FEW { self.targets.clone() } else { Vec::new() };
        let head = Self { token, chunks, targets, parameters: self.parameters.clone(), ..self.head() };
        serde_json::to_vec(&head).context(|| format!("write down operation {}", self.id))
    }

    /// All but what may be large.
    #[must_use]
    pub fn head(&self) -> Self {
        Self {
            id: self.id,
            kind: self.kind,
            state: self.state,
            node: self.node.clone(),
            requester: self.requester.clone(),
            created: self.created,
            started: self.started,
            ended: self.ended,
            counts: self.counts,
            error: self.error.clone(),
            key: self.key.clone(),
            deadline_ms: self.deadline_ms,
            since: self.since,
            token: self.token,
            chunks: self.chunks,
            parameters: Value::Null,
            targets: Vec::new(),
            results: Vec::new(),
        }
    }

    /// The targets as a value of their own, if they are not in the head.
    ///
    /// # Errors
    /// None that anybody has seen.
    pub fn write_targets(&self) -> Result<Option<Vec<u8>>> {
        if self.targets.len() <= FEW {
            return Ok(None);
        }
        let runs = Runs::new(self.targets.iter().map(|target| (&target.node, target.subject.as_str())));
        serde_json::to_vec(&runs)
            .map(dense::write)
            .map(Some)
            .context(|| format!("write down the targets of operation {}", self.id))
    }
}

/// Reads what [`Record::write_targets`] wrote.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] for what is nothing like it.
pub fn read_targets(entry: &Entry) -> Result<Vec<Target>> {
    let text = dense::read(&entry.value).context(|| format!("read '{}'", entry.key))?;
    let runs: Runs = serde_json::from_slice(&text).context(|| format!("read '{}'", entry.key))?;
    Ok(runs.into_targets())
}

/// Divides results into values of at most so many bytes of text; a single result may have more.
///
/// # Errors
/// None that anybody has seen.
pub fn write_results(results: &[Outcome], most: usize) -> Result<Vec<Vec<u8>>> {
    let (mut chunks, mut chunk) = (Vec::new(), Vec::new());
    for outcome in results {
        let text = serde_json::to_vec(outcome).context(|| "write down a result")?;
        if !chunk.is_empty() && chunk.len() + text.len() + 2 > most {
            chunk.push(b']');
            chunks.push(dense::write(std::mem::take(&mut chunk)));
        }
        chunk.push(if chunk.is_empty() { b'[' } else { b',' });
        chunk.extend(text);
    }
    if !chunk.is_empty() {
        chunk.push(b']');
        chunks.push(dense::write(chunk));
    }
    Ok(chunks)
}

/// Reads one value of those.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] for what is nothing like it.
pub fn read_results(entry: &Entry) -> Result<Vec<Outcome>> {
    let text = dense::read(&entry.value).context(|| format!("read '{}'", entry.key))?;
    serde_json::from_slice(&text).context(|| format!("read '{}'", entry.key))
}

fn succeeded() -> State {
    State::Succeeded
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_succeeded(state: &State) -> bool {
    *state == State::Succeeded
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

mod runs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Runs, Target};

    pub(super) fn serialize<S: Serializer>(targets: &[Target], serializer: S) -> Result<S::Ok, S::Error> {
        Runs::new(targets.iter().map(|target| (&target.node, target.subject.as_str()))).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Target>, D::Error> {
        Runs::deserialize(deserializer).map(Runs::into_targets)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(targets: usize) -> Record {
        Record {
            id: OperationId::new(1, [7; 16]),
            kind: Kind::Probe,
            state: State::Queued,
            node: "n".parse().unwrap(),
            requester: "root".to_owned(),
            created: DateTime::UNIX_EPOCH,
            started: None,
            ended: None,
            counts: Counts { total: targets, ..Counts::default() },
            error: None,
            key: None,
            deadline_ms: Some(7),
            since: None,
            token: None,
            chunks: 0,
            parameters: json!({"delay_ms": 1}),
            targets: (0..targets).map(|number| format!("n:probe/{number}").parse().unwrap()).collect(),
            results: Vec::new(),
        }
    }

    fn entry(value: Vec<u8>) -> Entry {
        Entry { key: "operation/x".to_owned(), value, created: 1, modified: 1 }
    }

    #[test]
    fn a_head_is_small_whatever_the_number_of_targets() {
        let (few, many) = (record(FEW), record(10_000));
        assert_eq!(Record::read(&entry(few.write(None, 0).unwrap())).unwrap(), few);
        assert_eq!(few.write_targets().unwrap(), None);
        let head = many.write(None, 0).unwrap();
        assert!(head.len() < 1000, "{} bytes", head.len());
        assert_eq!(Record::read(&entry(head)).unwrap().counts.total, 10_000);
        let targets = many.write_targets().unwrap().unwrap();
        assert!(targets.len() < 200_000, "{} bytes", targets.len());
        assert_eq!(read_targets(&entry(targets)).unwrap(), many.targets);
    }

    #[test]
    fn results_are_divided_and_nothing_is_lost() {
        let mut results: Vec<_> = (0..100).map(|number| Outcome::succeeded(json!({"token": number}))).collect();
        results.push(Outcome::because(State::Failed, "x".repeat(2000)));
        results.push(Outcome::succeeded(Value::Null));
        let chunks = write_results(&results, 1000).unwrap();
        assert!(chunks.len() > 3 && chunks.iter().filter(|chunk| chunk.len() > 1000).count() == 1);
        let read: Vec<_> = chunks.into_iter().flat_map(|chunk| read_results(&entry(chunk)).unwrap()).collect();
        assert_eq!(read, results);
        assert!(write_results(&[], 1000).unwrap().is_empty());
    }

    #[test]
    fn an_error_is_told_as_it_was() {
        let error = Error::new(Fault::Busy, "restart service 'web'", "an upgrade: runs").next("wait: for it");
        let outcome: Outcome = serde_json::from_value(json!(Outcome::failed(State::Failed, &error))).unwrap();
        let again = outcome.failure().unwrap();
        assert_eq!((again.kind(), again.to_string()), (error.kind(), error.to_string()));
        assert_eq!((again.next_step(), again.without_next_step()), (error.next_step(), error.without_next_step()));
        assert_eq!(Outcome::because(State::Failed, "no").failure().unwrap().to_string(), "carry out the operation: no");
        assert!(Outcome::succeeded(Value::Null).failure().is_none());
    }

    #[test]
    fn the_worst_of_its_targets_is_how_an_operation_ended() {
        let mut counts = Counts { total: 4, ..Counts::default() };
        assert_eq!(counts.verdict(), State::Succeeded);
        for state in [State::Succeeded, State::Cancelled, State::Failed, State::Unknown] {
            counts.add(state);
            assert_eq!(counts.verdict(), state);
        }
        assert_eq!(counts.done(), counts.total);
    }
}
