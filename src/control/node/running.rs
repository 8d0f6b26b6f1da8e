//! Tasks of other nodes that are being done here, and those that were done lately. One that is asked for again meanwhile is
//! waited for; of one that was done the answer is told again, as an answer that was lost on its way is asked for again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Error;
use crate::operation::fence::Token;
use crate::operation::{OperationId, Target};
use crate::ops::operation::Afterwards;
use crate::ops::operation::executor::Cancel;

/// So long an answer is kept: whoever has lost it asks again sooner.
const KEPT_FOR: Duration = Duration::from_secs(120);
/// At most so many answers are kept.
const KEPT: usize = 1024;

/// Which task, and by which right it is done.
type Key = (OperationId, Target, String, u64);
/// What came of it.
pub(super) type Outcome = Result<Value, (Afterwards, Error)>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    slots: HashMap<Key, Arc<Slot>>,
    /// Those that were done, oldest first.
    done: VecDeque<(Instant, Key)>,
}

/// One of them, and what came of it.
#[derive(Debug, Default)]
struct Slot {
    outcome: Mutex<Option<Outcome>>,
    known: Condvar,
    cancel: Arc<Cancel>,
}

/// How a task is called here.
pub(super) fn key(operation: OperationId, target: &Target, token: &Token) -> Key {
    (operation, target.clone(), token.registry.clone(), token.number)
}

impl Running {
    /// Does it, unless it is being done or was done: then this gives what comes of that. What was not done may be done when it is
    /// asked for again.
    pub(super) fn once(&self, key: Key, work: impl FnOnce(&Arc<Cancel>) -> Outcome) -> Outcome {
        let (slot, mine) = {
            let mut tasks = lock(&self.0);
            tasks.forget(Instant::now());
            match tasks.slots.get(&key) {
                Some(slot) => (Arc::clone(slot), false),
                None => (Arc::clone(tasks.slots.entry(key.clone()).or_default()), true),
            }
        };
        if mine {
            let outcome = work(&slot.cancel);
            *lock(&slot.outcome) = Some(outcome.clone());
            slot.known.notify_all();
            let mut tasks = lock(&self.0);
            if outcome.is_ok() {
                tasks.done.push_back((Instant::now(), key));
            } else {
                tasks.slots.remove(&key);
            }
            return outcome;
        }
        let mut known = lock(&slot.outcome);
        loop {
            if let Some(outcome) = &*known {
                return outcome.clone();
            }
            known = slot.known.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks those who are at work for an operation to give it up where that harms nothing.
    pub(super) fn cancel(&self, operation: OperationId) {
        lock(&self.0).of(operation).for_each(|slot| slot.cancel.ask());
    }
}

impl Tasks {
    fn of(&self, operation: OperationId) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.iter().filter(move |((of, ..), _)| *of == operation).map(|(_, slot)| slot)
    }

    fn forget(&mut self, now: Instant) {
        while self.done.len() > KEPT || self.done.front().is_some_and(|(then, _)| now - *then > KEPT_FOR) {
            if let Some((_, key)) = self.done.pop_front() {
                self.slots.remove(&key);
            }
        }
    }
}

/// The binary aborts where a thread panics, so nothing in there is half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use serde_json::json;

    use super::*;
    use crate::error::Kind;

    fn key_of(target: &str, number: u64) -> Key {
        let token = Token { registry: "r".to_owned(), number };
        key("0".repeat(32).parse().unwrap(), &target.parse().unwrap(), &token)
    }

    #[test]
    fn who_asks_again_meanwhile_is_told_what_comes_of_it() {
        let running = Running::default();
        let key = key_of("n1:service/web", 1);
        let (count, (begun, begins), (end, ends)) = (AtomicUsize::new(0), channel(), channel());
        std::thread::scope(|scope| {
            let (first_key, running, count) = (key.clone(), &running, &count);
            let first = scope.spawn(move || {
                running.once(first_key, |_| {
                    count.fetch_add(1, Ordering::SeqCst);
                    begun.send(()).unwrap();
                    ends.recv().unwrap();
                    Ok(json!(7))
                })
            });
            begins.recv().unwrap();
            let second = scope.spawn(|| running.once(key.clone(), |_| panic!("it is being done")));
            // Whether the second one waits already or comes later, it must not do it, nor find nothing.
            std::thread::yield_now();
            let other = key_of("n1:service/other", 1);
            assert_eq!(running.once(other, |_| Ok(json!(1))).unwrap(), json!(1), "another one does not wait");
            while Arc::strong_count(lock(&running.0).slots.get(&key).unwrap()) < 3 {
                std::thread::yield_now();
            }
            end.send(()).unwrap();
            assert_eq!(first.join().unwrap().unwrap(), json!(7));
            assert_eq!(second.join().unwrap().unwrap(), json!(7));
        });
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_was_done_is_told_again_for_a_while_and_what_was_not_is_done() {
        let running = Running::default();
        let done = || key_of("n1:service/web", 1);
        assert_eq!(running.once(done(), |_| Ok(json!(1))).unwrap(), json!(1));
        assert_eq!(running.once(done(), |_| panic!("it was done")).unwrap(), json!(1));
        assert_eq!(running.once(key_of("n1:service/web", 2), |_| Ok(json!(2))).unwrap(), json!(2), "by another right");
        let busy = |_: &Arc<Cancel>| Err((Afterwards::NotDone, Error::new(Kind::Busy, "x", "y")));
        assert!(running.once(key_of("n1:service/x", 3), busy).is_err());
        assert_eq!(running.once(key_of("n1:service/x", 3), |_| Ok(json!(3))).unwrap(), json!(3));
        lock(&running.0).forget(Instant::now() + KEPT_FOR + Duration::from_secs(1));
        assert!(lock(&running.0).slots.is_empty() && lock(&running.0).done.is_empty());
    }
}
