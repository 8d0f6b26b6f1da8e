//! What a node does for operations: locks, and the work itself. Its fence is on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use regen::error::{Error, Kind as Fault, Result};
use regen::operation::OperationId;
use regen::operation::course::Afterwards;
use regen::operation::fence::Fence;
use regen::ops::operation::Task;
use regen::ops::operation::executor::{Executor, Settled, carry_out};
use serde_json::Value;

use crate::event::{Ask, Event, Life, Message, Reply};
use crate::simulation::Simulation;

/// How far the work for a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begun,
    Done,
    /// The daemon died meanwhile, and nothing of it is left.
    Undone,
    /// … and who knows.
    Torn,
}

#[derive(Debug)]
struct Work {
    stage: Stage,
    root: String,
    /// Who waits for it.
    waiting: Vec<(Life, Ask)>,
}

type Key = (OperationId, String);

/// What outlives the daemon.
#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
    fence: Option<Arc<Fence>>,
    works: BTreeMap<Key, Work>,
    /// The locks that are held, by what they are of.
    locks: BTreeMap<String, Key>,
}

impl Host {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, fence: None, works: BTreeMap::new(), locks: BTreeMap::new() }
    }

    pub fn fence(&mut self) -> Arc<Fence> {
        let fence = self.fence.get_or_insert_with(|| {
            std::fs::create_dir_all(&self.directory).unwrap();
            Arc::new(Fence::open(&self.directory).unwrap())
        });
        Arc::clone(fence)
    }
}

/// Who carries tasks out on a node.
#[derive(Debug)]
pub struct Worker<'a> {
    pub simulation: &'a Simulation,
    pub node: usize,
}

impl Executor for Worker<'_> {
    /// Begins it, under the lock and past the fence: what comes of it is known later.
    fn execute(&self, task: &Task, _: &mut dyn FnMut(Value)) -> Result<Value> {
        let simulation = self.simulation;
        let mut resources = task.resources()?;
        resources.retain(|resource| resource.node == task.target.node);
        let (root, key) = (resources[0].root().to_owned(), (task.operation, task.target.subject.clone()));
        let mut host = simulation.nodes[self.node].host.lock().unwrap();
        if host.locks.contains_key(&root) {
            return Err(Error::new(Fault::Busy, format!("lock '{root}'"), "somebody else has it"));
        }
        if let Err(error) = task.pass() {
            simulation.ledger.lock().unwrap().fenced += 1;
            return Err(error);
        }
        simulation.ledger.lock().unwrap().begin(self.node, task, &resources);
        host.locks.insert(root.clone(), key.clone());
        host.works.insert(key.clone(), Work { stage: Stage::Begun, root, waiting: Vec::new() });
        drop(host);
        let time = match simulation.within(0..100) {
            _ if task.parameters.get("delay_ms").is_some() => 10,
            0..70 => simulation.within(1..50),
            70..95 => simulation.within(50..3000),
            // Longer than anybody waits for an answer, or than a lease lasts.
            _ => simulation.within(3000..45_000),
        };
        simulation.later(time, Event::Over { life: simulation.life(self.node), work: key });
        Ok(Value::Null)
    }

    /// As executors do: what may be done twice is, of the rest some leave nothing half done and some do.
    fn settle(&self, task: &Task) -> Settled {
        if task.kind.repeatable() {
            return Settled::Repeat;
        }
        let undone = || Settled::Failed(Error::new(Fault::State, task.target.to_string(), "nothing of it is left"));
        let host = self.simulation.nodes[self.node].host.lock().unwrap();
        match host.works.get(&(task.operation, task.target.subject.clone())).map(|work| work.stage) {
            Some(Stage::Done) => Settled::Succeeded(Value::Null),
            Some(Stage::Undone) | None => undone(),
            Some(Stage::Torn | Stage::Begun) => Settled::Unknown,
        }
    }
}

impl Worker<'_> {
    /// Has somebody told what comes of a task, if it is being done; whether it is.
    fn join(&self, key: &Key, who: (Life, Ask)) -> bool {
        let mut host = self.simulation.nodes[self.node].host.lock().unwrap();
        let work = host.works.get_mut(key).filter(|work| work.stage == Stage::Begun);
        work.map(|work| work.waiting.push(who)).is_some()
    }

    /// The same for one that has just begun.
    pub fn wait_for(&self, task: &Task, who: (Life, Ask)) {
        assert!(self.join(&(task.operation, task.target.subject.clone()), who));
    }
}

impl Simulation {
    /// A task of another node arrives, as `control::node` takes it.
    pub fn receive(&self, node: usize, message: &Message) {
        if self.is_cut(node) {
            self.ledger.lock().unwrap().lost_messages += 1;
            return;
        }
        self.ledger.lock().unwrap().tasks += 1;
        let worker = Worker { simulation: self, node };
        let (operation, who) = (message.ask.id, (message.from, message.ask));
        if worker.join(&(operation, message.target.subject.clone()), who) {
            return;
        }
        let task = Task {
            operation,
            kind: message.kind,
            target: message.target.clone(),
            parameters: Arc::clone(&message.parameters),
            token: message.token.clone(),
            since: message.since,
            deadline: None,
            cancel: Arc::default(),
            fence: self.nodes[node].host.lock().unwrap().fence(),
        };
        let reply = match carry_out(&worker, &task, &mut |_| {}) {
            Ok(_) if worker.join(&(operation, task.target.subject.clone()), who) => return,
            // It was done before.
            Ok(_) => Reply::Done,
            Err((Afterwards::NotDone, error)) => Reply::Refused(error),
            Err((Afterwards::Unknown, error)) => Reply::Lost(error),
        };
        self.say(node, who, reply);
    }

    /// The work for a task is done.
    pub fn over(&self, life: Life, key: &Key) {
        let mut host = self.nodes[life.node].host.lock().unwrap();
        let Some(work) = host.works.get_mut(key) else { return };
        work.stage = Stage::Done;
        let (root, waiting) = (work.root.clone(), std::mem::take(&mut work.waiting));
        host.locks.remove(&root);
        drop(host);
        self.ledger.lock().unwrap().finish(life.node, key);
        waiting.into_iter().for_each(|who| self.say(life.node, who, Reply::Done));
    }

    fn say(&self, node: usize, (life, ask): (Life, Ask), reply: Reply) {
        self.send((node, life.node), Event::Reply { life, ask, reply: Box::new(reply) });
    }

    /// The daemon dies, and what it was doing with it.
    pub fn crash_host(&self, node: usize) {
        let mut host = self.nodes[node].host.lock().unwrap();
        host.fence = None;
        host.locks.clear();
        for (key, work) in &mut host.works {
            work.waiting.clear();
            if work.stage == Stage::Begun {
                work.stage = if self.chance(500) { Stage::Undone } else { Stage::Torn };
                if work.stage == Stage::Undone {
                    self.ledger.lock().unwrap().undo(node, key);
                }
            }
        }
    }
}
