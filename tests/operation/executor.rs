//! Executors that do what a test wants, and write down who was there.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};

use regen::error::{Error, Kind as Fault, Result};
use regen::operation::{Kind, OperationId};
use regen::ops::operation::{Executor, Executors, Settled, Task};
use serde_json::{Value, json};

use super::LONG;

/// Who was where: operation, target, token, in the order in which they came past the fence.
pub type Log = Arc<Mutex<Vec<(OperationId, String, u64)>>>;

/// Holds tasks until it is opened.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<(bool, usize)>,
    news: Condvar,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn open(&self) {
        self.state.lock().unwrap().0 = true;
        self.news.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.news.notify_all();
        while !state.0 {
            state = self.news.wait(state).unwrap();
        }
    }

    /// Waits until so many tasks came here.
    pub fn wait_for(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let (state, timeout) = self.news.wait_timeout_while(state, LONG, |state| state.1 < count).unwrap();
        assert!(!timeout.timed_out(), "{} of {count} tasks came", state.1);
    }
}

/// Waits before the fence and after it, and fails if somebody else is there at the same time.
#[derive(Debug, Default)]
pub struct Recorder {
    pub log: Log,
    pub before: Option<Arc<Gate>>,
    pub inside: Option<Arc<Gate>>,
    pub there: Arc<Mutex<HashMap<String, OperationId>>>,
}

impl Recorder {
    pub fn executors(self) -> Executors {
        Executors::new().with(&Kind::ALL, Arc::new(self))
    }

    /// One that shares what it saw with others.
    pub fn beside(&self) -> Self {
        Self { log: Arc::clone(&self.log), there: Arc::clone(&self.there), before: None, inside: None }
    }
}

impl Executor for Recorder {
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        if let Some(gate) = &self.before {
            gate.pass();
        }
        let target = task.target.to_string();
        task.pass()?;
        self.log.lock().unwrap().push((task.operation, target.clone(), task.token.number));
        let other = self.there.lock().unwrap().insert(target.clone(), task.operation);
        assert_eq!(other, None, "two at once at {target}");
        tell(json!({"step": "there"}));
        if let Some(gate) = &self.inside {
            gate.pass();
        }
        if let Some(delay) = task.parameters.get("delay_us").and_then(Value::as_u64) {
            std::thread::sleep(std::time::Duration::from_micros(delay));
        }
        self.there.lock().unwrap().remove(&target);
        match task.parameters.get("fail") {
            Some(_) => Err(Error::new(Fault::State, "do what was asked", "it was to fail")),
            None => Ok(json!({"token": task.token.number})),
        }
    }

    fn settle(&self, task: &Task) -> Settled {
        match task.parameters.get("settle").and_then(Value::as_str) {
            Some("succeeded") => Settled::Succeeded(json!("settled")),
            Some("failed") => Settled::Failed(Error::new(Fault::State, "settle it", "nothing of it is left")),
            Some("repeat") => Settled::Repeat,
            Some(_) | None => Settled::Unknown,
        }
    }
}
