//! A node's daemon: what it has in its memory, and what it does from time to time.

use std::collections::BTreeMap;
use std::sync::Arc;

use regen::ids::NodeName;
use regen::operation::book::{Book, Doubt};
use regen::operation::course::{Afterwards, Course, Now};
use regen::operation::fence::Token;
use regen::operation::lane::{Queue, Share, Work};
use regen::operation::lease::Keeper;
use regen::operation::marker::{Claim, Markers};
use regen::operation::queue::{Door, Load};
use regen::operation::{Clock, OperationId, Record, State, Target};
use regen::ops::operation::Limits;

use crate::event::{Event, Life, Pace};
use crate::membership::Joined;
use crate::registry::Wire;
use crate::simulation::{NodeClock, Simulation};
use crate::work::Running;

/// An operation, as the queue knows it.
#[derive(Debug)]
pub struct Job {
    pub id: OperationId,
    pub targets: Vec<Target>,
}

impl Work for Job {
    fn targets(&self) -> &[Target] {
        &self.targets
    }
}

/// An operation that is not at its end.
#[derive(Debug)]
pub struct Active {
    pub record: Record,
    pub job: Arc<Job>,
    pub parameters: Arc<serde_json::Value>,
    pub token: Token,
    /// The number of the lease that its markers hang on.
    pub lease: u64,
    pub claim: Claim,
    pub barred: Option<String>,
    pub course: Course,
    /// What threads are at.
    pub running: BTreeMap<usize, Running>,
    pub is_cancelled: bool,
    /// So long what is sent for it is on its way.
    pub held: u64,
    written: (State, usize),
}

/// What dies with it.
#[derive(Debug)]
pub struct Daemon {
    pub markers: Markers,
    pub keeper: Keeper,
    pub joined: Option<Joined>,
    pub recovered: bool,
    tending: bool,
    pub active: BTreeMap<OperationId, Active>,
    pub queue: Queue<Job>,
    /// Threads that carry something out.
    pub under_way: usize,
    /// When it looks into its queue again.
    pub wakes: Option<u64>,
    owed: Vec<OperationId>,
    pub doubtful: Vec<Record>,
}

impl Default for Daemon {
    fn default() -> Self {
        Self::new(&"nobody".parse().unwrap())
    }
}

/// All that one acts with who acts for a daemon.
#[derive(Debug)]
pub struct Hands<'a> {
    pub wire: Wire<'a>,
    pub clock: NodeClock<'a>,
    pub name: &'a NodeName,
}

impl Hands<'_> {
    pub fn book<'a>(&'a self, daemon: &'a Daemon) -> Book<'a> {
        let (registry, node, clock) = (&self.wire, self.name, &self.clock);
        Book { registry, node, clock, markers: &daemon.markers, lease: &daemon.keeper }
    }
}

impl Daemon {
    pub fn new(name: &NodeName) -> Self {
        let limits = Limits::default();
        Self {
            markers: Markers::default(),
            keeper: Keeper::default(),
            joined: None,
            recovered: false,
            tending: false,
            active: BTreeMap::new(),
            queue: Queue::new(name.clone(), limits.here, limits.elsewhere),
            under_way: 0,
            wakes: None,
            owed: Vec::new(),
            doubtful: Vec::new(),
        }
    }

    pub fn is_busy(&self) -> bool {
        !self.active.is_empty() || !self.owed.is_empty() || !self.doubtful.is_empty()
    }

    pub fn load(&self) -> Load {
        let targets = self.active.values().map(|active| active.job.targets.len()).sum();
        Load { operations: self.active.len(), targets, door: Door::Open }
    }

    pub fn take_up(&mut self, active: Active) {
        self.queue.add(Share::divide(&active.job));
        self.active.insert(active.record.id, active);
    }
}

impl Active {
    pub fn new(record: Record, token: u64, (lease, claim): (u64, Claim), before: Afterwards) -> Self {
        Self {
            job: Arc::new(Job { id: record.id, targets: record.targets.clone() }),
            parameters: Arc::new(record.parameters.clone()),
            token: Token { registry: "simulated".to_owned(), number: token },
            lease,
            claim,
            barred: None,
            course: Course::new(record.targets.len(), before),
            running: BTreeMap::new(),
            is_cancelled: false,
            held: 0,
            written: (State::Queued, 0),
            record,
        }
    }

    pub fn give_up(&mut self, why: (State, &str), operation: Option<State>) -> Now {
        let now = self.course.give_up(why, operation);
        self.is_cancelled |= now.is_some();
        now.unwrap_or(Now::Nothing)
    }

    fn head(&self) -> Record {
        let (state, counts) = (self.course.state, self.course.counts);
        Record { state, counts, started: self.course.started, token: Some(self.token.number), ..self.record.clone() }
    }
}

