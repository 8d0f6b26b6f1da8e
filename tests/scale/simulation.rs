//! The nodes, the time, and what happens in its order.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use regen::ids::NodeName;
use regen::node::Directory;
use regen::operation::Clock;
use regen::service::roster::Member;

use crate::daemon::Daemon;
use crate::dice::Dice;
use crate::event::{Event, Life, Message, Queue};
use crate::host::Host;
use crate::ledger::Ledger;
use crate::plan::{AWAY, Plan, REST};
use crate::registry::Store;
use crate::request::{Request, name};

#[derive(Debug)]
pub struct Node {
    pub name: NodeName,
    pub daemon: Mutex<Daemon>,
    pub host: Mutex<Host>,
    pub state: Mutex<Condition>,
}

/// How a node fares.
#[derive(Debug)]
pub struct Condition {
    pub up: bool,
    pub incarnation: u32,
    pub cut_until: u64,
    /// It does nothing until then (stopped, swapped out, a machine that hangs).
    pub asleep_until: u64,
    /// It does not come back.
    pub gone: bool,
    /// Its clock's speed, in millionths.
    rate: u64,
    /// What its clock said at the start.
    base: u64,
    /// How wrong its time of day is, in milliseconds.
    pub wrong: i64,
}

#[derive(Debug)]
pub struct Simulation {
    pub plan: Plan,
    pub nodes: Vec<Node>,
    pub store: Mutex<Store>,
    pub ledger: Mutex<Ledger>,
    /// What every node hears of the others, a second later.
    pub directory: Directory<Member>,
    queue: Mutex<Queue>,
    dice: Mutex<Dice>,
    now: AtomicU64,
    /// The beginning, where only the time since then matters.
    epoch: Instant,
    /// How many submissions are under way at the moment: one, and one that came between.
    depth: AtomicU64,
    /// What fences are kept in, until this goes.
    _directory: tempfile::TempDir,
}

/// What a node's clocks say.
#[derive(Debug)]
pub struct NodeClock<'a> {
    pub simulation: &'a Simulation,
    pub node: usize,
}

impl Clock for NodeClock<'_> {
    fn wall(&self) -> DateTime<Utc> {
        let wrong = self.simulation.nodes[self.node].state.lock().unwrap().wrong;
        let now = i64::try_from(self.simulation.now()).unwrap();
        DateTime::UNIX_EPOCH + TimeDelta::milliseconds(1_800_000_000_000 + now + wrong)
    }

    fn elapsed(&self) -> Duration {
        let state = self.simulation.nodes[self.node].state.lock().unwrap();
        Duration::from_millis(state.base + self.simulation.now() * state.rate / 1_000_000)
    }
}

