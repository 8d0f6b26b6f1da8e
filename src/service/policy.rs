//! Whether an instance that ended by itself gets a successor, and when. No clock and no I/O: who calls brings the times.

use std::time::Duration;

use super::definition::Restart;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// An instance that served for so long did not fail at its start.
const PROVEN: Duration = Duration::from_secs(10);

/// How an instance ended that nobody had told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Its exit status; none if nobody could learn it, which is no good end.
    pub exit_code: Option<i32>,
    /// How long new connections had gone to it; nothing if it never got that far.
    pub served: Duration,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Leave it.
    Stay,
    /// Start a successor after this time.
    After(Duration),
}

/// How often in a row a service failed: the waits grow with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Decides about an instance that ended, and remembers it.
    #[must_use = "the decision is counted"]
    pub fn decide(&mut self, policy: Restart, ending: Ending) -> Decision {
        if ending.served >= PROVEN {
            self.failures = 0;
        }
        let wanted = match policy {
            Restart::No => false,
            Restart::OnFailure => ending.exit_code != Some(0),
            Restart::Always => true,
        };
        if wanted { Decision::After(self.next_wait()) } else { Decision::Stay }
    }

    /// How long to wait after one more failure: 100 ms, then twice the last time, at most a minute.
    #[must_use = "the failure is counted"]
    pub fn next_wait(&mut self) -> Duration {
        // 2^10 times the first wait is longer than the longest.
        let wait = FIRST * (1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        wait.min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ending() -> impl Strategy<Value = Ending> {
        let code = prop_oneof![Just(None), Just(Some(0)), (1..256_i32).prop_map(Some)];
        let served = prop_oneof![Just(0_u64), 0..30_000_u64];
        (code, served).prop_map(|(exit_code, served)| Ending { exit_code, served: Duration::from_millis(served) })
    }

    fn crash(served: u64) -> Ending {
        Ending { exit_code: Some(1), served: Duration::from_secs(served) }
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
    }

    #[test]
    fn ten_seconds_of_service_make_up_for_all_failures() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            let _ = backoff.decide(Restart::Always, crash(9));
        }
        assert_eq!(backoff.decide(Restart::Always, crash(10)), Decision::After(FIRST));
        assert_eq!(backoff.decide(Restart::Always, crash(0)), Decision::After(FIRST * 2));
    }

    #[test]
    fn the_policy_says_who_gets_a_successor() {
        let after = |policy, exit_code| {
            let ending = Ending { exit_code, served: PROVEN };
            Backoff::default().decide(policy, ending) != Decision::Stay
        };
        let all = |policy| [Some(0), Some(1), Some(137), None].map(|code| after(policy, code));
        assert_eq!(all(Restart::No), [false; 4]);
        assert_eq!(all(Restart::OnFailure), [false, true, true, true]);
        assert_eq!(all(Restart::Always), [true; 4]);
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds_and_at_most_twice_the_last(endings in proptest::collection::vec(ending(), 1..60)) {
            let mut backoff = Backoff::default();
            let mut last = None;
            for ending in endings {
                let Decision::After(wait) = backoff.decide(Restart::Always, ending) else {
                    return Err(TestCaseError::fail("always means always"));
                };
                prop_assert!((FIRST..=LONGEST).contains(&wait));
                match last {
                    Some(last) if ending.served < PROVEN => prop_assert!(wait >= last && wait <= last * 2),
                    _ => prop_assert_eq!(wait, FIRST),
                }
                last = Some(wait);
            }
        }

        #[test]
        fn a_service_that_never_comes_up_is_tried_rarely(failures in 11_u32..5000) {
            let mut backoff = Backoff::default();
            let waited: Duration = (0..failures).map(|_| backoff.next_wait()).sum();
            prop_assert!(waited >= LONGEST * (failures - 10));
        }

        #[test]
        fn a_good_end_is_final_on_failure(served in 0..100_000_u64) {
            let ending = Ending { exit_code: Some(0), served: Duration::from_millis(served) };
            prop_assert_eq!(Backoff::default().decide(Restart::OnFailure, ending), Decision::Stay);
        }
    }
}
