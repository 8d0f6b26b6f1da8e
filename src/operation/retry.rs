//! When what failed is tried again: only what may be done twice, and only if it failed on the way there or because somebody
//! was in the way.

use std::time::Duration;

use nix::errno::Errno;

use super::Kind;
use crate::error::{Error, Kind as Fault};

/// How often something is tried at most.
pub const ATTEMPTS: u32 = 6;
/// How long it is left alone after the first failure.
const FIRST: Duration = Duration::from_millis(100);
/// … and after many.
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait before the next attempt; `None` if there is none. `chance` divides those who failed together.
#[must_use]
pub fn wait(kind: Kind, error: &Error, attempts: u32, chance: u32) -> Option<Duration> {
    if !kind.repeatable() || attempts >= ATTEMPTS || !is_passing(error) {
        return None;
    }
    let full = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(LONGEST);
    // Between half of it and all of it.
    Some(full / 2 + full / 2 * (chance % 1000) / 1000)
}

/// Whether a failure may be over soon: somebody else holds what is needed, or the way to another node is cut.
#[must_use]
pub fn is_passing(error: &Error) -> bool {
    let way = [
        Errno::ECONNREFUSED,
        Errno::ECONNRESET,
        Errno::ECONNABORTED,
        Errno::EPIPE,
        Errno::ETIMEDOUT,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
        Errno::EAGAIN,
    ];
    error.kind() == Fault::Busy || error.errno().is_some_and(|number| way.contains(&Errno::from_raw(number)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Context;

    fn busy() -> Error {
        Error::new(Fault::Busy, "x", "y")
    }

    fn reset() -> Error {
        let broken: crate::error::Result<()> =
            Err(std::io::Error::from_raw_os_error(Errno::ECONNRESET as i32)).context(|| "call node 'n'");
        broken.unwrap_err()
    }

    #[test]
    fn only_what_may_be_done_twice_is_tried_again_and_only_for_a_passing_reason() {
        assert!(wait(Kind::RingPin, &busy(), 1, 0).is_some() && wait(Kind::RingPin, &reset(), 1, 0).is_some());
        assert_eq!(wait(Kind::ServiceRestart, &busy(), 1, 0), None);
        assert_eq!(wait(Kind::RingPin, &Error::new(Fault::NotFound, "x", "y"), 1, 0), None);
        assert_eq!(wait(Kind::RingPin, &busy(), ATTEMPTS, 0), None);
    }

    proptest! {
        #[test]
        fn waits_grow_and_are_bounded(attempts in 1..ATTEMPTS, chance: u32) {
            let now = wait(Kind::Probe, &busy(), attempts, chance).unwrap();
            prop_assert!(now >= FIRST / 2 && now <= LONGEST);
            if let Some(later) = wait(Kind::Probe, &busy(), attempts + 1, chance) {
                prop_assert!(later >= now);
            }
        }
    }
}
