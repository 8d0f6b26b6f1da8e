//! The daemon's side of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use serde_json::json;

use super::abroad;
use super::run::requester;
use super::target::{Here, read, targets_for};
use super::{
    Cancelled, Details, List, News, Operation, Outcome, Progress, Question, Submission, Submitted, Trial, Waited,
    Waiting, Watching, Which,
};
use crate::control::{Access, Answer, Call, Fault, Mode, Nodes, Wake};
use crate::error::Error;
use crate::ids::{Name, NodeName};
use crate::operation::{Kind, OperationId, Record, Target};
use crate::ops::operation::{self, Engine, Filter, Request};

/// How many operations are listed if nothing is said.
const LISTED: u64 = 100;
/// So many bytes of results go into one answer, which has room for four times as much.
const PIECE: usize = 4 << 20;
/// Operations with more targets are told of without results: who waits for them asks for those.
const FEW: usize = 16;
/// So long an end is waited for that is being written down.
const WRITING: Duration = Duration::from_secs(1);

/// More targets than any queue has room for.
const PROBES: usize = 1_000_001;

/// Answers a call.
///
/// # Errors
/// What the caller is told.
pub(super) fn call(engine: &Engine, (owner, nodes): (&Name, &Nodes), call: &Call<'_>) -> Result<Answer, Fault> {
    match call.method() {
        "List" => list(engine, call),
        "Show" => show(engine, call),
        "Submit" => submit(engine, (owner, nodes), call),
        "Wait" => wait(engine, call),
        "Cancel" => {
            let which: Which = call.parameters()?;
            if let Some(node) = engine.elsewhere(&which.id)?.filter(|node| node != engine.node()) {
                return abroad::cancel(nodes, call, &node, &which);
            }
            let record = engine.cancel(&which.id)?;
            Answer::new(&Cancelled { operation: Operation::of(&record, call.peer().access) })
        }
        "Watch" => watch(engine, call),
        "Probe" => probe(engine, call),
        other => Err(Fault::MethodNotFound(other.to_owned())),
    }
}

fn list(engine: &Engine, call: &Call<'_>) -> Result<Answer, Fault> {
    let Question { state, kind, limit } = call.parameters()?;
    let limit = usize::try_from(limit.unwrap_or(LISTED)).unwrap_or(usize::MAX);
    let records = engine.list(Filter { state, kind, limit: Some(limit) })?;
    // What they were asked with would be too much for a list.
    Answer::new(&List { operations: records.iter().map(|record| Operation::of(record, Access::Read)).collect() })
}

/// In pieces that fit into answers; who does not ask for more than one answer gets the first.
fn show(engine: &Engine, call: &Call<'_>) -> Result<Answer, Fault> {
    let Which { id } = call.parameters()?;
    let record = engine.show(&id)?;
    let mut operation = Some(Operation::of(&record, call.peer().access));
    let (mut results, mut size) = (Vec::new(), 0);
    for index in 0..record.targets.len() {
        let outcome = outcome(&record, index);
        let bytes = outcome.value.as_ref().map_or(0, |value| value.to_string().len());
        size += 100 + bytes + outcome.target.len() + outcome.error.as_ref().map_or(0, String::len);
        if size > PIECE && !results.is_empty() {
            let piece = Details { operation: operation.take(), results: std::mem::take(&mut results) };
            match call.mode() {
                Mode::More => call.send(&piece)?,
                Mode::Once | Mode::Oneway => return Answer::new(&piece),
            }
            size = 0;
        }
        results.push(outcome);
    }
    Answer::new(&Details { operation, results })
}

/// What came of a target, or how far the operation is.
fn outcome(record: &Record, index: usize) -> Outcome {
    let target = record.targets.get(index).map(ToString::to_string).unwrap_or_default();
    match record.results.get(index) {
        Some(result) => Outcome {
            target,
            state: result.state,
            value: Some(result.value.clone()).filter(|value| !value.is_null()),
            error: result.error.clone(),
            reason: result.fault.map(|kind| Fault::name_of(kind).to_owned()),
        },
        None => Outcome { target, state: record.state, value: None, error: None, reason: None },
    }
}

fn submit(engine: &Engine, (owner, nodes): (&Name, &Nodes), call: &Call<'_>) -> Result<Answer, Fault> {
    let Submission { kind, on, targets, parameters, key, deadline_ms } = call.parameters()?;
    let parameters = parameters.unwrap_or_else(|| json!({}));
    let (asked, (nodes, _)) = (nodes, nodes.all());
    let here = Here { node: engine.node(), owner, nodes: &nodes };
    let targets = match targets {
        Some(texts) if on.is_none() => texts.iter().map(|text| read(here.node, text)).collect::<Result<_, Error>>()?,
        Some(_) => {
            let message = "targets name their nodes: 'on' is for what the parameters name".to_owned();
            return Err(Fault::InvalidParameter { parameter: "on".to_owned(), message });
        }
        None => targets_for(&here, &on.unwrap_or_default(), kind, &parameters)?,
    };
    asked.check_reach(&targets)?;
    let deadline = deadline_ms.map(Duration::from_millis);
    let request = Request { kind, targets, parameters, requester: requester(call.peer()), key, deadline };
    Answer::new(&Submitted { operation: engine.submit(request)?.id })
}

