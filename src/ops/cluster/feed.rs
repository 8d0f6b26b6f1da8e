//! The thread that hears of other nodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Pauses, Shared};
use crate::error::{Context, Error};
use crate::node::{MEMBERS, NODES, node_key};
use crate::registry::{Answer, Event, Failure, Watch};

/// One of the prefixes.
#[derive(Debug)]
struct Source {
    prefix: &'static str,
    /// Of which registry, and the last revision that was heard; none if it has to be listed.
    heard: Option<(String, u64)>,
    watch: Option<Box<dyn Watch>>,
}

impl Source {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, heard: None, watch: None }
    }

    /// Watches from where it stopped, or lists.
    fn connect(&mut self, shared: &Shared, identity: &str) -> Answer<()> {
        if self.watch.is_some() {
            return Ok(());
        }
        // Revisions of another registry, or of one that was made anew, say nothing.
        let known = self.heard.take_if(|(registry, _)| registry == identity);
        let (registry, after) = match known {
            Some(known) => known,
            None => {
                let listing = shared.registry.list(self.prefix)?;
                shared.directory.reset(self.prefix, &listing);
                (identity.to_owned(), listing.revision)
            }
        };
        match shared.registry.watch(self.prefix, after) {
            Ok(watch) => self.watch = Some(watch),
            // The next time it is listed.
            Err(Failure::Compacted) => return self.connect(shared, identity),
            Err(failure) => {
                self.heard = Some((registry, after));
                return Err(failure);
            }
        }
        self.heard = Some((registry, after));
        Ok(())
    }

    /// Takes what has come, without waiting.
    fn hear(&mut self, shared: &Shared) -> Answer<()> {
        let Some(watch) = &mut self.watch else { return Ok(()) };
        match watch.next(Some(Duration::ZERO)) {
            Ok(events) => {
                if let (Some(last), Some((_, heard))) = (events.last(), &mut self.heard) {
                    *heard = last.revision;
                    shared.directory.apply(&events);
                    watch_own(shared, &events);
                }
                Ok(())
            }
            Err(failure) => {
                self.watch = None;
                if matches!(failure, Failure::Compacted) {
                    self.heard = None;
                }
                Err(failure)
            }
        }
    }
}

/// Tells the other thread if this node's own record went, which it would find out later.
fn watch_own(shared: &Shared, events: &[Event]) {
    let own = node_key(&shared.node().name);
    if events.iter().any(|event| event.key == own && event.entry.is_none()) {
        shared.is_missed.store(true, Ordering::Release);
        shared.membership.ring();
    }
}

/// Feeds the directory until the end.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut sources = [Source::new(NODES), Source::new(MEMBERS)];
    let mut pauses = Pauses::default();
    while !shared.is_ended() {
        let outcome = connect(&mut sources, shared).and_then(|()| {
            shared.note(&shared.hears, true);
            pauses.reset();
            hear(&mut sources, shared)
        });
        match outcome {
            Ok(()) | Err(Failure::Compacted) => {}
            Err(failure) => {
                shared.note(&shared.hears, false);
                let pause = pauses.next();
                tracing::warn!("other nodes are not heard, the next try is in {pause:?}: {}", Error::from(failure));
                // Only its end is told by it; a signal makes the pause shorter.
                let _ = shared.feed.wait(Some(pause));
            }
        }
    }
}

fn connect(sources: &mut [Source], shared: &Shared) -> Answer<()> {
    if sources.iter().all(|source| source.watch.is_some()) {
        return Ok(());
    }
    let identity = shared.registry.identity()?;
    sources.iter_mut().try_for_each(|source| source.connect(shared, &identity))
}

/// Waits for something to come, and takes it.
fn hear(sources: &mut [Source], shared: &Shared) -> Answer<()> {
    let ready: Vec<bool> = {
        let watches = sources.iter().filter_map(|source| source.watch.as_ref());
        let bells = watches.map(|watch| PollFd::from_borrowed_fd(watch.bell(), PollFlags::IN));
        let mut polled: Vec<_> = bells.chain([PollFd::new(&shared.feed, PollFlags::IN)]).collect();
        match poll(&mut polled, None::<&Timespec>) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "wait for other nodes").map_err(Failure::Unavailable),
        }
        polled.iter().map(|polled| !polled.revents().is_empty()).collect()
    };
    for (source, ready) in sources.iter_mut().zip(ready) {
        if ready {
            source.hear(shared)?;
        }
    }
    Ok(())
}
