//! Which entries are kept whatever the depth, because they are the last of an hour, a day or a week. Pure.

use std::collections::HashSet;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::{Deserialize, Serialize};

use super::entry::Entry;
use crate::error::{Error, Kind, Result, is_too_large};

/// How many are kept of each sort; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Keep {
    /// The newest entries.
    pub last: u32,
    /// The newest entry of each of so many hours that have one.
    pub hourly: u32,
    /// Of each of so many days.
    pub daily: u32,
    /// Of each of so many weeks, which begin on Mondays.
    pub weekly: u32,
}

/// What is changed about that: what is not said stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeepChange {
    /// As [`Keep::last`].
    pub last: Option<u32>,
    /// As [`Keep::hourly`].
    pub hourly: Option<u32>,
    /// As [`Keep::daily`].
    pub daily: Option<u32>,
    /// As [`Keep::weekly`].
    pub weekly: Option<u32>,
}

impl Keep {
    /// Whether there is no such rule.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// The rules after a change.
    #[must_use]
    pub fn changed(self, change: KeepChange) -> Self {
        Self {
            last: change.last.unwrap_or(self.last),
            hourly: change.hourly.unwrap_or(self.hourly),
            daily: change.daily.unwrap_or(self.daily),
            weekly: change.weekly.unwrap_or(self.weekly),
        }
    }
}

impl KeepChange {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl KeepChange {
    /// The highest number in it.
    #[must_use]
    pub fn most(&self) -> u32 {
        [self.last, self.hourly, self.daily, self.weekly].into_iter().flatten().max().unwrap_or(0)
    }
}

impl FromStr for KeepChange {
    type Err = Error;

    /// `last=10,hourly=24,daily=7,weekly=4`, each of them once or not at all.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |cause: String| {
            Error::new(Kind::Invalid, format!("read rules '{}'", text.escape_debug()), cause)
                .next("write some of last=N,hourly=N,daily=N,weekly=N")
        };
        let mut change = Self::default();
        for rule in text.split(',') {
            let (name, number) = rule.split_once('=').ok_or_else(|| refuse("a rule is NAME=N".into()))?;
            let place = match name {
                "last" => &mut change.last,
                "hourly" => &mut change.hourly,
                "daily" => &mut change.daily,
                "weekly" => &mut change.weekly,
                _ => return Err(refuse(format!("there is no rule '{}'", name.escape_debug()))),
            };
            let number = number.parse().map_err(|error| {
                let what = if is_too_large(&error) { "too large" } else { "no number" };
                refuse(format!("'{}' is {what}", number.escape_debug()))
            })?;
            if place.replace(number).is_some() {
                return Err(refuse(format!("'{name}' is there twice")));
            }
        }
        Ok(change)
    }
}

/// The numbers of the entries of the main line that the rules keep. Hours, days and weeks are those of UTC: they are the same
/// on every machine, and none is there twice.
pub(super) fn kept(entries: &[Entry], keep: Keep) -> HashSet<u64> {
    let newest_first: Vec<&Entry> = entries.iter().rev().filter(|entry| !entry.side).collect();
    let last = newest_first.iter().take(count(keep.last)).map(|entry| entry.seq);
    let mut kept: HashSet<u64> = last.collect();
    for (most, period) in [(keep.hourly, hour as fn(DateTime<Utc>) -> i64), (keep.daily, day), (keep.weekly, week)] {
        let mut seen = HashSet::new();
        for entry in &newest_first {
            if seen.len() < count(most) && seen.insert(period(entry.created)) {
                kept.insert(entry.seq);
            }
        }
    }
    kept
}

fn count(most: u32) -> usize {
    usize::try_from(most).unwrap_or(usize::MAX)
}

fn hour(time: DateTime<Utc>) -> i64 {
    day(time) * 24 + i64::from(time.hour())
}

fn day(time: DateTime<Utc>) -> i64 {
    i64::from(time.num_days_from_ce())
}

fn week(time: DateTime<Utc>) -> i64 {
    (day(time) - i64::from(time.weekday().num_days_from_monday())).div_euclid(7)
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::{entry, side};
    use super::*;
    use chrono::TimeZone;

    fn at(seq: u64, day: u32, hour: u32) -> Entry {
        Entry { created: Utc.with_ymd_and_hms(2026, 11, day, hour, 30, 0).unwrap(), ..entry(seq, Outcome::Good) }
    }

    fn seqs(entries: &[Entry], keep: Keep) -> Vec<u64> {
        let mut seqs: Vec<_> = kept(entries, keep).into_iter().collect();
        seqs.sort_unstable();
        seqs
    }

    const NOTHING: Keep = Keep { last: 0, hourly: 0, daily: 0, weekly: 0 };

    #[test]
    fn each_rule_keeps_the_newest_of_each_period_that_has_one() {
        // 2026-11-22 is a Sunday.
        let entries =
            [at(1, 14, 9), at(2, 20, 9), at(3, 22, 8), at(4, 22, 8), at(5, 22, 23), at(6, 23, 0), at(7, 23, 0)];
        assert_eq!(seqs(&entries, NOTHING), [0; 0]);
        assert_eq!(seqs(&entries, Keep { last: 2, ..NOTHING }), [6, 7]);
        assert_eq!(seqs(&entries, Keep { hourly: 3, ..NOTHING }), [4, 5, 7]);
        assert_eq!(seqs(&entries, Keep { daily: 3, ..NOTHING }), [2, 5, 7]);
        assert_eq!(seqs(&entries, Keep { weekly: 2, ..NOTHING }), [5, 7]);
        assert_eq!(seqs(&entries, Keep { last: 1, hourly: 2, daily: 3, weekly: 9 }), [1, 2, 5, 7]);
    }

    #[test]
    fn rules_are_written_as_names_with_numbers() {
        let read = |text: &str| text.parse::<KeepChange>();
        let all = KeepChange { last: Some(10), hourly: Some(24), daily: Some(7), weekly: Some(0) };
        assert_eq!(read("last=10,hourly=24,daily=7,weekly=0").unwrap(), all);
        assert_eq!(read("weekly=4").unwrap(), KeepChange { weekly: Some(4), ..KeepChange::default() });
        assert_eq!(all.most(), 24);
        for bad in [
            "",
            "last",
            "last=",
            "last=-1",
            "last=1,",
            "yearly=1",
            "last=1,last=1",
            "last=1 ,daily=2",
            "last=1;daily=2",
        ] {
            assert!(read(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn what_stands_beside_the_main_line_counts_for_no_period() {
        let beside = Entry { created: at(9, 23, 0).created, ..side(9, Outcome::Good) };
        assert_eq!(seqs(&[at(8, 22, 0), beside], Keep { daily: 2, ..NOTHING }), [8]);
    }

    #[test]
    fn what_was_evicted_beside_them_changes_nothing_about_those_that_are_kept() {
        let entries: Vec<_> = (1..=40).map(|seq| at(seq, 1 + u32::try_from(seq).unwrap() / 3, 3)).collect();
        let keep = Keep { last: 2, hourly: 1, daily: 5, weekly: 3 };
        let before = kept(&entries, keep);
        let rest: Vec<_> = entries.into_iter().filter(|entry| before.contains(&entry.seq)).collect();
        assert_eq!(kept(&rest, keep), before);
    }
}
