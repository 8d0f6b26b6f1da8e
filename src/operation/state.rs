//! Where an operation is in its life.
//!
//! ```text
//! queued ──begin──> running ──end──> succeeded | failed | cancelled | unknown
//!    └─────────────────────────end──────────────^
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Where an operation, or one of its targets, is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Written down, and not begun.
    Queued,
    /// Begun.
    Running,
    /// Done, for every target.
    Succeeded,
    /// Not done, for one target at least; each says why.
    Failed,
    /// Not done because somebody wanted it so.
    Cancelled,
    /// It may have been done: who did it is gone, or lost the right to.
    Unknown,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Unknown];

    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Unknown => true,
        }
    }

    /// The state after this one if `next` is allowed to come; what has ended stays as it ended.
    #[must_use]
    pub fn advance(self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Queued | Self::Running, Self::Running) => Some(Self::Running),
            (Self::Queued | Self::Running, end) if end.is_final() => Some(end),
            (
                Self::Queued | Self::Running | Self::Succeeded | Self::Failed | Self::Cancelled | Self::Unknown,
                Self::Queued | Self::Running | Self::Succeeded | Self::Failed | Self::Cancelled | Self::Unknown,
            ) => None,
        }
    }

    /// As it is typed and written down.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for State {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|state| state.word() == text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            let operation = format!("read the state '{}'", shown.escape_debug());
            let all = Self::ALL.map(Self::word).join(", ");
            Error::new(Kind::Invalid, operation, "there is no such state").next(format!("one of: {all}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> impl Strategy<Value = State> {
        proptest::sample::select(&State::ALL[..])
    }

    #[test]
    fn states_have_one_word_each() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.word());
            assert_eq!(state.word().parse::<State>().unwrap(), state);
        }
    }

    proptest! {
        #[test]
        fn what_has_ended_stays_as_it_ended(steps in proptest::collection::vec(state(), 0..10)) {
            let (mut now, mut ended) = (State::Queued, None);
            for next in steps {
                if let Some(after) = now.advance(next) {
                    prop_assert_eq!(ended, None);
                    prop_assert!(after != State::Queued);
                    now = after;
                }
                if now.is_final() {
                    ended = Some(now);
                }
                prop_assert!(ended.is_none_or(|ended| ended == now));
            }
        }
    }
}
