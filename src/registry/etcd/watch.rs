//! Changes as they come: a task of the runtime fills a queue, and whoever watches empties it.
//!
//! etcd does not tear the changes of a revision apart as long as nobody asks for fragments
//! (<https://etcd.io/docs/v3.5/learning/api_guarantees/>, "Watch APIs").

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Client, Event as ClientEvent, EventType, WatchOptions};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::call::{Cluster, Effect};
use super::entry::{self, Keys};
use super::fault::{self, Fault};
use super::runtime::Runtime;
use crate::error::{Kind, Result};
use crate::registry::{Answer, Event, Failure, Watch};
use crate::sys::bell::Bell;

/// One answer of etcd has the changes of a thousand revisions at most. What is longer is not known any more.
const ANSWER_MAX: usize = 256 << 20;
/// So many bytes may wait to be taken before no more are asked for.
const WAITING_MAX: usize = 16 << 20;

/// Who watches.
#[derive(Debug)]
pub(super) struct Stream {
    queue: Arc<Queue>,
    task: AbortHandle,
    /// Runs the task.
    _runtime: Arc<Runtime>,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    bell: Bell,
    /// Told when something was taken.
    taken: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<Event>,
    bytes: usize,
    end: Option<Failure>,
}

/// Tells the one who watches of the end, also when the runtime ends.
struct Feeder {
    cluster: Arc<Cluster>,
    queue: Arc<Queue>,
}

impl Stream {
    /// Watches the keys, which are there at the revision before the first that is to be heard.
    pub(super) fn begin(
        runtime: Arc<Runtime>,
        cluster: Arc<Cluster>,
        client: Client,
        keys: Keys,
        start: i64,
    ) -> Result<Self> {
        let (waiting, taken) = (Mutex::default(), Notify::new());
        let queue = Arc::new(Queue { waiting, bell: Bell::new()?, taken });
        let feeder = Feeder { cluster, queue: Arc::clone(&queue) };
        let task = runtime.begin_task(async move {
            let end = feeder.feed(client, keys, start).await;
            feeder.queue.end(end);
        });
        Ok(Self { queue, task, _runtime: runtime })
    }
}

impl Watch for Stream {
    fn next(&mut self, limit: Option<Duration>) -> Answer<Vec<Event>> {
        // A time that cannot be reckoned with is never over.
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if let Some(answer) = self.queue.take() {
                return answer;
            }
            let remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if remaining == Some(Duration::ZERO) {
                return Ok(Vec::new());
            }
            // It fails only without memory, and is tried again then.
            let _ = self.queue.bell.wait(remaining);
        }
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.queue.bell.as_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, or the end; none if there is neither. It stays readable after the end.
    fn take(&self) -> Option<Answer<Vec<Event>>> {
        let mut waiting = self.lock();
        if waiting.events.is_empty() {
            return waiting.end.clone().map(Err);
        }
        if waiting.end.is_none() {
            self.bell.silence();
        }
        waiting.bytes = 0;
        let events = std::mem::take(&mut waiting.events);
        self.taken.notify_one();
        Some(Ok(events))
    }

    async fn put(&self, events: Vec<Event>) {
        let length = |event: &Event| event.key.len() + event.entry.as_ref().map_or(0, |entry| entry.value.len());
        let bytes: usize = events.iter().map(length).sum();
        while self.lock().bytes > WAITING_MAX {
            self.taken.notified().await;
        }
        let mut waiting = self.lock();
        waiting.bytes += bytes;
        waiting.events.extend(events);
        self.bell.ring();
    }

    fn end(&self, failure: Failure) {
        self.lock().end.get_or_insert(failure);
        self.bell.ring();
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.queue.end(self.broken("the connection was closed"));
    }
}

impl Feeder {
    /// Fills the queue, until it cannot any more.
    async fn feed(&self, client: Client, keys: Keys, start: i64) -> Failure {
        let options = WatchOptions::new().with_range(keys.end).with_start_revision(start);
        let mut watcher = client.watch_client().max_decoding_message_size(ANSWER_MAX);
        let begun = timeout(self.cluster.timeout(), watcher.watch(keys.first, Some(options))).await;
        let mut stream = match begun {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.explain(&fault::read(&error)),
            Err(_) => return self.broken("no answer"),
        };
        loop {
            let response = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return self.broken("the stream of changes has ended"),
                Err(error) => return self.explain(&fault::read(&error)),
            };
            if response.compact_revision() != 0 {
                return Failure::Compacted;
            }
            if response.canceled() {
                return self.broken(response.cancel_reason());
            }
            let events: Option<Vec<_>> =
                response.events().iter().map(|event| read_event(event, self.cluster.prefix())).collect();
            match events {
                None => return self.broken("an event without a key"),
                // A sign of life.
                Some(events) if events.is_empty() => {}
                Some(events) => self.queue.put(events).await,
            }
        }
    }

    fn broken(&self, cause: &str) -> Failure {
        let error = self.cluster.error(Kind::System, Effect::Read, cause);
        Failure::Unavailable(error.next("watch again after the last revision that was heard"))
    }

    fn explain(&self, fault: &Fault) -> Failure {
        match fault {
            Fault::Compacted => Failure::Compacted,
            // More came at once than is taken: it is as if it were not known any more.
            Fault::Refused(refusal) if refusal.cause.contains("message length too large") => Failure::Compacted,
            Fault::Refused(refusal) => self.broken(&refusal.cause),
            Fault::Unsent(cause)
            | Fault::Distrusted(cause)
            | Fault::Forgotten(cause)
            | Fault::Declined(cause)
            | Fault::Lost(cause) => self.broken(cause),
        }
    }
}

fn read_event(event: &ClientEvent, prefix: &str) -> Option<Event> {
    let entry = entry::read(event.kv()?, prefix)?;
    let (key, revision) = (entry.key.clone(), entry.modified);
    Some(match event.event_type() {
        EventType::Put => Event { key, entry: Some(entry), revision },
        EventType::Delete => Event { key, entry: None, revision },
    })
}
