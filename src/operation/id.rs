//! The id of an operation.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::sys::fs::random_id;

/// The shortest beginning of newer ids that is looked for: the clock may have been set back by weeks, not by years.
const AHEAD: usize = 4;
/// The longest beginning: those of a quarter of an hour share it.
const NEAR: usize = 7;

/// 32 hex digits: the first 12 are the milliseconds since 1970 when it was asked for, the rest is drawn at random. So they sort
/// by age.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OperationId([u8; 16]);

impl OperationId {
    /// A new one.
    ///
    /// # Errors
    /// Those of getrandom(2).
    pub fn draw(now: DateTime<Utc>) -> Result<Self> {
        Ok(Self::new(u64::try_from(now.timestamp_millis()).unwrap_or(0), random_id()?))
    }

    /// From its parts: milliseconds, of which 48 bits are used, and random bytes, of which the first six are not.
    #[must_use]
    pub fn new(milliseconds: u64, random: [u8; 16]) -> Self {
        let mut bytes = random;
        bytes[..6].copy_from_slice(&milliseconds.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// When it was drawn, in whole milliseconds.
    #[must_use]
    pub fn time(&self) -> DateTime<Utc> {
        let milliseconds = self.0[..6].iter().fold(0_i64, |sum, byte| (sum << 8) | i64::from(*byte));
        DateTime::from_timestamp_millis(milliseconds).unwrap_or_default()
    }

    /// What ids begin with, newest first: each id begins with exactly one of these. So the newest are found without reading
    /// all. Those of the next weeks come first, since clocks are set back.
    #[must_use]
    pub fn beginnings(now: DateTime<Utc>) -> Vec<String> {
        let now = Self::new(u64::try_from(now.timestamp_millis()).unwrap_or(0), [0; 16]).to_string();
        let digit = |index: usize| now[index..=index].chars().next().and_then(|c| c.to_digit(16)).unwrap_or(0);
        let beside = |length: usize, last: u32| format!("{}{last:x}", &now[..length - 1]);
        let ahead = (AHEAD..=NEAR).flat_map(|length| (digit(length - 1) + 1..16).rev().map(move |d| (length, d)));
        let behind = (1..=NEAR).rev().flat_map(|length| (0..digit(length - 1)).rev().map(move |d| (length, d)));
        let near = std::iter::once(now[..NEAR].to_owned());
        let ahead: Vec<_> = ahead.map(|(length, last)| beside(length, last)).collect();
        ahead.into_iter().chain(near).chain(behind.map(|(length, last)| beside(length, last))).collect()
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OperationId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            let shown: String = text.chars().take(40).collect();
            let operation = format!("read the operation's id '{}'", shown.escape_debug());
            Error::new(Kind::Invalid, operation, "it has to be 32 lower-case hex digits").next("see 'regen op ls'")
        };
        let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(plain) {
            return Err(refuse());
        }
        let mut bytes = [0; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for OperationId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<OperationId> for String {
    fn from(id: OperationId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: u64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(i64::try_from(milliseconds).unwrap()).unwrap()
    }

    #[test]
    fn ids_are_read_as_they_are_written_and_nothing_else_is() {
        let id = OperationId::draw(Utc::now()).unwrap();
        assert_eq!(id.to_string().parse::<OperationId>().unwrap(), id);
        for bad in ["", "0", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33), &"é".repeat(16)] {
            assert!(bad.parse::<OperationId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_few_beginnings_are_all_that_is_looked_for() {
        assert!(OperationId::beginnings(Utc::now()).len() < 160);
        assert_eq!(OperationId::beginnings(at(0)).last().unwrap().len(), NEAR);
    }

    proptest! {
        #[test]
        fn later_ids_sort_behind(one in 0..1_u64 << 47, other in 0..1_u64 << 47, a: [u8; 16], b: [u8; 16]) {
            let (first, second) = (OperationId::new(one, a), OperationId::new(other, b));
            prop_assert_eq!(first.time(), at(one));
            if one != other {
                prop_assert_eq!(one < other, first < second);
                prop_assert_eq!(one < other, first.to_string() < second.to_string());
            }
        }

        /// Whatever the time: in the past all are found, in the future those of the next weeks; each once, newest first.
        #[test]
        fn every_id_has_one_beginning_and_they_sort_downwards(
            now in 1_500_000_000_000..4_000_000_000_000_u64, back in 0..4_000_000_000_000_u64, random: [u8; 16],
        ) {
            let beginnings = OperationId::beginnings(at(now));
            let id = OperationId::new(now.saturating_sub(back), random).to_string();
            prop_assert_eq!(beginnings.iter().filter(|beginning| id.starts_with(*beginning)).count(), 1);
            let past: Vec<_> = beginnings.iter().skip_while(|beginning| !id.starts_with(*beginning)).skip(1).collect();
            prop_assert!(past.iter().all(|beginning| beginning.as_str() < id.as_str()));
        }
    }
}
