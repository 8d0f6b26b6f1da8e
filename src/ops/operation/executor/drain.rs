//! `node-drain`: a node takes no more, or takes more again. That is kept in its store, so it outlives the daemon.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Executor, Settled, Task};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::node::State;
use crate::ops::cluster::Cluster;
use crate::sys::fs::{Durability, replace_file};

/// It is there while the node is drained.
const MARK: &str = "drained";

/// See the module.
#[derive(Debug)]
pub struct Drain {
    cluster: Arc<Cluster>,
    store: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Parameters {
    #[serde(default)]
    undo: bool,
}

impl Drain {
    /// For this node. If it was drained before, it is told that it still is.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, store: PathBuf) -> Self {
        if store.join(MARK).exists() {
            cluster.change(|node| node.state = State::Drained);
        }
        Self { cluster, store }
    }
}

impl Executor for Drain {
    fn execute(&self, task: &Task, _tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let operation = || format!("drain node '{}'", task.target.node);
        let Parameters { undo } = serde_json::from_value(Value::clone(&task.parameters))
            .map_err(|error| Error::new(Kind::Invalid, operation(), error.to_string()))?;
        task.pass()?;
        let state = if undo {
            let mark = self.store.join(MARK);
            match std::fs::remove_file(&mark) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context(|| format!("remove {}", quote(&mark)));
                }
                Ok(()) | Err(_) => State::Ready,
            }
        } else {
            replace_file(&self.store, MARK, b"", Durability::Durable)?;
            State::Drained
        };
        self.cluster.change(|node| node.state = state);
        Ok(json!({"name": task.target.node, "state": state}))
    }

    /// Twice is as good as once.
    fn settle(&self, _task: &Task) -> Settled {
        Settled::Repeat
    }
}