impl Simulation {
    pub fn hands(&self, node: usize) -> Hands<'_> {
        Hands { wire: Wire { simulation: self, node }, clock: self.clock(node), name: &self.nodes[node].name }
    }

    /// What is done every ten seconds, and every second while there are operations.
    pub fn tend(&self, life: Life, pace: Pace) {
        let node = life.node;
        let mut daemon = self.nodes[node].daemon.lock().unwrap();
        match pace {
            Pace::Idle => self.later(self.within(9500..10_500), Event::Tend { life, pace }),
            Pace::Busy => daemon.tending = false,
            Pace::Once => {}
        }
        self.attend(node, &mut daemon);
        if daemon.is_busy() || !daemon.recovered {
            self.look(node, &mut daemon);
        }
        self.watch_over(life, &mut daemon);
    }

    /// As the engine's tender does.
    fn look(&self, node: usize, daemon: &mut Daemon) {
        let hands = self.hands(node);
        if daemon.keeper.due().is_some_and(|due| due <= hands.clock.elapsed()) {
            // It is tried again soon.
            let _ = daemon.keeper.renew(&hands.wire, &hands.clock);
        }
        if !daemon.recovered {
            daemon.recovered = self.recover(node, daemon).is_ok();
        }
        let lost = |active: &&Active| active.barred.is_none() && !daemon.keeper.holds(active.lease, &hands.clock);
        let lost: Vec<_> = daemon.active.values().filter(lost).map(|active| active.record.id).collect();
        lost.into_iter().for_each(|id| self.lose(node, daemon, id));
        self.note(node, daemon);
        for id in std::mem::take(&mut daemon.owed) {
            self.end(node, daemon, id);
        }
        for record in std::mem::take(&mut daemon.doubtful) {
            if self.settle_doubt(node, daemon, &record).is_err() {
                daemon.doubtful.push(record);
            }
        }
        self.dispatch(node, daemon);
    }

    pub fn watch_over(&self, life: Life, daemon: &mut Daemon) {
        if !daemon.tending && (daemon.is_busy() || !daemon.recovered || daemon.joined.is_none()) {
            daemon.tending = true;
            self.later(1000, Event::Tend { life, pace: Pace::Busy });
        }
    }

    /// What is not begun never is.
    pub fn lose(&self, node: usize, daemon: &mut Daemon, id: OperationId) {
        let reason = "the daemon lost its lease before this was begun";
        let Some(active) = daemon.active.get_mut(&id) else { return };
        self.ledger.lock().unwrap().leases_lost += u64::from(!active.is_cancelled);
        let now = active.give_up((State::Cancelled, reason), Some(State::Unknown));
        daemon.queue.forget(&active.job);
        self.end_if(node, daemon, (id, now));
    }

    pub fn cancel(&self, life: Life, id: OperationId) {
        let mut daemon = self.nodes[life.node].daemon.lock().unwrap();
        let Some(active) = daemon.active.get_mut(&id) else { return };
        self.ledger.lock().unwrap().cancelled += 1;
        let now = active.give_up((State::Cancelled, "it was cancelled"), None);
        let job = Arc::clone(&active.job);
        daemon.queue.forget(&job);
        self.end_if(life.node, &mut daemon, (id, now));
    }

    /// Writes down how far operations are.
    fn note(&self, node: usize, daemon: &mut Daemon) {
        let hands = self.hands(node);
        let mut active = std::mem::take(&mut daemon.active);
        for active in active.values_mut() {
            let mark = (active.course.state, active.course.counts.done());
            let head = active.head();
            if !active.course.is_ending() && active.written != mark
                // What could not be written is written with the next.
                && let Ok(true) = hands.book(daemon).note(&head, &mut active.claim)
            {
                active.written = mark;
            }
        }
        daemon.active = active;
    }

    pub fn end_if(&self, node: usize, daemon: &mut Daemon, (id, now): (OperationId, Now)) {
        match now {
            Now::Nothing => {}
            Now::End => self.end(node, daemon, id),
        }
    }

    fn end(&self, node: usize, daemon: &mut Daemon, id: OperationId) {
        let Some(mut active) = daemon.active.remove(&id) else { return };
        let hands = self.hands(node);
        let (state, error, results) = active.course.last_words();
        let record = Record { state, error, results, ended: Some(hands.clock.wall()), ..active.head() };
        match hands.book(daemon).end(&record, &mut active.claim) {
            Ok(_) => {
                daemon.queue.forget(&active.job);
                self.ledger.lock().unwrap().ends.insert(id, self.now());
            }
            Err(_) => {
                daemon.active.insert(id, active);
                daemon.owed.push(id);
            }
        }
    }

    /// What the daemon before has left.
    fn recover(&self, node: usize, daemon: &mut Daemon) -> regen::error::Result<()> {
        let hands = self.hands(node);
        for (record, modified) in hands.book(daemon).unfinished(&|id| daemon.active.contains_key(id))? {
            let reclaimed = hands.book(daemon).reclaim(&record, modified)?;
            let token = reclaimed.claim.token;
            let mut active = Active::new(record, token, (reclaimed.lease, reclaimed.claim), Afterwards::Unknown);
            active.barred = reclaimed.barred;
            let mut ledger = self.ledger.lock().unwrap();
            ledger.taken_up += 1;
            ledger.barred += u64::from(active.barred.is_some());
            drop(ledger);
            daemon.take_up(active);
        }
        daemon.markers.clear(&hands.wire, hands.name)?;
        Ok(())
    }

    /// An operation of which its client was not told whether it is one: it is not begun.
    fn settle_doubt(&self, node: usize, daemon: &mut Daemon, record: &Record) -> regen::error::Result<()> {
        let hands = self.hands(node);
        let reason = "the registry did not answer whether it took it, so it was not begun";
        let is_known = |id: &OperationId| daemon.active.contains_key(id);
        let modified = match hands.book(daemon).entomb(record, reason, &is_known)? {
            Doubt::Over => return Ok(()),
            Doubt::There(modified) => modified,
        };
        let reclaimed = hands.book(daemon).reclaim(record, modified)?;
        let (token, claim) = (reclaimed.claim.token, (reclaimed.lease, reclaimed.claim));
        let mut active = Active::new(record.clone(), token, claim, Afterwards::NotDone);
        let now = active.give_up((State::Cancelled, reason), None);
        daemon.active.insert(record.id, active);
        self.end_if(node, daemon, (record.id, now));
        Ok(())
    }
}