fn probe(engine: &Engine, call: &Call<'_>) -> Result<Answer, Fault> {
    let Trial { targets, delay_ms } = call.parameters()?;
    let request = Request {
        kind: Kind::Probe,
        targets: probes(engine.node(), targets.unwrap_or(1)),
        parameters: json!({"delay_ms": delay_ms.unwrap_or(0)}),
        requester: requester(call.peer()),
        key: None,
        deadline: None,
    };
    Answer::new(&Submitted { operation: engine.submit(request)?.id })
}

/// Things that nobody else has: numbers from the microseconds since 1970 on.
fn probes(node: &NodeName, count: usize) -> Vec<Target> {
    static NEXT: OnceLock<AtomicU64> = OnceLock::new();
    let first = || AtomicU64::new(u64::try_from(Utc::now().timestamp_micros()).unwrap_or(0));
    let count = u64::try_from(count.min(PROBES)).unwrap_or(0);
    let first = NEXT.get_or_init(first).fetch_add(count, Ordering::Relaxed);
    let subjects = (first..first + count).map(|number| format!("probe/{number}"));
    subjects.map(|subject| Target { node: node.clone(), subject }).collect()
}

fn wait(engine: &Engine, call: &Call<'_>) -> Result<Answer, Fault> {
    let Waiting { id, timeout_ms } = call.parameters()?;
    let deadline = timeout_ms.and_then(|timeout| Instant::now().checked_add(Duration::from_millis(timeout)));
    if engine.elsewhere(&id)?.is_some() {
        let tell = |record: &Record| {
            call.send(&Waited { operation: None, progress: Some(abroad::progress(record)), results: None })
        };
        abroad::attend(engine, call, &id, deadline, &tell)?;
    } else {
        attend(engine, call, &id, deadline)?;
    }
    let mut record = engine.show(&id)?;
    if record.counts.done() == record.counts.total {
        record.state = record.counts.verdict();
    }
    let few = record.state.is_final() && record.counts.total <= FEW;
    let results = few.then(|| (0..record.targets.len()).map(|index| outcome(&record, index)).collect());
    Answer::new(&Waited { operation: Some(Operation::of(&record, call.peer().access)), progress: None, results })
}

/// Waits for the end of one that this node has, or that is over, and tells how far it is.
fn attend(engine: &Engine, call: &Call<'_>, id: &OperationId, deadline: Option<Instant>) -> Result<(), Fault> {
    let subscription = engine.follow(id)?;
    let targets = engine.show(id)?.targets;
    loop {
        let news = subscription.take();
        let over = news.iter().any(operation::Progress::is_over);
        for progress in worth_telling(&news) {
            let progress = Some(Progress::of(progress, &targets));
            call.send(&Waited { operation: None, progress, results: None })?;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if over {
            // It may just be written down: what is asked next is not to be told that it still runs.
            engine.wait(id, Some(WRITING))?;
            return Ok(());
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        match call.wait(subscription.bell(), left)? {
            Wake::Ready | Wake::TimedOut => {}
        }
    }
}

/// Until it is over, or the caller or the daemon goes. A caller who reads slowly is told the newest of each kind of news.
fn watch(engine: &Engine, call: &Call<'_>) -> Result<Answer, Fault> {
    call.expect_more()?;
    let Watching { id } = call.parameters()?;
    if let Some(id) = id
        && engine.elsewhere(&id)?.is_some()
    {
        return abroad::watch(engine, call, &id);
    }
    let subscription = match &id {
        Some(id) => engine.follow(id)?,
        None => engine.follow_all()?,
    };
    // What is collected meanwhile is not told of.
    let head = |id: &OperationId| -> Option<Operation> {
        engine.show(id).ok().map(|record| Operation::of(&record.head(), Access::Read))
    };
    if let Some(id) = &id {
        let news = News { id: *id, operation: head(id), progress: None };
        if news.operation.as_ref().is_some_and(|operation| operation.state.is_final()) {
            return Answer::new(&news);
        }
        call.send(&news)?;
    }
    loop {
        let told = subscription.take();
        for progress in worth_telling(&told) {
            let (of, over) = (progress.operation, progress.state.is_final());
            let news = if over {
                News { id: of, operation: head(&of), progress: None }
            } else {
                News { id: of, operation: None, progress: Some(Progress::of(progress, &[])) }
            };
            if over && id.is_some() {
                return Answer::new(&news);
            }
            call.send(&news)?;
        }
        call.wait(subscription.bell(), None)?;
    }
}

/// Of several that only count, the last of each operation says all.
fn worth_telling(news: &[operation::Progress]) -> impl Iterator<Item = &operation::Progress> {
    news.iter().enumerate().filter_map(|(index, progress)| {
        let same = |later: &&operation::Progress| later.operation == progress.operation;
        let says_more = !progress.step.is_null() || progress.state.is_final();
        (says_more || !news[index + 1..].iter().any(|later| same(&later))).then_some(progress)
    })
}

impl Progress {
    fn of(progress: &operation::Progress, targets: &[Target]) -> Self {
        Self {
            target: progress.target.and_then(|index| targets.get(index)).map(ToString::to_string),
            step: Some(progress.step.clone()).filter(|step| !step.is_null()),
            done: progress.done,
            total: progress.total,
        }
    }
}
