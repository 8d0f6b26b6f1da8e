//! Tasks of other nodes that are being done here. One that is asked for again meanwhile is waited for.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::error::Result;
use crate::operation::{OperationId, Target};

/// Which task.
type Key = (OperationId, Target);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<Key, Arc<Slot>>>);

/// One of them, and what came of it.
#[derive(Debug, Default)]
struct Slot {
    outcome: Mutex<Option<Result<Value>>>,
    known: Condvar,
}

impl Running {
    /// Does it, unless it is being done: then this gives what comes of that.
    pub(super) fn once(&self, key: Key, work: impl FnOnce() -> Result<Value>) -> Result<Value> {
        let (slot, mine) = {
            let mut all = lock(&self.0);
            match all.get(&key) {
                Some(slot) => (Arc::clone(slot), false),
                None => (Arc::clone(all.entry(key.clone()).or_default()), true),
            }
        };
        if mine {
            let outcome = work();
            *lock(&slot.outcome) = Some(outcome.clone());
            slot.known.notify_all();
            lock(&self.0).remove(&key);
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

    #[test]
    fn who_asks_again_meanwhile_is_told_what_comes_of_it() {
        let running = Running::default();
        let key: Key = ("0".repeat(32).parse().unwrap(), "n1:service/web".parse().unwrap());
        let (count, (begun, begins), (end, ends)) = (AtomicUsize::new(0), channel(), channel());
        std::thread::scope(|scope| {
            let (first_key, running, count) = (key.clone(), &running, &count);
            let first = scope.spawn(move || {
                running.once(first_key, || {
                    count.fetch_add(1, Ordering::SeqCst);
                    begun.send(()).unwrap();
                    ends.recv().unwrap();
                    Ok(json!(7))
                })
            });
            begins.recv().unwrap();
            let second = scope.spawn(|| running.once(key.clone(), || panic!("it is being done")));
            // Whether the second one waits already or comes later, it must not do it, nor find nothing.
            std::thread::yield_now();
            let other: Key = (key.0, "n1:service/other".parse().unwrap());
            assert_eq!(running.once(other, || Ok(json!(1))).unwrap(), json!(1), "another one does not wait");
            while Arc::strong_count(lock(&running.0).get(&key).unwrap()) < 3 {
                std::thread::yield_now();
            }
            end.send(()).unwrap();
            assert_eq!(first.join().unwrap().unwrap(), json!(7));
            assert_eq!(second.join().unwrap().unwrap(), json!(7));
        });
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert!(lock(&running.0).is_empty());
    }
}
