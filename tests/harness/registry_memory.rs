//! A registry in memory, whose time is a parameter and whose answers can be taken away: for simulations and for what a real
//! one does once in a year.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use regen::error::{Error, Kind};
use regen::operation::Clock;
use regen::registry::{Answer, Applied, Entry, Event, Failure, Lease, Listing, Registry, Renewed, Transaction, Watch};
use rustix::event::{EventfdFlags, eventfd};

/// Time that goes when it is told to.
#[derive(Debug)]
pub struct Virtual(Mutex<(DateTime<Utc>, Duration)>);

impl Virtual {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((Utc::now(), Duration::from_secs(1000)))))
    }

    pub fn pass(&self, time: Duration) {
        let mut now = self.0.lock().unwrap();
        now.0 += time;
        now.1 += time;
    }

    /// Somebody sets the clock.
    pub fn set(&self, wall: DateTime<Utc>) {
        self.0.lock().unwrap().0 = wall;
    }
}

impl Clock for Virtual {
    fn wall(&self) -> DateTime<Utc> {
        self.0.lock().unwrap().0
    }

    fn elapsed(&self) -> Duration {
        self.0.lock().unwrap().1
    }
}

/// What goes wrong with a call that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is done, and the answer is lost.
    LostAnswer,
    /// It is not done, and that is not known.
    LostCall,
    /// Nobody answers.
    Away,
}

type Judge = Box<dyn FnMut(&Transaction) -> Fault + Send>;

#[derive(Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, (Entry, Option<Lease>)>,
    leases: BTreeMap<u64, (Duration, Duration)>,
    next_lease: u64,
    events: VecDeque<Event>,
    judge: Option<Judge>,
    away: bool,
    applied: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

/// See the module.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    /// Whether this way to it is cut.
    cut: Arc<AtomicBool>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { shared: Arc::default(), clock, cut: Arc::default() }
    }

    /// Another way to it.
    pub fn beside(&self) -> Self {
        Self { cut: Arc::default(), ..self.clone() }
    }

    /// Whoever comes this way never gets an answer any more.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    fn is_away(&self, state: &State) -> bool {
        state.away || self.cut.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.elapsed();
        let over: Vec<u64> =
            state.leases.iter().filter(|(_, (until, _))| *until <= now).map(|(lease, _)| *lease).collect();
        over.into_iter().for_each(|lease| end_lease(&mut state, Lease(lease)));
        state
    }

    /// From now on this decides what goes wrong.
    pub fn judge(&self, judge: impl FnMut(&Transaction) -> Fault + Send + 'static) {
        self.lock().judge = Some(Box::new(judge));
    }

    /// Nothing goes wrong from now on.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.judge = None;
        state.away = false;
    }

    /// Nobody answers anything.
    pub fn leave(&self) {
        self.lock().away = true;
    }

    /// All keys that begin so.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.lock().entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// How many transactions were committed.
    pub fn applied(&self) -> u64 {
        self.lock().applied
    }
}

fn end_lease(state: &mut State, lease: Lease) {
    state.leases.remove(&lease.0);
    let keys: Vec<_> =
        state.entries.iter().filter(|(_, (_, held))| *held == Some(lease)).map(|(key, _)| key.clone()).collect();
    if keys.is_empty() {
        return;
    }
    state.revision += 1;
    for key in keys {
        state.entries.remove(&key);
        let revision = state.revision;
        state.events.push_back(Event { key, entry: None, revision });
    }
}

fn away() -> Failure {
    Failure::Unavailable(Error::new(Kind::System, "reach the registry", "nobody answers"))
}

fn doubt() -> Failure {
    Failure::Indeterminate(Error::new(Kind::System, "write to the registry", "the answer was lost"))
}

