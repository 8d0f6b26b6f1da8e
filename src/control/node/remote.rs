//! Has tasks carried out by the daemons of other nodes.
//!
//! Whoever does not answer is asked again: what was done is not done twice there, and the answer is what came of it. Only
//! where nobody answers for longer than that makes sense nobody knows.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Order, Told, Which, method};
use crate::control::Mode;
use crate::control::client::Reply;
use crate::control::message::Following;
use crate::control::remote::{Dialer, Line};
use crate::error::{Error, Kind, Result};
use crate::ids::NodeName;
use crate::operation::{OperationId, Target};
use crate::ops::cluster::Cluster;
use crate::ops::operation::executor::{Afterwards, Elsewhere};
use crate::ops::operation::{Executor, Settled, Task};

/// So long a node that has been sent a task, and does not answer, is asked again: somewhat longer than its lease.
const PATIENCE: Duration = Duration::from_secs(40);
/// So long is waited for an answer before it is asked for again, over another connection …
const SILENCE: Duration = Duration::from_secs(30);
/// … and so often is looked meanwhile whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);
/// The pauses between.
const PAUSE: Duration = Duration::from_millis(500);

/// The nodes of a cluster, and the way to their daemons.
#[derive(Debug, Clone)]
pub struct Reached {
    dialer: Dialer,
    cluster: Arc<Cluster>,
}

/// See the module.
#[derive(Debug)]
pub struct Remote {
    reached: Reached,
    /// Tasks that were sent, and not answered.
    doubtful: Mutex<HashSet<(OperationId, Target)>>,
}

/// Why there is no outcome.
enum Setback {
    /// Nothing was begun: nobody was reached, or the call was refused before.
    Unbegun(Error),
    /// It may have been heard.
    Unanswered(Error),
}

/// A node that takes part, and whose daemon does not listen for others.
pub(super) fn lets_nobody_in(name: &NodeName) -> Error {
    Error::new(Kind::State, format!("reach node '{name}'"), "its daemon lets no other nodes in")
        .next("start it with --address and --certs")
}

impl Reached {
    /// With this node's certificates.
    #[must_use]
    pub fn new(dialer: Dialer, cluster: Arc<Cluster>) -> Self {
        Self { dialer, cluster }
    }

    /// A connection to the daemon of a node.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a node that is not there, [`Kind::State`] for one that lets nobody in; those of [`Dialer`].
    pub(super) fn connect(&self, name: &NodeName) -> Result<Line> {
        self.dialer.connect(name, self.address(name)?)
    }

    fn address(&self, name: &NodeName) -> Result<SocketAddr> {
        match self.cluster.directory().snapshot().node(name) {
            None => Err(Error::new(Kind::NotFound, format!("reach node '{name}'"), "it is not there now")
                .next("see 'regen node ls'")),
            Some(node) => node.address.ok_or_else(|| lets_nobody_in(name)),
        }
    }
}

impl Remote {
    /// For the nodes that can be reached.
    #[must_use]
    pub fn new(reached: Reached) -> Self {
        Self { reached, doubtful: Mutex::default() }
    }

    /// Asks once, and gives what the node has come to. `hear` is called with every sign of life, and with a step if it is one.
    fn ask(&self, task: &Task, hear: &mut dyn FnMut(Option<Value>)) -> Result<Told, Setback> {
        let mut line = self.reached.connect(&task.target.node).map_err(Setback::Unbegun)?;
        hear(None);
        let order = Order {
            operation: task.operation,
            kind: task.kind,
            target: task.target.clone(),
            parameters: Value::clone(&task.parameters),
            token: task.token.clone(),
            since: (task.since != task.token.number).then_some(task.since),
        };
        line.send(method::EXECUTE, &order, Mode::More).map_err(Setback::Unanswered)?;
        loop {
            self.attend(task, &line)?;
            let reply = line.receive().map_err(Setback::Unanswered)?;
            // A call that is refused was not begun; an answer that nobody can read says nothing.
            let refusal = matches!(reply, Reply::Refusal { .. });
            let (told, _, following): (Told, _, _) =
                reply.parse(method::EXECUTE).map_err(if refusal { Setback::Unbegun } else { Setback::Unanswered })?;
            match following {
                Following::Something => hear(told.step),
                Following::Nothing => {
                    line.keep();
                    return Ok(told);
                }
            }
        }
    }

    /// Waits for something to come, as long as that makes sense. If the task is not wanted any more, the node is told.
    fn attend(&self, task: &Task, line: &Line) -> Result<(), Setback> {
        let (begun, mut is_told) = (Instant::now(), false);
        while !line.await_reply(LOOK).map_err(Setback::Unanswered)? {
            if begun.elapsed() > SILENCE {
                let cause = format!("nothing has happened for {} s", SILENCE.as_secs());
                return Err(Setback::Unanswered(Error::new(Kind::System, "wait for its answer", cause)));
            }
            if task.cancel.is_asked() && !is_told {
                is_told = true;
                if let Err(error) = self.cancel(task) {
                    tracing::warn!(operation = %task.operation, target = %task.target, "{error}");
                }
            }
        }
        Ok(())
    }

    fn cancel(&self, task: &Task) -> Result<()> {
        let mut line = self.reached.connect(&task.target.node)?;
        line.call::<Value>(method::CANCEL, &Which { id: task.operation })?;
        line.keep();
        Ok(())
    }

    fn doubtful(&self) -> MutexGuard<'_, HashSet<(OperationId, Target)>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(task: &Task) -> (OperationId, Target) {
    (task.operation, task.target.clone())
}

impl Executor for Remote {
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let mut heard = Instant::now();
        let mut in_doubt = self.doubtful().contains(&key(task));
        loop {
            // A node that is there, and at it, may take as long as it needs.
            let mut hear = |step: Option<Value>| {
                heard = Instant::now();
                step.into_iter().for_each(&mut *tell);
            };
            let error = match self.ask(task, &mut hear) {
                Ok(Told { unknown: Some(cause), .. }) => {
                    self.doubtful().insert(key(task));
                    let operation = format!("{} of '{}'", task.kind, task.target);
                    return Err(Error::new(Kind::Damaged, operation, cause));
                }
                // What was sent before and not answered may still arrive there, and be done.
                Ok(Told { failure: Some(failure), .. }) => return Err(failure.error()),
                Ok(Told { value, .. }) => {
                    self.doubtful().remove(&key(task));
                    return Ok(value.unwrap_or_default());
                }
                Err(Setback::Unbegun(error)) if !in_doubt => return Err(error),
                Err(Setback::Unbegun(error) | Setback::Unanswered(error)) => error,
            };
            in_doubt = true;
            self.doubtful().insert(key(task));
            let is_late = task.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if heard.elapsed() > PATIENCE || is_late || task.cancel.wait(PAUSE) {
                return Err(error);
            }
        }
    }

    /// The node knows: asked again, it tells what came of it, or does it if it was not begun.
    fn settle(&self, _task: &Task) -> Settled {
        Settled::Repeat
    }

    fn afterwards(&self, task: &Task, _error: &Error) -> Afterwards {
        // Whoever asks remembers it.
        if self.doubtful().remove(&key(task)) { Afterwards::Unknown } else { Afterwards::NotDone }
    }
}

impl Elsewhere for Remote {
    fn knows(&self, node: &NodeName) -> bool {
        self.reached.cluster.directory().snapshot().node(node).is_some()
    }
}
