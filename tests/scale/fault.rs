//! What happens to nodes: they die and start, are cut off, hang, never come back, and somebody sets their clock.

use crate::daemon::Daemon;
use crate::event::{Event, Life, Pace};
use crate::plan::AWAY;
use crate::simulation::Simulation;

impl Simulation {
    pub fn fault(&self) {
        if !self.is_bad_time() {
            return;
        }
        self.later(self.within(1..2 * self.plan.fault_every), Event::Fault);
        // Those that have something to do fail more often than others.
        let busy = (0..8)
            .map(|_| self.below(self.plan.nodes))
            .find(|node| self.nodes[*node].daemon.try_lock().is_ok_and(|daemon| daemon.is_busy()));
        let node = busy.unwrap_or_else(|| self.below(if self.chance(700) { self.plan.hot } else { self.plan.nodes }));
        let time = if self.chance(500) { self.within(100..5000) } else { self.within(5000..60_000) };
        match self.within(0..10) {
            _ if node >= self.plan.spared() => {}
            0..4 => self.crash(node, time),
            4..7 => self.cut(node, time),
            7..9 => self.hang(node, time),
            _ => self.set_clock(node),
        }
    }

    fn crash(&self, node: usize, time: u64) {
        let mut state = self.nodes[node].state.lock().unwrap();
        if !state.up {
            return;
        }
        state.up = false;
        state.incarnation += 1;
        let mut ledger = self.ledger.lock().unwrap();
        ledger.crashes += 1;
        state.gone = ledger.gone < self.plan.gone && self.chance(100);
        ledger.gone += u64::from(state.gone);
        if !state.gone {
            self.later(time, Event::Start { node });
        }
        drop((state, ledger));
        *self.nodes[node].daemon.lock().unwrap() = Daemon::new(&self.nodes[node].name);
        self.crash_host(node);
    }

    fn cut(&self, node: usize, time: u64) {
        let mut state = self.nodes[node].state.lock().unwrap();
        state.cut_until = state.cut_until.max((self.now() + time).min(self.plan.time));
        drop(state);
        self.ledger.lock().unwrap().cuts += 1;
        self.later(time, Event::Mend { node });
    }

    pub fn hang(&self, node: usize, time: u64) {
        let mut state = self.nodes[node].state.lock().unwrap();
        state.asleep_until = state.asleep_until.max(self.now() + time);
        drop(state);
        self.ledger.lock().unwrap().hangs += 1;
    }

    fn set_clock(&self, node: usize) {
        let hours = i64::try_from(self.within(0..12)).unwrap() - 6;
        self.nodes[node].state.lock().unwrap().wrong += hours * 3_600_000;
        self.ledger.lock().unwrap().set_clocks += 1;
    }

    /// A wire is whole again: what was put off is done now.
    pub fn mend(&self, node: usize) {
        let state = self.nodes[node].state.lock().unwrap();
        let life = Life { node, incarnation: state.incarnation };
        let able = state.up && state.asleep_until <= self.now() && state.cut_until <= self.now();
        drop(state);
        if able {
            self.tend(life, Pace::Once);
        }
    }

    /// A daemon starts, for the first time or again.
    pub fn start(&self, node: usize) {
        self.nodes[node].state.lock().unwrap().up = true;
        self.tend(self.life(node), Pace::Idle);
    }

    pub fn leave(&self) {
        self.ledger.lock().unwrap().outages += 1;
        self.store.lock().unwrap().away = true;
        self.later(AWAY, Event::Return);
    }
}