fn apply(state: &mut State, transaction: &Transaction) -> Answer<Applied> {
    assert!(transaction.compares.len() <= 128 && transaction.puts.len() + transaction.deletes.len() <= 128);
    let names = transaction.puts.iter().map(|put| &put.key).chain(&transaction.deletes);
    let unique: std::collections::HashSet<_> = names.clone().collect();
    assert_eq!(unique.len(), names.count(), "a key is named twice");
    assert!(transaction.puts.iter().all(|put| put.value.len() <= regen::registry::VALUE_MAX));
    let modified = |key: &String| state.entries.get(key).map_or(0, |(entry, _)| entry.modified);
    if transaction.compares.iter().any(|compare| modified(&compare.key) != compare.modified) {
        return Ok(Applied::Refused);
    }
    if let Some(lost) = transaction.puts.iter().filter_map(|put| put.lease).find(|l| !state.leases.contains_key(&l.0)) {
        let cause = format!("lease {} is gone", lost.0);
        return Err(Failure::Refused(Error::new(Kind::NotFound, "write to the registry", cause)));
    }
    state.revision += 1;
    state.applied += 1;
    let revision = state.revision;
    for put in &transaction.puts {
        let created = state.entries.get(&put.key).map_or(revision, |(entry, _)| entry.created);
        let entry = Entry { key: put.key.clone(), value: put.value.clone(), created, modified: revision };
        state.events.push_back(Event { key: put.key.clone(), entry: Some(entry.clone()), revision });
        state.entries.insert(put.key.clone(), (entry, put.lease));
    }
    for key in &transaction.deletes {
        if state.entries.remove(key).is_some() {
            state.events.push_back(Event { key: key.clone(), entry: None, revision });
        }
    }
    Ok(Applied::Committed(revision))
}

impl Registry for Memory {
    fn identity(&self) -> Answer<String> {
        if self.is_away(&self.lock()) { Err(away()) } else { Ok("memory".to_owned()) }
    }

    fn get(&self, key: &str) -> Answer<Option<Entry>> {
        let state = self.lock();
        if self.is_away(&state) { Err(away()) } else { Ok(state.entries.get(key).map(|(entry, _)| entry.clone())) }
    }

    fn list(&self, prefix: &str) -> Answer<Listing> {
        let state = self.lock();
        if self.is_away(&state) {
            return Err(away());
        }
        let range = state.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(Listing { revision: state.revision, entries: range.map(|(_, (entry, _))| entry.clone()).collect() })
    }

    fn apply(&self, transaction: &Transaction) -> Answer<Applied> {
        let mut state = self.lock();
        if self.is_away(&state) {
            return Err(away());
        }
        let fault = state.judge.as_mut().map_or(Fault::None, |judge| judge(transaction));
        let answer = match fault {
            Fault::None | Fault::LostAnswer => apply(&mut state, transaction),
            Fault::LostCall => return Err(doubt()),
            Fault::Away => return Err(away()),
        };
        drop(state);
        self.shared.news.notify_all();
        if fault == Fault::LostAnswer { Err(doubt()) } else { answer }
    }

    fn grant(&self, time: Duration) -> Answer<Lease> {
        let now = self.clock.elapsed();
        let mut state = self.lock();
        if self.is_away(&state) {
            return Err(away());
        }
        state.next_lease += 1;
        let lease = state.next_lease;
        state.leases.insert(lease, (now + time, time));
        Ok(Lease(lease))
    }

    fn renew(&self, lease: Lease) -> Answer<Renewed> {
        let now = self.clock.elapsed();
        let mut state = self.lock();
        if self.is_away(&state) {
            return Err(away());
        }
        Ok(match state.leases.get_mut(&lease.0) {
            Some((until, time)) => {
                *until = now + *time;
                Renewed::Yes
            }
            None => Renewed::Gone,
        })
    }

    fn revoke(&self, lease: Lease) -> Answer<()> {
        end_lease(&mut self.lock(), lease);
        Ok(())
    }

    fn watch(&self, prefix: &str, after: u64) -> Answer<Box<dyn Watch>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Ok(Box::new(Watcher { registry: self.clone(), prefix: prefix.to_owned(), after, bell }))
    }
}

/// Its bell never rings: who waits for it waits in [`Watch::next`].
#[derive(Debug)]
struct Watcher {
    registry: Memory,
    prefix: String,
    after: u64,
    bell: OwnedFd,
}

impl Watch for Watcher {
    fn next(&mut self, limit: Option<Duration>) -> Answer<Vec<Event>> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.registry.lock();
        loop {
            if self.registry.is_away(&state) {
                return Err(away());
            }
            let new: Vec<_> = state.events.iter().filter(|event| event.revision > self.after).cloned().collect();
            self.after = state.revision;
            let ours: Vec<_> = new.into_iter().filter(|event| event.key.starts_with(&self.prefix)).collect();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !ours.is_empty() || left.is_some_and(|left| left.is_zero()) {
                return Ok(ours);
            }
            let step = left.unwrap_or(Duration::from_millis(50)).min(Duration::from_millis(50));
            state = self.registry.shared.news.wait_timeout(state, step).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
