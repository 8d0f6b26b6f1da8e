//! Has tasks carried out by the daemons of other nodes.
//!
//! Whoever does not answer is asked again: what was done is not done twice there, and the answer is what came of it. Only
//! where nobody answers for longer than that makes sense nobody knows.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Order, Told, method};
use crate::control::Mode;
use crate::control::client::Reply;
use crate::control::message::Following;
use crate::control::remote::Dialer;
use crate::error::{Error, Kind, Result};
use crate::ids::NodeName;
use crate::operation::{OperationId, Target};
use crate::ops::cluster::Cluster;
use crate::ops::operation::executor::{Afterwards, Elsewhere};
use crate::ops::operation::{Executor, Settled, Task};

/// So long a node that has been sent a task, and does not answer, is asked again: somewhat longer than its lease.
const PATIENCE: Duration = Duration::from_secs(40);
/// The pauses between.
const PAUSE: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub struct Remote {
    dialer: Dialer,
    cluster: Arc<Cluster>,
    /// Tasks that were sent, and not answered.
    doubtful: Mutex<HashSet<(OperationId, Target)>>,
}

/// Why there is no outcome.
enum Setback {
    /// Nothing was sent.
    Unsent(Error),
    /// It may have been heard.
    Unanswered(Error),
    /// The node says why not.
    Refused(Error),
}

impl Remote {
    /// For the nodes of a cluster.
    #[must_use]
    pub fn new(dialer: Dialer, cluster: Arc<Cluster>) -> Self {
        Self { dialer, cluster, doubtful: Mutex::default() }
    }

    fn address(&self, name: &NodeName) -> Result<SocketAddr> {
        let fail = |kind, cause: &str, next: &str| {
            Err(Error::new(kind, format!("reach node '{name}'"), cause).next(next.to_owned()))
        };
        match self.cluster.directory().snapshot().node(name) {
            None => fail(Kind::NotFound, "it is not there now", "see 'regen node ls'"),
            Some(node) => match node.address {
                None => fail(Kind::State, "its daemon lets no other nodes in", "start it with --address and --certs"),
                Some(address) => Ok(address),
            },
        }
    }

    /// Asks once.
    fn ask(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value, Setback> {
        let node = &task.target.node;
        let address = self.address(node).map_err(Setback::Unsent)?;
        let mut line = self.dialer.connect(node, address).map_err(Setback::Unsent)?;
        let order = Order {
            operation: task.operation,
            kind: task.kind,
            target: task.target.clone(),
            parameters: Value::clone(&task.parameters),
            token: task.token.clone(),
        };
        line.send(method::EXECUTE, &order, Mode::More).map_err(Setback::Unanswered)?;
        loop {
            let reply = line.receive().map_err(Setback::Unanswered)?;
            // What the node refuses is its answer; what nobody can read is none.
            let refusal = matches!(reply, Reply::Refusal { .. });
            let (Told { step, value }, _, following) =
                reply.parse(method::EXECUTE).map_err(if refusal { Setback::Refused } else { Setback::Unanswered })?;
            step.into_iter().for_each(&mut *tell);
            match following {
                Following::Something => {}
                Following::Nothing => {
                    line.keep();
                    return Ok(value.unwrap_or_default());
                }
            }
        }
    }

    fn set_doubt(&self, task: &Task, is_doubtful: bool) {
        let key = (task.operation, task.target.clone());
        let mut doubtful = self.doubtful.lock().unwrap_or_else(PoisonError::into_inner);
        if is_doubtful {
            doubtful.insert(key);
        } else {
            doubtful.remove(&key);
        }
    }
}

impl Executor for Remote {
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let mut heard = Instant::now();
        let mut doubt = None;
        loop {
            let mut hear = |step: Value| {
                heard = Instant::now();
                tell(step);
            };
            let error = match (self.ask(task, &mut hear), &doubt) {
                (Ok(value), _) => {
                    self.set_doubt(task, false);
                    return Ok(value);
                }
                (Err(Setback::Refused(error)), _) => {
                    self.set_doubt(task, false);
                    return Err(error);
                }
                (Err(Setback::Unsent(error)), None) => return Err(error),
                (Err(Setback::Unsent(error) | Setback::Unanswered(error)), _) => error,
            };
            self.set_doubt(task, true);
            let is_late = task.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if heard.elapsed() > PATIENCE || is_late || task.cancel.is_asked() {
                return Err(error);
            }
            doubt = Some(());
            std::thread::sleep(PAUSE);
        }
    }

    /// The node knows: asked again, it tells what came of it, or does it if it was not begun.
    fn settle(&self, _task: &Task) -> Settled {
        Settled::Repeat
    }

    fn afterwards(&self, task: &Task, _error: &Error) -> Afterwards {
        let key = (task.operation, task.target.clone());
        let doubtful = self.doubtful.lock().unwrap_or_else(PoisonError::into_inner);
        if doubtful.contains(&key) { Afterwards::Unknown } else { Afterwards::NotDone }
    }
}

impl Elsewhere for Remote {
    fn knows(&self, node: &NodeName) -> bool {
        self.cluster.directory().snapshot().node(node).is_some()
    }
}
