//! Many who want something done that takes the same time for one as for all of them: who comes first does it for everybody
//! who waits by then, while the next ones gather.
//!
//! ```text
//! first caller   leads: [1]─────────► leads: [2 3 4]──────────►
//! the others        2, 3, 4 wait ─────┘        5, 6 … wait ────┘ one of them leads
//! ```
//!
//! No thread is needed for it: a caller is always at work for all, or none is.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The most that are served at once.
const MEMBERS: usize = 256;
/// The most bytes of theirs; a single one may have more.
const WEIGHT: usize = 4 << 20;

/// Those who wait, and what became of the others.
pub(super) struct Group<D, A> {
    queue: Mutex<Queue<D, A>>,
    news: Condvar,
}

struct Queue<D, A> {
    next: u64,
    waiting: VecDeque<Waiting<D>>,
    /// Of those who did not fetch it yet; `None` if who led was lost on the way.
    answers: BTreeMap<u64, Option<A>>,
    leader: Leader,
}

struct Waiting<D> {
    number: u64,
    weight: usize,
    demand: D,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leader {
    Nobody,
    Somebody,
}

impl<D, A> Group<D, A> {
    pub(super) fn new() -> Self {
        let queue = Queue { next: 0, waiting: VecDeque::new(), answers: BTreeMap::new(), leader: Leader::Nobody };
        Self { queue: Mutex::new(queue), news: Condvar::new() }
    }

    /// Has something done, together with others, by whom `lead` is called: it gives an answer for each demand. `None` if
    /// that broke off, and nobody knows what it did.
    pub(super) fn ask(&self, demand: D, weight: usize, lead: impl Fn(Vec<D>) -> Vec<A>) -> Option<A> {
        let mut queue = self.lock();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Waiting { number, weight, demand });
        loop {
            if let Some(answer) = queue.answers.remove(&number) {
                return answer;
            }
            if queue.leader == Leader::Somebody {
                queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.leader = Leader::Somebody;
            let (numbers, demands) = queue.take();
            drop(queue);
            let mut round = Round { group: self, numbers, answers: Vec::new() };
            round.answers = lead(demands);
            drop(round);
            queue = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<D, A>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D, A> Queue<D, A> {
    /// Those who came first, at least one.
    fn take(&mut self) -> (Vec<u64>, Vec<D>) {
        let (mut numbers, mut demands, mut weight) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = self.waiting.front() {
            weight += next.weight;
            if numbers.len() == MEMBERS || (weight > WEIGHT && !numbers.is_empty()) {
                break;
            }
            if let Some(next) = self.waiting.pop_front() {
                numbers.push(next.number);
                demands.push(next.demand);
            }
        }
        (numbers, demands)
    }
}

impl<D, A> fmt::Debug for Group<D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").finish_non_exhaustive()
    }
}

/// The answers are handed out when it ends, also if that is by a panic: others would wait for ever.
struct Round<'a, D, A> {
    group: &'a Group<D, A>,
    numbers: Vec<u64>,
    answers: Vec<A>,
}

impl<D, A> Drop for Round<'_, D, A> {
    fn drop(&mut self) {
        let mut queue = self.group.lock();
        let mut answers = std::mem::take(&mut self.answers).into_iter();
        for number in self.numbers.drain(..) {
            queue.answers.insert(number, answers.next());
        }
        queue.leader = Leader::Nobody;
        drop(queue);
        self.group.news.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn everybody_gets_an_answer_of_their_own_and_nobody_is_served_twice() {
        let (group, rounds, served) = (Group::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        let lead = |demands: Vec<usize>| {
            rounds.fetch_add(1, Ordering::Relaxed);
            served.fetch_add(demands.len(), Ordering::Relaxed);
            std::thread::yield_now();
            demands.into_iter().map(|demand| demand * 2).collect()
        };
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (group, lead) = (&group, &lead);
                scope.spawn(move || {
                    for number in 0..200 {
                        let demand = thread * 1000 + number;
                        assert_eq!(group.ask(demand, 1, lead), Some(demand * 2));
                    }
                });
            }
        });
        assert_eq!(served.into_inner(), 3200);
        assert!(rounds.into_inner() <= 3200);
    }

    #[test]
    fn who_waits_meanwhile_is_served_at_once_up_to_a_bound() {
        let (group, begun) = (Group::new(), Barrier::new(2));
        let sizes = Mutex::new(Vec::new());
        let lead = |demands: Vec<usize>| {
            sizes.lock().unwrap().push(demands.len());
            if demands == [0] {
                begun.wait();
                while group.lock().waiting.len() < 3 {
                    std::thread::yield_now();
                }
            }
            demands
        };
        std::thread::scope(|scope| {
            let (group, lead) = (&group, &lead);
            scope.spawn(move || group.ask(0, 1, lead));
            begun.wait();
            for demand in 1..4 {
                scope.spawn(move || group.ask(demand, WEIGHT / 2, lead));
            }
        });
        assert_eq!(sizes.into_inner().unwrap(), [1, 2, 1]);
    }

    #[test]
    fn a_leader_who_is_lost_leaves_nobody_waiting() {
        let group: Group<u8, u8> = Group::new();
        let lost = std::thread::scope(|scope| scope.spawn(|| group.ask(1, 1, |_| panic!("lost"))).join());
        assert!(lost.is_err());
        assert_eq!(group.ask(2, 1, |_| Vec::new()), None);
        assert_eq!(group.ask(3, 1, |demands| demands), Some(3));
    }
}
