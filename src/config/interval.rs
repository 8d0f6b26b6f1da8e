//! Durations as they are written, and how often something may be done.

use std::str::FromStr;
use std::time::Duration;

use chrono::TimeDelta;
use serde::Deserialize;

use crate::error::{Error, Kind, Result};

/// A time between two things that are done again and again: a second at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Interval(Duration);

impl Interval {
    /// The shortest: more often, a container would do little else than be copied.
    pub const LEAST: Self = Self(Duration::from_secs(1));

    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Interval {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Interval {
    type Err = Error;

    /// Reads what [`parse_duration`] does.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |cause: &str| Error::new(Kind::Invalid, format!("read interval '{}'", text.escape_debug()), cause);
        let interval = parse_duration(text).and_then(|interval| interval.to_std().ok()).map(Self);
        let interval = interval.ok_or_else(|| refuse("it is no duration").next("write one like 30s, 5m or 1h30m"))?;
        if interval < Self::LEAST { Err(refuse("a second is the least")) } else { Ok(interval) }
    }
}

/// `90s`, `5m`, `2h`, `1d`, `1w`, and their sums: `1h30m`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<TimeDelta> {
    let mut total = TimeDelta::zero();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..end].parse().ok()?;
        let unit = match rest.as_bytes()[end] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(&TimeDelta::try_seconds(number.checked_mul(unit)?)?)?;
        rest = &rest[end + 1..];
    }
    (!text.is_empty()).then_some(total)
}
