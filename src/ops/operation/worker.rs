//! The threads that carry tasks out: as many as there is work for, up to a bound, and none when there was none for a while.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::active::Active;
use super::core::{Core, Work};
use super::executor::{Afterwards, Executor, Settled, Task, lost};
use super::queue::Turn;
use crate::error::{Error, Result};
use crate::operation::queue::Door;
use crate::operation::{Outcome, State, retry};

/// Enough for what executors do, and only what is used of it takes memory.
const STACK: usize = 1 << 20;
/// How long a thread without work stays.
const LINGER: Duration = Duration::from_secs(1);

/// What an attempt led to.
enum Attempt {
    End(Outcome),
    /// After so long; and whether it may have been done nevertheless.
    Later(Duration, Afterwards),
}

/// Has somebody look for work: one who is there, else a new thread if there may be one more. Whoever finds some calls the next.
pub(super) fn call(core: &Arc<Core>, work: &mut Work) {
    if !work.queue.is_ready() && work.queue.due().is_none() {
        return;
    }
    if work.idle > 0 {
        core.bell.notify_one();
        return;
    }
    if work.threads >= core.limits.workers {
        return;
    }
    work.threads += 1;
    let ours = Arc::clone(core);
    let thread = std::thread::Builder::new().name("worker".to_owned()).stack_size(STACK);
    if let Err(error) = thread.spawn(move || serve(&ours)) {
        // Whoever is at work, or the tender, does it.
        work.threads -= 1;
        tracing::error!("start a thread: {error}");
    }
}

fn serve(core: &Arc<Core>) {
    let mut work = core.work();
    loop {
        let now = Instant::now();
        let closed = work.load.door == Door::Closed;
        if let Some(turn) = (!closed).then(|| work.queue.next(now)).flatten() {
            if work.queue.is_ready() {
                call(core, &mut work);
            }
            drop(work);
            let node = turn.active.record.targets[turn.index].node.clone();
            take_turn(core, turn);
            work = core.work();
            work.queue.done(&node);
            continue;
        }
        let due = work.queue.due();
        let limit = due.map_or(LINGER, |due| due.saturating_duration_since(now).min(LINGER));
        work.idle += 1;
        let (woken, timeout) = core.bell.wait_timeout(work, limit).unwrap_or_else(PoisonError::into_inner);
        work = woken;
        work.idle -= 1;
        // Somebody has to be there for what is tried again later.
        let needed = work.queue.due().is_some() && work.idle == 0;
        if closed || (timeout.timed_out() && !work.queue.is_ready() && !needed) {
            work.threads -= 1;
            return;
        }
    }
}

fn take_turn(core: &Arc<Core>, turn: Turn) {
    let Turn { active, index, attempts, before } = turn;
    let is_late = active.deadline.is_some_and(|deadline| deadline <= Instant::now());
    if is_late {
        let now = active.give_up((State::Cancelled, "its deadline was over before this was begun"), None);
        return core.end_if(&active, now);
    }
    if active.barred.is_none() && !core.lease.holds(active.lease, &*core.clock) {
        return core.lose(&active);
    }
    if !active.begin(index, core.clock.wall()) {
        return;
    }
    let Some(task) = active.task(index, &core.fence) else { return };
    match attempt(core, (&active, index), &task, (attempts + 1, before)) {
        Attempt::End(outcome) => {
            if let Some(error) = &outcome.error {
                tracing::warn!(operation = %task.operation, target = %task.target, "{}: {error}", outcome.state);
            }
            let now = active.finish(index, outcome);
            core.end_if(&active, now);
        }
        Attempt::Later(wait, before) => {
            if active.postpone(index) {
                let mut work = core.work();
                let turn = Turn { active, index, attempts: attempts + 1, before };
                work.queue.delay(turn, Instant::now() + wait);
            } else {
                let state = match before {
                    Afterwards::NotDone => State::Cancelled,
                    Afterwards::Unknown => State::Unknown,
                };
                let outcome = Outcome::because(state, "it was given up before it was tried again");
                let now = active.finish(index, outcome);
                core.end_if(&active, now);
            }
        }
    }
}

fn attempt(
    core: &Arc<Core>,
    (active, index): (&Arc<Active>, usize),
    task: &Task,
    (attempts, before): (u32, Afterwards),
) -> Attempt {
    let (operation, target) = (task.operation, &task.target);
    let span = tracing::info_span!(parent: &active.asked, "task", %operation, kind = %task.kind, %target);
    let _within = span.enter();
    let mut tell = |step: Value| {
        active.tell(Some(index), &step);
        core.watchers.tell(|| active.progress(Some(index), &step));
    };
    let executor = match core.executors.find(&core.node, task) {
        Ok(executor) => executor,
        Err(error) => return failed(core, active, &error, (attempts, before)),
    };
    let past = if attempts == 1 { settle(core, &*executor, active, task) } else { Ok(Settled::Repeat) };
    let done = match past {
        Ok(Settled::Succeeded(value)) => Ok(value),
        Ok(Settled::Failed(error)) | Err(error) => Err(error),
        Ok(Settled::Unknown) => return Attempt::End(Outcome::failed(State::Unknown, &lost(task))),
        Ok(Settled::Repeat) => match &active.barred {
            Some(reason) => Err(Error::new(crate::error::Kind::State, "take it up again", reason.clone())),
            None => executor.execute(task, &mut tell),
        },
    };
    match done {
        Ok(value) => Attempt::End(Outcome::succeeded(value)),
        Err(error) => {
            let after = if before == Afterwards::NotDone { executor.afterwards(task, &error) } else { before };
            failed(core, active, &error, (attempts, after))
        }
    }
}

/// What a failure leads to: another attempt, or the end.
fn failed(core: &Core, active: &Active, error: &Error, (attempts, after): (u32, Afterwards)) -> Attempt {
    let cancelled = active.cancel.is_asked();
    let wait = retry::wait(active.record.kind, error, attempts, core.chance()).filter(|_| !cancelled);
    if let Some(wait) = wait {
        return Attempt::Later(wait, after);
    }
    let state = match after {
        Afterwards::Unknown => State::Unknown,
        Afterwards::NotDone if cancelled => State::Cancelled,
        Afterwards::NotDone => State::Failed,
    };
    Attempt::End(Outcome::failed(state, error))
}

/// What the daemon before has done about it, if there was one.
fn settle(core: &Core, executor: &dyn Executor, active: &Active, task: &Task) -> Result<Settled> {
    let Some(before) = &active.before else { return Ok(Settled::Repeat) };
    let task = Task { token: before.clone(), ..task.clone() };
    // What did not pass the fence was not begun. Of other nodes only they know.
    if task.target.node == core.node && !task.has_passed()? {
        return Ok(Settled::Repeat);
    }
    Ok(executor.settle(&task))
}
