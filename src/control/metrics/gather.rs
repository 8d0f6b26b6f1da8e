//! What is looked up when somebody asks for the page.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::super::server::Gauge;
use crate::error::Result;
use crate::metrics::{self, Clones, Process, Rings, Snapshot};
use crate::ops::operation::Engine;
use crate::ops::template::Numbers;
use crate::ops::{service, tally, template};
use crate::ring::Ring;
use crate::store::Store;

/// So many rings are looked at, and so long; the page says if that were not all.
const RINGS: usize = 10_000;
const LOOKING: Duration = Duration::from_secs(1);
/// So many owners are told apart.
const OWNERS: usize = 100;
/// Rings are looked at anew when so many times as long has passed as it took, or this.
const REST: u32 = 50;
const FRESH: Duration = Duration::from_secs(1);

/// Where things are looked up.
#[derive(Debug)]
pub struct Sources {
    store: PathBuf,
    gauge: Gauge,
    started: SystemTime,
    services: Option<service::Manager>,
    templates: Option<template::Manager>,
    engine: Option<Engine>,
    rings: Option<Seen>,
    clones: BTreeMap<String, Carried>,
}

/// Rings, when they were looked at.
#[derive(Debug, Clone)]
struct Seen {
    until: Instant,
    rings: Vec<(String, Rings)>,
    complete: bool,
}

/// A template's clones. Each keeper counts its own: those of keepers before are carried along.
#[derive(Debug, Default)]
struct Carried {
    generation: u64,
    before: Clones,
    now: Clones,
}

impl Sources {
    /// A store, which need not exist; connections; when this program began to count.
    #[must_use]
    pub fn new(store: PathBuf, gauge: Gauge, started: SystemTime) -> Self {
        Self {
            store,
            gauge,
            started,
            services: None,
            templates: None,
            engine: None,
            rings: None,
            clones: BTreeMap::new(),
        }
    }

    /// With services and templates, if they are looked after.
    #[must_use]
    pub fn with(mut self, services: Option<service::Manager>, templates: Option<template::Manager>) -> Self {
        (self.services, self.templates) = (services, templates);
        self
    }

    /// With operations, if there are any.
    #[must_use]
    pub fn with_engine(mut self, engine: Option<Engine>) -> Self {
        self.engine = engine;
        self
    }

    /// The page; `None` if it could not be written.
    pub(super) fn page(&mut self) -> Option<String> {
        metrics::page(self.look()).ok()
    }

    fn look(&mut self) -> Snapshot {
        let store = Store::open_existing(&self.store).ok().flatten();
        let tally = store.as_ref().map(tally::read).unwrap_or_default();
        let seen = self.look_at_rings(store.as_ref());
        let mut snapshot = Snapshot {
            process: self.process(),
            connections: self.gauge.connections(),
            rings: seen.rings,
            rings_complete: seen.complete,
            work: self.engine.as_ref().map(Engine::backlog).unwrap_or_default(),
            ..Snapshot::default()
        };
        let listed = self.services.as_ref().map(service::Manager::list).unwrap_or_default();
        let of = |state| listed.iter().filter(|one| one.state == state).count();
        snapshot.services = service::State::ALL.map(|state| (state.word(), number(of(state)))).to_vec();
        let listed = self.templates.as_ref().map(template::Manager::numbers).unwrap_or_default();
        let of = |state| listed.iter().filter(|one| one.state == state).count();
        snapshot.templates_by_state = template::State::ALL.map(|state| (state.word(), number(of(state)))).to_vec();
        self.clones.retain(|name, _| listed.iter().any(|one| one.name.as_str() == name));
        for one in listed {
            let name = one.name.to_string();
            let mut clones = self.clones.entry(name.clone()).or_default().take(&one);
            tally.clones.get(&name).into_iter().for_each(|restored| clones.add(restored));
            snapshot.templates.push((
                name,
                metrics::Template {
                    sandboxes: one.sandboxes.into(),
                    wanted: one.wanted.into(),
                    waiting: one.waiting.into(),
                    restarts: one.restarts,
                    clones,
                },
            ));
        }
        snapshot.tally = tally;
        snapshot
    }

    fn process(&self) -> Process {
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let fds = std::fs::read_dir("/proc/self/fd").ok();
        Process {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: started.as_secs_f64(),
            resident: resident(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()),
            // Without that of the directory that is read.
            open_fds: fds.map(|fds| number(fds.count().saturating_sub(1))),
        }
    }

    /// Rings of all owners. What cannot be read is not counted: `ring ls` says why.
    fn look_at_rings(&mut self, store: Option<&Store>) -> Seen {
        let began = Instant::now();
        if let Some(seen) = self.rings.as_ref().filter(|seen| began < seen.until) {
            return seen.clone();
        }
        let (mut owners, mut complete) = (BTreeMap::new(), true);
        if let Some(store) = store {
            complete = add_up(store, began + LOOKING, &mut owners).unwrap_or(false);
        }
        let until = Instant::now() + FRESH.max(began.elapsed() * REST);
        let seen = Seen { until, rings: owners.into_iter().collect(), complete };
        self.rings = Some(seen.clone());
        seen
    }
}

/// Whether those were all.
fn add_up(store: &Store, deadline: Instant, owners: &mut BTreeMap<String, Rings>) -> Result<bool> {
    let (rings, mut complete) = Ring::list_some(store, RINGS)?;
    for ring in rings {
        if Instant::now() > deadline {
            return Ok(false);
        }
        let state = match ring.unless_gone(Ring::read) {
            None => continue,
            Some(Ok(state)) => state,
            Some(Err(_)) => {
                complete = false;
                continue;
            }
        };
        let owner = ring.name().owner.as_str();
        let room = owners.len() < OWNERS || owners.contains_key(owner);
        let sum = owners.entry(if room { owner } else { metrics::OTHER }.to_owned()).or_default();
        sum.rings += 1;
        sum.entries += number(state.entries.len());
        sum.bytes += state.bytes();
    }
    Ok(complete)
}

impl Carried {
    /// Takes what a keeper says, and gives the sum of all.
    fn take(&mut self, now: &Numbers) -> Clones {
        if let Some(said) = &now.clones {
            if now.generation != self.generation {
                let last = std::mem::take(&mut self.now);
                self.before.add(&last);
                self.generation = now.generation;
            }
            self.now = said.clone();
        }
        let mut sum = self.before.clone();
        sum.add(&self.now);
        sum
    }
}

/// Bytes in memory, as `/proc/PID/status` says (proc(5)).
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(generation: u64, failed: Option<u64>) -> Numbers {
        Numbers {
            name: "web".parse().unwrap(),
            state: template::State::Ready,
            generation,
            sandboxes: 0,
            wanted: 0,
            waiting: 0,
            restarts: 0,
            clones: failed.map(|failed| Clones { failed, ..Clones::default() }),
        }
    }

    #[test]
    fn what_earlier_keepers_have_counted_is_kept() {
        let mut carried = Carried::default();
        let mut take = |generation, failed| carried.take(&said(generation, failed)).failed;
        assert_eq!(take(1, Some(2)), 2);
        assert_eq!(take(1, Some(5)), 5);
        assert_eq!(take(2, None), 5, "none is ready");
        assert_eq!(take(2, Some(0)), 5);
        assert_eq!(take(2, Some(3)), 8);
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(resident("Name:\tregen\nVmRSS:\t    1234 kB\nThreads:\t1\n"), Some(1234 * 1024));
        assert_eq!(resident("Name:\tregen\n"), None);
    }
}
