//! The threads of a daemon: each carries a target out, here or by asking its node, until it is at its end.

use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use regen::error::{Context, Error, Kind as Fault};
use regen::operation::course::{Afterwards, Failed, Next, Now};
use regen::operation::lane::Turn;
use regen::operation::{Clock, OperationId, Outcome};
use regen::ops::operation::executor::{Executor, Lead, Past};
use regen::ops::operation::{Limits, Task};

use crate::daemon::{Active, Daemon, Job};
use crate::event::{Ask, Event, Life, Message, Reply};
use crate::host::Worker;
use crate::request::number;
use crate::simulation::Simulation;

/// How long an answer is waited for, how long somebody who does not answer is asked again, and after which pause: as daemons do
/// (`control::remote`, `control::node`).
const ANSWER: u64 = 30_000;
const PATIENCE: u64 = 40_000;
const PAUSE: u64 = 500;
/// How long nobody takes a connection before that is given up.
const CONNECT: u64 = 3000;

/// What a thread is at.
#[derive(Debug)]
pub struct Running {
    /// The how-manyth question about its target this is.
    number: u32,
    /// Whether one of them may have been heard, though it was not answered.
    doubt: bool,
    since: u64,
    /// Whether somebody may have done it before.
    before: Afterwards,
    attempts: u32,
}

fn broken(errno: Errno) -> Error {
    let answer: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(errno as i32));
    answer.context(|| "call a node").unwrap_err()
}

impl Simulation {
    /// Begins what there is room for.
    pub fn dispatch(&self, node: usize, daemon: &mut Daemon) {
        while daemon.under_way < Limits::default().workers {
            let Some(turn) = daemon.queue.next(self.instant()) else { break };
            let target = turn.active.targets[turn.index].node.clone();
            if !self.take_turn(node, daemon, turn) {
                daemon.queue.done(&target);
            }
        }
        // While all threads are at something, the next that is done looks.
        let has_room = daemon.under_way < Limits::default().workers;
        if let Some(due) = daemon.queue.due().filter(|_| has_room) {
            let time = self.until(due);
            if daemon.wakes.is_none_or(|wakes| wakes <= self.now() || wakes > self.now() + time) {
                daemon.wakes = Some(self.now() + time);
                self.later(time, Event::Wake { life: self.life(node) });
            }
        }
    }

    pub fn wake(&self, life: Life) {
        let mut daemon = self.nodes[life.node].daemon.lock().unwrap();
        daemon.wakes = None;
        self.dispatch(life.node, &mut daemon);
    }

    /// Begins a target, as the engine's workers do. Whether a thread is at it now.
    fn take_turn(&self, node: usize, daemon: &mut Daemon, turn: Turn<Job>) -> bool {
        let (id, index, clock) = (turn.active.id, turn.index, self.clock(node));
        let Some(active) = daemon.active.get_mut(&id) else { return false };
        if active.barred.is_none() && !daemon.keeper.holds(active.lease, &clock) {
            self.lose(node, daemon, id);
            return false;
        }
        let Some(before) = active.course.begin(index, clock.wall()) else { return false };
        let task = self.task(node, active, index);
        if active.barred.is_none() {
            self.ledger.lock().unwrap().check_marker(&active.record, &task.target, &self.store.lock().unwrap());
        }
        let is_here = task.target.node == self.nodes[node].name;
        let worker = Worker { simulation: self, node };
        let first = is_here && turn.attempts == 0;
        let past = if first { Past::of(&worker, &task, before) } else { Past::Open(before) };
        let before = match past.lead(&task, active.barred.as_deref()) {
            Lead::Execute(before) => before,
            Lead::End(outcome) => {
                let now = active.course.finish(index, outcome);
                self.end_if(node, daemon, (id, now));
                return false;
            }
            Lead::Fail(error, after) => {
                self.fail((node, daemon), &turn, (&error, after));
                return false;
            }
        };
        let (since, attempts) = (self.now(), turn.attempts);
        active.running.insert(index, Running { number: 0, doubt: false, since, before, attempts });
        daemon.under_way += 1;
        let ask = Ask { id, index, number: 0 };
        if is_here {
            self.begin_here(&worker, &task, ask)
        } else {
            self.ask((node, daemon), ask)
        }
        true
    }

    fn task(&self, node: usize, active: &Active, index: usize) -> Task {
        Task {
            operation: active.record.id,
            kind: active.record.kind,
            target: active.record.targets[index].clone(),
            parameters: Arc::clone(&active.parameters),
            token: active.token.clone(),
            since: active.record.since.unwrap_or(active.token.number),
            deadline: None,
            cancel: Arc::default(),
            fence: self.nodes[node].host.lock().unwrap().fence(),
        }
    }

    fn begin_here(&self, worker: &Worker<'_>, task: &Task, ask: Ask) {
        let life = self.life(worker.node);
        match worker.execute(task, &mut |_| {}) {
            Ok(_) => worker.wait_for(task, (life, ask)),
            Err(error) => self.later(0, Event::Reply { life, ask, reply: Box::new(Reply::Refused(error)) }),
        }
    }