impl Simulation {
    pub fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let memory = std::path::Path::new("/dev/shm");
        // Nothing is asked about power cuts here: where there is a file system in memory, that will do.
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let node = |number| Node {
            name: name(number).parse().unwrap(),
            daemon: Mutex::new(Daemon::new(&name(number).parse().unwrap())),
            host: Mutex::new(Host::new(directory.path().join(name(number)))),
            state: Mutex::new(Condition {
                up: true,
                incarnation: 0,
                cut_until: 0,
                asleep_until: 0,
                gone: false,
                rate: dice.within(950_000..1_050_000),
                base: dice.within(0..10_000_000_000),
                wrong: i64::try_from(dice.within(0..7_200_000)).unwrap() - 3_600_000,
            }),
        };
        let nodes: Vec<_> = (0..plan.nodes).map(node).collect();
        let simulation = Self {
            nodes,
            store: Mutex::default(),
            ledger: Mutex::default(),
            directory: Directory::new("observer".parse().unwrap()),
            queue: Mutex::default(),
            dice: Mutex::new(dice),
            now: AtomicU64::new(0),
            epoch: Instant::now(),
            depth: AtomicU64::new(0),
            _directory: directory,
            plan,
        };
        simulation.prepare();
        simulation
    }

    fn prepare(&self) {
        let Plan { nodes, time, requests, wide, outdated, .. } = self.plan;
        for node in 0..nodes {
            // They were not all started at once.
            self.later(self.within(0..10_000), Event::Start { node });
        }
        (0..requests).for_each(|_| self.prepare_request());
        for number in 0..wide {
            let node = self.below(self.plan.asked);
            let request = Request::all(nodes, 10 + usize::try_from(number).unwrap());
            self.later(12_000 + number * time / wide.max(1), Event::Submit { node, request });
        }
        (0..outdated).for_each(|number| self.prepare_outdated(number));
        self.later(15_000, Event::Fault);
        self.later(self.plan.leaves(), Event::Leave);
        self.later(1000, Event::Feed);
        self.later(30_000, Event::Mourn);
    }

    fn prepare_request(&self) {
        let Plan { nodes, time, hot, asked, .. } = self.plan;
        let few = match self.within(0..100) {
            0..80 => 1,
            80..97 => self.within(2..8),
            _ => self.within(40..400),
        };
        let (node, request) = {
            let mut dice = self.dice.lock().unwrap();
            let end = if few < 40 { hot } else { nodes };
            let mut about: Vec<_> = (0..few).map(|_| dice.below(end)).collect();
            about.sort_unstable();
            about.dedup();
            (dice.below(asked), Request::draw(&mut dice, &about))
        };
        let at = self.within(10_000..time);
        if request.key.is_some() {
            // Somebody asks once more, elsewhere.
            let node = self.below(asked);
            self.later(at + self.within(0..20_000), Event::Submit { node, request: request.clone() });
        }
        self.later(at, Event::Submit { node, request });
    }

    /// A daemon sends a task and hangs; its lease ends; somebody else does the same; then the task arrives.
    fn prepare_outdated(&self, number: usize) {
        let (nodes, start) = (self.plan.nodes, self.plan.leaves() + AWAY + 5000);
        let [first, second, target] = [1, 2, 3].map(|place| nodes - 3 * number - place);
        self.later(start, Event::Submit { node: first, request: Request::pin(target, 60_000) });
        self.later(start + 10, Event::Hang { node: first, time: 50_000 });
        self.later(start + 40_000, Event::Submit { node: second, request: Request::pin(target, 0) });
    }

    /// Until nothing more is to come but what always comes.
    pub fn run(&self) {
        let end = self.plan.time + REST;
        loop {
            let Some((time, event)) = self.queue.lock().unwrap().next() else { return };
            if time > end {
                return;
            }
            self.now.store(time, Ordering::Relaxed);
            self.store.lock().unwrap().advance(time);
            if let Some(node) = event.node() {
                let state = self.nodes[node].state.lock().unwrap();
                if event.life().is_some_and(|life| life.incarnation != state.incarnation) || !state.up {
                    continue;
                }
                let asleep = state.asleep_until;
                drop(state);
                if asleep > time {
                    self.queue.lock().unwrap().add(asleep, event);
                    continue;
                }
            }
            self.happen(event);
        }
    }

    fn happen(&self, event: Event) {
        match event {
            Event::Tend { life, pace } => self.tend(life, pace),
            Event::Submit { node, request } => self.submit(node, &request),
            Event::Cancel { life, id } => self.cancel(life, id),
            Event::Task { node, message } => self.receive(node, &message),
            Event::Over { life, work } => self.over(life, &work),
            Event::Reply { life, ask, reply } => self.answered(life, ask, *reply),
            Event::Again { life, ask } => self.ask_again(life, ask),
            Event::Wake { life } => self.wake(life),
            Event::Start { node } => self.start(node),
            Event::Fault => self.fault(),
            Event::Hang { node, time } => self.hang(node, time),
            Event::Mend { node } => self.mend(node),
            Event::Leave => self.leave(),
            Event::Return => self.come_back(),
            Event::Feed => self.feed(),
            Event::Mourn => self.mourn(),
        }
    }

    /// Another node's client may come between two calls of the registry.
    pub fn let_others_come(&self, node: usize) {
        if self.depth.load(Ordering::Relaxed) != 1 || !self.is_faulty(60) {
            return;
        }
        let other = self.below(self.plan.asked);
        let state = self.nodes[other].state.lock().unwrap();
        let able = other != node && state.up && state.asleep_until <= self.now();
        drop(state);
        if able {
            let request = {
                let mut dice = self.dice.lock().unwrap();
                let about = [dice.below(self.plan.hot)];
                Request::draw(&mut dice, &about)
            };
            self.submit(other, &request);
        }
    }

    /// Counts how deep submissions are within each other.
    pub fn within_submission<T>(&self, act: impl FnOnce() -> T) -> T {
        self.depth.fetch_add(1, Ordering::Relaxed);
        let result = act();
        self.depth.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Sends something to another node; most arrives.
    pub fn send(&self, (from, to): (usize, usize), event: Event) {
        let lost = self.plan.lost_messages;
        if from == to {
            return self.later(0, event);
        }
        if self.is_cut(from) || self.is_cut(to) || self.is_faulty(lost) {
            self.ledger.lock().unwrap().lost_messages += 1;
            return;
        }
        let late = self.is_faulty(lost);
        self.ledger.lock().unwrap().late_messages += u64::from(late);
        self.later(if late { self.within(5000..90_000) } else { self.within(1..15) }, event);
    }

    pub fn send_task(&self, message: Message, to: usize, held: u64) {
        let from = message.from.node;
        let event = Event::Task { node: to, message: Box::new(message) };
        if held > 0 { self.later(held, event) } else { self.send((from, to), event) }
    }

    pub fn later(&self, time: u64, event: Event) {
        self.queue.lock().unwrap().add(self.now() + time, event);
    }

    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The same, for those who compare with that.
    pub fn instant(&self) -> Instant {
        self.epoch + Duration::from_millis(self.now())
    }

    /// How long from now until then, in whole milliseconds and no less.
    pub fn until(&self, instant: Instant) -> u64 {
        let left = instant.saturating_duration_since(self.instant());
        u64::try_from(left.as_micros().div_ceil(1000)).unwrap()
    }

    /// Whether faults happen at this time.
    pub fn is_bad_time(&self) -> bool {
        self.now() < self.plan.time
    }

    pub fn is_faulty(&self, permille: u64) -> bool {
        self.is_bad_time() && self.chance(permille)
    }

    pub fn is_cut(&self, node: usize) -> bool {
        self.nodes[node].state.lock().unwrap().cut_until > self.now()
    }

    pub fn chance(&self, permille: u64) -> bool {
        self.dice.lock().unwrap().happens(permille)
    }

    pub fn within(&self, range: std::ops::Range<u64>) -> u64 {
        self.dice.lock().unwrap().within(range)
    }

    pub fn below(&self, end: usize) -> usize {
        self.dice.lock().unwrap().below(end)
    }

    pub fn bytes(&self) -> [u8; 16] {
        self.dice.lock().unwrap().bytes()
    }

    pub fn life(&self, node: usize) -> Life {
        Life { node, incarnation: self.nodes[node].state.lock().unwrap().incarnation }
    }

    pub fn clock(&self, node: usize) -> NodeClock<'_> {
        NodeClock { simulation: self, node }
    }
}
