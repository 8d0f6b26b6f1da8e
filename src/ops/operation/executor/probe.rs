//! Tasks that do nothing but wait: they have markers, a place in the queue and results as all others, and so measure these.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Executor, Settled, Task};
use crate::error::{Error, Kind as Fault, Result};

/// Waits as many milliseconds as its parameter `delay_ms` says, and answers with its token. There is nothing that it could
/// do too late, so it has no fence to pass.
#[derive(Debug, Clone, Copy)]
pub struct Probe;

impl Executor for Probe {
    fn execute(&self, task: &Task, _tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let delay = task.parameters.get("delay_ms").and_then(Value::as_u64).unwrap_or(0);
        if delay > 0 && task.cancel.wait(Duration::from_millis(delay)) {
            return Err(Error::new(Fault::State, format!("probe '{}'", task.target), "it was cancelled"));
        }
        Ok(json!({"token": task.token.number}))
    }

    fn settle(&self, _task: &Task) -> Settled {
        Settled::Repeat
    }
}
