//! Where an instance is in its life, with what its keeper needs for that part of it.

use std::time::{Duration, Instant};

use crate::service::message::Phase;

/// How long an instance has to end after its stop signal.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How many looks in a row find nothing before an instance counts as drained.
const LOOKS: u32 = 3;
/// The shortest and the longest time between two looks.
const OFTEN: Duration = Duration::from_millis(2);
const SELDOM: Duration = Duration::from_millis(500);
/// How much more time passes between looks than they take.
const SPARING: u32 = 10;

/// See [`Phase`].
#[derive(Debug)]
pub(super) enum Stage {
    Starting,
    Ready,
    Serving,
    Draining(Draining),
    Stopping {
        /// When it is killed; none once it was.
        kill_at: Option<Instant>,
    },
    Ended,
}

impl Stage {
    pub(super) fn phase(&self) -> Phase {
        match self {
            Self::Starting => Phase::Starting,
            Self::Ready => Phase::Ready,
            Self::Serving => Phase::Serving,
            Self::Draining(_) => Phase::Draining,
            Self::Stopping { .. } => Phase::Stopping,
            Self::Ended => Phase::Ended,
        }
    }

    /// Told to end, and not dead by now.
    pub(super) fn stopping(now: Instant) -> Self {
        Self::Stopping { kill_at: Some(now + PATIENCE) }
    }
}

/// An instance that finishes its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draining {
    /// When it is told to end in any case.
    pub deadline: Instant,
    /// When to look next.
    pub look_at: Instant,
    /// How many looks in a row found nothing.
    quiet: u32,
}

/// What to do after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again.
    Wait,
    /// There is nothing left.
    Drained,
    /// There is, and its time is over: this much.
    Cut(u64),
}

impl Draining {
    /// From now on: nobody looks before the grace is over.
    pub(super) fn begin(now: Instant, timeout: Duration, grace: Duration) -> Self {
        Self { deadline: now + timeout.max(grace), look_at: now + grace, quiet: 0 }
    }

    /// After a look that found so many connections, and took some time until now.
    pub(super) fn judge(&mut self, found: u64, took: Duration, now: Instant) -> Verdict {
        self.quiet = if found == 0 { self.quiet + 1 } else { 0 };
        if self.quiet >= LOOKS {
            return Verdict::Drained;
        }
        if now >= self.deadline {
            return Verdict::Cut(found);
        }
        let pause = (took * SPARING).clamp(OFTEN, SELDOM);
        // The last look is at the deadline itself.
        self.look_at = (now + pause).min(self.deadline.max(now + OFTEN));
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_quiet_looks_in_a_row_are_needed() {
        let now = Instant::now();
        let mut draining = Draining::begin(now, Duration::from_secs(30), Duration::ZERO);
        let mut look = |found| draining.judge(found, Duration::ZERO, now);
        let verdicts = [0, 0, 1, 0, 0, 0].map(&mut look);
        assert_eq!(verdicts[..5], [Verdict::Wait; 5]);
        assert_eq!(verdicts[5], Verdict::Drained);
    }

    #[test]
    fn what_is_left_at_the_deadline_is_cut_and_the_grace_is_never_shortened() {
        let now = Instant::now();
        let mut draining = Draining::begin(now, Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!(draining.look_at, now + Duration::from_secs(2));
        let late = now + Duration::from_secs(3);
        assert_eq!(draining.judge(7, Duration::ZERO, late), Verdict::Cut(7));
        assert_eq!(draining.judge(0, Duration::ZERO, late), Verdict::Cut(0));
    }

    proptest! {
        #[test]
        fn looking_takes_a_small_part_of_the_time_and_the_deadline_is_met(
            took in 0_u64..200_000, timeout in 0_u64..10_000,
        ) {
            let now = Instant::now();
            let (took, timeout) = (Duration::from_micros(took), Duration::from_millis(timeout));
            let mut draining = Draining::begin(now, timeout, Duration::ZERO);
            if draining.judge(1, took, now) == Verdict::Wait {
                let pause = draining.look_at - now;
                prop_assert!(pause >= OFTEN && pause <= SELDOM);
                prop_assert!(pause >= (took * SPARING).min(SELDOM) || draining.look_at <= draining.deadline.max(now + OFTEN));
                prop_assert!(draining.look_at <= draining.deadline.max(now + OFTEN));
            } else {
                prop_assert!(timeout.is_zero());
            }
        }
    }
}