    /// Asks the target's node, as `control::node::Remote` does.
    fn ask(&self, (node, daemon): (usize, &Daemon), ask: Ask) {
        let (life, active) = (self.life(node), &daemon.active[&ask.id]);
        let target = active.record.targets[ask.index].clone();
        let to = number(target.node.as_str());
        let reply = |time, reply| self.later(time, Event::Reply { life, ask, reply: Box::new(reply) });
        if self.directory.snapshot().node(&target.node).is_none() {
            let error = Error::new(Fault::NotFound, format!("reach node '{}'", target.node), "it is not there now");
            return reply(0, Reply::Unsent(error));
        }
        if self.is_cut(node) || self.is_cut(to) {
            return reply(CONNECT, Reply::Unsent(broken(Errno::ETIMEDOUT)));
        }
        if !self.nodes[to].state.lock().unwrap().up {
            return reply(1, Reply::Unsent(broken(Errno::ECONNREFUSED)));
        }
        let (kind, parameters, token) = (active.record.kind, Arc::clone(&active.parameters), active.token.clone());
        let since = active.record.since.unwrap_or(token.number);
        self.send_task(Message { from: life, ask, kind, target, parameters, token, since }, to, active.held);
        reply(ANSWER, Reply::Unanswered(broken(Errno::ETIMEDOUT)));
    }

    pub fn ask_again(&self, life: Life, ask: Ask) {
        let daemon = self.nodes[life.node].daemon.lock().unwrap();
        if daemon.active.get(&ask.id).is_some_and(|active| active.running.contains_key(&ask.index)) {
            self.ask((life.node, &daemon), ask);
        }
    }

    /// Something comes of a question.
    pub fn answered(&self, life: Life, ask: Ask, reply: Reply) {
        let mut daemon = self.nodes[life.node].daemon.lock().unwrap();
        let Some(active) = daemon.active.get_mut(&ask.id) else { return };
        let is_cancelled = active.is_cancelled;
        let Some(running) = active.running.get_mut(&ask.index).filter(|running| running.number == ask.number) else {
            return;
        };
        let after = if running.doubt { Afterwards::Unknown } else { Afterwards::NotDone };
        let result = match reply {
            Reply::Done => Ok(()),
            Reply::Refused(error) => Err((error, after)),
            Reply::Lost(error) => Err((error, Afterwards::Unknown)),
            Reply::Unsent(error) if !running.doubt => Err((error, after)),
            Reply::Unsent(error) | Reply::Unanswered(error) => {
                running.doubt = true;
                if is_cancelled || self.now() - running.since > PATIENCE {
                    Err((error, Afterwards::Unknown))
                } else {
                    running.number += 1;
                    return self.later(PAUSE, Event::Again { life, ask: Ask { number: running.number, ..ask } });
                }
            }
        };
        self.conclude((life.node, &mut daemon), ask, result);
        self.dispatch(life.node, &mut daemon);
        self.watch_over(life, &mut daemon);
    }

    /// A thread is done with a target.
    fn conclude(&self, (node, daemon): (usize, &mut Daemon), ask: Ask, result: Result<(), (Error, Afterwards)>) {
        let active = daemon.active.get_mut(&ask.id).unwrap();
        let running = active.running.remove(&ask.index).unwrap();
        let (job, target) = (Arc::clone(&active.job), active.job.targets[ask.index].node.clone());
        daemon.under_way -= 1;
        match (result, running.before) {
            (Ok(()), _) => {
                let now = active.course.finish(ask.index, Outcome::succeeded(serde_json::Value::Null));
                self.end_if(node, daemon, (ask.id, now));
            }
            (Err((error, after)), before) => {
                let after = if before == Afterwards::Unknown { before } else { after };
                let turn = Turn { active: job, index: ask.index, attempts: running.attempts };
                self.fail((node, daemon), &turn, (&error, after));
            }
        }
        daemon.queue.done(&target);
    }

    /// An attempt failed.
    fn fail(&self, (node, daemon): (usize, &mut Daemon), turn: &Turn<Job>, (error, after): (&Error, Afterwards)) {
        let (id, attempts): (OperationId, _) = (turn.active.id, turn.attempts + 1);
        let active = daemon.active.get_mut(&id).unwrap();
        let failed = Failed { error, attempts, after, is_cancelled: active.is_cancelled };
        let now = match failed.next(active.record.kind, 500) {
            Next::End(state) => active.course.finish(turn.index, Outcome::failed(state, error)),
            Next::Again(wait) => match active.course.postpone(turn.index, after) {
                Some(now) => now,
                None => {
                    self.put_off(daemon, turn, wait);
                    Now::Nothing
                }
            },
        };
        self.end_if(node, daemon, (id, now));
    }

    fn put_off(&self, daemon: &mut Daemon, turn: &Turn<Job>, wait: Duration) {
        self.ledger.lock().unwrap().retries += 1;
        let turn = Turn { active: Arc::clone(&turn.active), index: turn.index, attempts: turn.attempts + 1 };
        daemon.queue.delay(turn, self.instant() + wait);
    }
}
