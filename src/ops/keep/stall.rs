//! When to see whether a program still has each of several sockets at one address.
//!
//! The keeper's duplicate keeps a socket alive that the program has closed, and nothing tells but this: what comes there is
//! not taken. So the sockets are waited for, as the program does; if something still waits after a while, who has them is
//! looked up, which costs more. A program that takes what comes, or gets nothing, costs no look.

use std::time::{Duration, Instant};

/// How long what comes may wait before anybody wonders.
const PATIENCE: Duration = Duration::from_millis(250);
/// How much more time passes between looks than they take: a busy program may always let something wait.
const SPARING: u32 = 50;

/// What is suspected.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stall {
    look_at: Option<Instant>,
}

impl Stall {
    /// Whether to wait for what comes.
    pub(super) fn is_none(&self) -> bool {
        self.look_at.is_none()
    }

    /// Something waits.
    pub(super) fn begin(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + PATIENCE);
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.look_at.is_some_and(|at| now >= at)
    }

    /// When that is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.look_at
    }

    /// Nothing waits any more.
    pub(super) fn end(&mut self) {
        self.look_at = None;
    }

    /// Somebody has looked, and it took so long until now.
    pub(super) fn go_on(&mut self, took: Duration, now: Instant) {
        self.look_at = Some(now + (took * SPARING).max(PATIENCE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_looked_into_after_a_while_and_a_look_that_costs_much_is_rare() {
        let mut stall = Stall::default();
        let now = Instant::now();
        assert!(stall.is_none() && !stall.is_due(now));
        stall.begin(now);
        stall.begin(now + PATIENCE / 2);
        assert!(!stall.is_due(now) && stall.is_due(now + PATIENCE));
        stall.go_on(Duration::from_micros(1), now);
        assert_eq!(stall.next(), Some(now + PATIENCE));
        stall.go_on(Duration::from_secs(1), now);
        assert!(!stall.is_due(now + Duration::from_secs(49)));
        stall.end();
        assert_eq!(stall, Stall::default());
    }
}
