//! The thread that is there as long as there are operations: it keeps the lease, ends what is late, writes down how far long
//! ones are, and does later what the registry could not do at the time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::active::Active;
use super::core::Core;
use super::{collect, end, recover, worker};
use crate::operation::{Record, State};

/// How often it looks.
const TICK: Duration = Duration::from_secs(1);
/// So many operations are written down at each look, as how far they are.
const NOTES: usize = 64;
/// After so many ends, old ones are collected.
const COLLECTION: usize = 1000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tender {
    state: Mutex<Duties>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Duties {
    running: bool,
    /// Something is due before the next look.
    rung: bool,
    /// Operations whose end is not written down.
    owed: Vec<Arc<Active>>,
    /// Operations of which nobody knows whether they are any.
    doubtful: Vec<Record>,
}

impl Tender {
    fn lock(&self) -> MutexGuard<'_, Duties> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that it is there.
    pub(super) fn start(&self, core: &Arc<Core>) {
        let mut duties = self.lock();
        if duties.running {
            return;
        }
        duties.running = true;
        let core = Arc::clone(core);
        if let Err(error) = std::thread::Builder::new().name("tender".to_owned()).spawn(move || serve(&core)) {
            duties.running = false;
            tracing::error!("start a thread: {error}");
        }
    }

    /// Has it look now.
    pub(super) fn ring(&self) {
        self.lock().rung = true;
        self.bell.notify_all();
    }

    /// An end that has to be written down later.
    pub(super) fn owe(&self, core: &Arc<Core>, active: Arc<Active>) {
        self.lock().owed.push(active);
        self.start(core);
    }

    /// Something that may be an operation, though nobody was told of it.
    pub(super) fn doubt(&self, core: &Arc<Core>, record: Record) {
        self.lock().doubtful.push(record);
        self.start(core);
    }
}

fn serve(core: &Arc<Core>) {
    loop {
        look(core);
        let mut duties = core.tender.lock();
        let busy = {
            let work = core.work();
            !work.active.is_empty() || !core.recovery.is_done()
        };
        let idle = !busy && duties.owed.is_empty() && duties.doubtful.is_empty();
        if idle {
            duties.running = false;
            return;
        }
        if std::mem::take(&mut duties.rung) {
            continue;
        }
        let limit = until_deadline(core);
        let waited = core.tender.bell.wait_timeout(duties, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0.rung = false;
    }
}

fn until_deadline(core: &Core) -> Duration {
    let next = core.work().active.values().filter_map(|active| active.deadline).filter(|at| *at > Instant::now()).min();
    next.map_or(TICK, |next| next.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), TICK))
}

fn look(core: &Arc<Core>) {
    if core.lease.due().is_some_and(|due| due <= core.clock.elapsed())
        && let Err(failure) = core.lease.renew(&*core.registry, &*core.clock)
    {
        tracing::warn!("renew the daemon's lease: {}", crate::error::Error::from(failure));
    }
    if !core.recovery.is_done()
        && let Err(error) = recover::recover(core)
    {
        tracing::warn!("look for operations that are not at their end: {error}");
    }
    let active: Vec<_> = core.work().active.values().cloned().collect();
    let now = Instant::now();
    let mut notes = 0;
    for active in &active {
        if active.barred.is_none() && !core.lease.holds(active.lease, &*core.clock) {
            core.lose(active);
        } else if active.deadline.is_some_and(|deadline| deadline <= now) {
            let end = active.give_up((State::Cancelled, "its deadline was over before this was begun"), None);
            core.work().queue.forget(active);
            core.end_if(active, end);
        } else if notes < NOTES && end::note(core, active) == end::Noted::Yes {
            notes += 1;
        }
    }
    settle(core);
    let mut work = core.work();
    // Where a thread could not be started before.
    worker::call(core, &mut work);
    let full = work.ended >= COLLECTION;
    if full {
        work.ended = 0;
    }
    drop(work);
    if full {
        collect::start(core);
    }
}

/// Does what could not be done before.
fn settle(core: &Arc<Core>) {
    let (owed, doubtful) = {
        let mut duties = core.tender.lock();
        (std::mem::take(&mut duties.owed), std::mem::take(&mut duties.doubtful))
    };
    owed.iter().for_each(|active| end::end(core, active));
    for record in doubtful {
        if let Err(error) = recover::settle_doubt(core, &record) {
            tracing::warn!(operation = %record.id, "look whether it was written down: {error}");
            core.tender.lock().doubtful.push(record);
        }
    }
}
