//! All keepers at once: one place that sleeps until one of them says something.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::error::{Context, Kind, Result};
use crate::ids::ContainerId;
use crate::service::keeper::Keeper;
use crate::service::message::{Command, Status};
use crate::sys::process::Process;

/// What wakes the one who waits, beside keepers.
const BELL: u64 = 0;
/// How many are heard at once.
const ROUND: usize = 64;

/// The connections to keepers that are watched.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: OwnedFd,
    bell: OwnedFd,
    watched: Mutex<HashMap<u64, Watched>>,
    next: AtomicU64,
}

/// Whoever is waited for.
#[derive(Debug, Clone)]
enum Watched {
    Keeper(Arc<Keeper>),
    /// The first process of an instance without a keeper.
    Orphan(ContainerId, Arc<Process>),
}

/// Something that happened to an instance.
#[derive(Debug)]
pub(super) struct News {
    pub instance: ContainerId,
    pub heard: Heard,
}

/// What was heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// Its keeper says how it is.
    Status(Box<Status>),
    /// Its keeper is gone.
    Gone,
    /// It had no keeper, and has ended.
    Ended,
}

impl Watch {
    /// Nobody is watched yet.
    pub(super) fn new() -> Result<Self> {
        let operation = || "watch keepers";
        let epoll = epoll::create(CreateFlags::CLOEXEC).context(operation)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(operation)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN).context(operation)?;
        Ok(Self { epoll, bell, watched: Mutex::default(), next: AtomicU64::new(BELL + 1) })
    }

    /// From now on this one is heard. What it says first is how it is.
    pub(super) fn add(&self, keeper: Keeper) -> Result<Arc<Keeper>> {
        keeper.tell(&Command::Watch)?;
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let keeper = Arc::new(keeper);
        // Known before it can be heard.
        self.lock().insert(token, Watched::Keeper(Arc::clone(&keeper)));
        let added = epoll::add(&self.epoll, &*keeper, EventData::new_u64(token), EventFlags::IN);
        if added.is_err() {
            self.lock().remove(&token);
        }
        added.context(|| "watch a keeper")?;
        Ok(keeper)
    }

    /// From now on the end of an instance without a keeper is heard.
    pub(super) fn add_orphan(&self, instance: &ContainerId, process: Process) -> Result<()> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let process = Arc::new(process);
        self.lock().insert(token, Watched::Orphan(instance.clone(), Arc::clone(&process)));
        let added = epoll::add(&self.epoll, &*process, EventData::new_u64(token), EventFlags::IN);
        if added.is_err() {
            self.lock().remove(&token);
        }
        added.context(|| format!("watch process {}", process.pid()))
    }

    /// Wakes whoever waits.
    pub(super) fn ring(&self) {
        // The only failure is that it is rung already, 2^64 times.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Sleeps until somebody says something, the bell rings, or a time comes.
    pub(super) fn wait(&self, until: Option<Instant>) -> Result<Vec<News>> {
        let limit = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        let mut space = [MaybeUninit::<Event>::uninit(); ROUND];
        let events = match epoll::wait(&self.epoll, &mut space, limit.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno).context(|| "wait for keepers"),
        };
        let tokens: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
        if tokens.contains(&BELL) {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
        Ok(tokens.into_iter().filter(|token| *token != BELL).filter_map(|token| self.hear(token)).collect())
    }

    fn hear(&self, token: u64) -> Option<News> {
        // The lock is given back before anything is done.
        let watched = self.lock().get(&token).cloned()?;
        let keeper = match watched {
            Watched::Keeper(keeper) => keeper,
            Watched::Orphan(instance, process) => return Some(self.hear_end(token, instance, &process)),
        };
        let heard = match keeper.next() {
            Ok(Some(answer)) => Heard::Status(Box::new(Keeper::status(answer)?)),
            Ok(None) => Heard::Gone,
            // A keeper of another version may say more than is understood here.
            Err(error) if error.kind() == Kind::Damaged => {
                tracing::debug!("{error}");
                return None;
            }
            Err(error) => {
                tracing::warn!("{error}");
                Heard::Gone
            }
        };
        if matches!(heard, Heard::Gone) {
            // It is closed with its last owner, and is out of the set then; until that it must not wake us.
            let _ = epoll::delete(&self.epoll, &*keeper);
            self.lock().remove(&token);
        }
        Some(News { instance: keeper.instance().clone(), heard })
    }

    fn hear_end(&self, token: u64, instance: ContainerId, process: &Process) -> News {
        let _ = epoll::delete(&self.epoll, process);
        self.lock().remove(&token);
        News { instance, heard: Heard::Ended }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rounded up: who wakes too early would go back to sleep for nothing.
fn timespec(duration: Duration) -> Timespec {
    let rounded = duration + Duration::from_nanos(999_999);
    let milliseconds = rounded.as_millis();
    let seconds = i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: i64::try_from(milliseconds % 1000).unwrap_or(0) * 1_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::channel::Channel;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn watched(watch: &Watch, name: &str) -> Channel {
        let (near, far) = Channel::pair().unwrap();
        watch.add(Keeper::at(near, name.parse().unwrap())).unwrap();
        assert_eq!(far.receive().unwrap().unwrap().bytes, br#"{"command":"watch"}"#);
        far
    }

    fn heard(watch: &Watch) -> Vec<String> {
        let news = watch.wait(Some(Instant::now() + PATIENCE)).unwrap();
        news.into_iter().map(|news| format!("{} {:?}", news.instance, matches!(news.heard, Heard::Gone))).collect()
    }

    #[test]
    fn the_end_of_a_keeper_is_heard_once() {
        let watch = Watch::new().unwrap();
        let (one, _other) = (watched(&watch, "one"), watched(&watch, "other"));
        drop(one);
        assert_eq!(heard(&watch), ["one true"]);
        assert_eq!(watch.wait(Some(Instant::now())).unwrap().len(), 0);
        assert_eq!(watch.lock().len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_passed_over() {
        let watch = Watch::new().unwrap();
        let far = watched(&watch, "one");
        far.send(b"{\"reply\":\"later\"}", &[]).unwrap();
        far.send(b"{\"reply\":\"done\"}", &[]).unwrap();
        assert_eq!(heard(&watch), [""; 0]);
        assert_eq!(heard(&watch), [""; 0]);
        drop(far);
        assert_eq!(heard(&watch), ["one true"]);
    }

    #[test]
    fn the_bell_wakes_and_a_time_ends_the_wait() {
        let watch = Watch::new().unwrap();
        watch.ring();
        assert!(watch.wait(None).unwrap().is_empty());
        let until = Instant::now() + Duration::from_millis(5);
        assert!(watch.wait(Some(until)).unwrap().is_empty());
        assert!(Instant::now() >= until);
    }
}
