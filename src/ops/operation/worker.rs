//! The threads that carry tasks out: as many as there is work for, up to a bound, and none when there was none for a while.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::active::Active;
use super::core::{Core, Work};
use super::executor::{Lead, Past, Task};
use crate::error::Error;
use crate::operation::course::{Afterwards, Failed, Next};
use crate::operation::lane::Turn;
use crate::operation::queue::Door;
use crate::operation::{Outcome, State};

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

fn take_turn(core: &Arc<Core>, turn: Turn<Active>) {
    let Turn { active, index, attempts } = turn;
    let is_late = active.deadline.is_some_and(|deadline| deadline <= Instant::now());
    if is_late {
        let now = active.give_up((State::Cancelled, "its deadline was over before this was begun"), None);
        return core.end_if(&active, now);
    }
    if active.barred.is_none() && !core.lease.holds(active.lease, &*core.clock) {
        return core.lose(&active);
    }
    let Some(before) = active.begin(index, core.clock.wall()) else { return };
    let Some(task) = active.task(index, &core.fence) else { return };
    match attempt(core, (&active, index), &task, (attempts + 1, before)) {
        Attempt::End(outcome) => {
            if let Some(error) = &outcome.error {
                tracing::warn!(operation = %task.operation, target = %task.target, "{}: {error}", outcome.state);
            }
            let now = active.finish(index, outcome);
            core.end_if(&active, now);
        }
        Attempt::Later(wait, after) => match active.postpone(index, after) {
            Some(now) => core.end_if(&active, now),
            None => {
                let turn = Turn { active, index, attempts: attempts + 1 };
                core.work().queue.delay(turn, Instant::now() + wait);
            }
        },
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
    // Of what may have been begun here the executor knows what came of it. Of other nodes only they know.
    let here = task.target.node == core.node;
    let past = if here && attempts == 1 { Past::of(&*executor, task, before) } else { Past::Open(before) };
    let before = match past.lead(task, active.barred.as_deref()) {
        Lead::Execute(before) => before,
        Lead::End(outcome) => return Attempt::End(outcome),
        Lead::Fail(error, after) => return failed(core, active, &error, (attempts, after)),
    };
    match executor.execute(task, &mut tell) {
        Ok(value) => Attempt::End(Outcome::succeeded(value)),
        Err(error) => {
            let after = before.or(executor.afterwards(task, &error));
            failed(core, active, &error, (attempts, after))
        }
    }
}

/// What a failure leads to: another attempt, or the end.
fn failed(core: &Core, active: &Active, error: &Error, (attempts, after): (u32, Afterwards)) -> Attempt {
    let failed = Failed { error, attempts, after, is_cancelled: active.cancel.is_asked() };
    match failed.next(active.record.kind, core.chance()) {
        Next::Again(wait) => Attempt::Later(wait, after),
        Next::End(state) => Attempt::End(Outcome::failed(state, error)),
    }
}
