//! Which entry of a ring is meant: `alice@42`, `alice@-1`, `alice@-5m`, `alice@2026-11-22T15:24:48Z`, `alice@base`.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};

use super::entry::{Entry, timestamp};
use crate::config::parse_duration;
use crate::error::{Error, Kind, Result, is_too_large};
use crate::ids::{Name, RingName};

/// A way to say which entry is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Nothing was said: for a run, where the ring's next pointer is; for a look, the newest.
    Unsaid,
    /// The newest entry.
    Latest,
    /// The entry with this number.
    Seq(u64),
    /// So many before the newest.
    Back(usize),
    /// The newest entry at or before this time.
    At(DateTime<Utc>),
    /// The newest entry that is at least so old.
    Ago(TimeDelta),
    /// The entry with this tag.
    Id(String),
    /// No saved state.
    Base,
}

/// A ring, where it is named, and an entry of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `None` for `@SEL` alone.
    pub ring: Option<RingName>,
    /// The entry.
    pub selector: Selector,
}

/// What a selector came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected<'a> {
    /// No saved state.
    Base,
    /// This entry.
    Entry(&'a Entry),
}

impl Target {
    /// Reads `RING`, `RING@SEL` or `@SEL`; a ring without an owner is `caller`'s.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the name or the selector is not one.
    pub fn parse(text: &str, caller: &Name) -> Result<Self> {
        let (ring, selector) = match text.split_once('@') {
            Some((ring, selector)) => (ring, selector.parse()?),
            None => (text, Selector::Unsaid),
        };
        let ring = match ring {
            "" if selector != Selector::Unsaid => None,
            ring => Some(RingName::parse(ring, caller)?),
        };
        Ok(Self { ring, selector })
    }

    /// The ring, which has to be named here.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it is not.
    pub fn named(self) -> Result<(RingName, Selector)> {
        match self.ring {
            Some(ring) => Ok((ring, self.selector)),
            None => Err(Error::new(Kind::Usage, format!("find '{}'", self.selector), "it names no ring")
                .next("write it as RING@SELECTOR")),
        }
    }
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" => return Err(refuse(text, "it is empty")),
            "latest" => return Ok(Self::Latest),
            "base" => return Ok(Self::Base),
            _ => {}
        }
        let no_number = |error| refuse(text, if is_too_large(&error) { "it is too large" } else { "it is no number" });
        if let Some(back) = text.strip_prefix('-') {
            if back.bytes().all(|byte| byte.is_ascii_digit()) {
                return back.parse().map(Self::Back).map_err(no_number);
            }
            return parse_duration(back).map(Self::Ago).ok_or_else(|| refuse(text, "it is no duration"));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Seq).map_err(no_number);
        }
        if is_tag(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        parse_time(text).map(Self::At).ok_or_else(|| refuse(text, "it is neither a number, a time nor a word"))
    }
}

fn refuse(text: &str, cause: &str) -> Error {
    let shown: String = text.chars().take(60).collect();
    Error::new(Kind::Invalid, format!("read selector '@{}'", shown.escape_debug()), cause)
        .next("use @latest, @42, @-1, @-5m, @2026-11-22T15:24:48Z or @base")
}

fn is_tag(text: &str) -> bool {
    let Some((time, seq)) = text.split_once('-') else { return false };
    time.len() == 16
        && time.as_bytes()[8] == b'T'
        && time.ends_with('Z')
        && seq.len() >= 6
        && seq.bytes().all(|byte| byte.is_ascii_digit())
}

/// A time without fractions means its whole second: that is how times are shown to people.
fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
    let rest_of_second = if text.contains('.') { 0 } else { 999_999_999 };
    time.checked_add_signed(TimeDelta::nanoseconds(rest_of_second))
}

/// In the largest unit that leaves no rest.
fn show_duration(age: TimeDelta) -> String {
    let seconds = age.num_seconds();
    let units = [(604_800, 'w'), (86_400, 'd'), (3600, 'h'), (60, 'm')];
    match units.iter().find(|(length, _)| seconds > 0 && seconds % length == 0) {
        Some((length, unit)) => format!("{}{unit}", seconds / length),
        None => format!("{seconds}s"),
    }
}

/// Finds what `selector` means among `entries`, which are in order of their numbers. Those beside the main line are found
/// by number and tag only.
///
/// `next` is where the next run starts; it answers for [`Selector::Unsaid`].
///
/// # Errors
/// [`Kind::NotFound`], naming what there is.
pub fn select<'a>(
    entries: &'a [Entry],
    selector: &Selector,
    next: Option<u64>,
    now: DateTime<Utc>,
) -> Result<Selected<'a>> {
    let found = match selector {
        Selector::Base => return Ok(Selected::Base),
        Selector::Unsaid => match next {
            Some(seq) => entries.iter().find(|entry| entry.seq == seq),
            None => return Ok(Selected::Base),
        },
        Selector::Latest => main_line(entries).next(),
        Selector::Seq(seq) => entries.iter().find(|entry| entry.seq == *seq),
        Selector::Back(back) => main_line(entries).nth(*back),
        Selector::At(time) => newest_until(entries, *time),
        Selector::Ago(age) => now.checked_sub_signed(*age).and_then(|time| newest_until(entries, time)),
        Selector::Id(id) => entries.iter().find(|entry| entry.id == *id),
    };
    found.map(Selected::Entry).ok_or_else(|| missing(entries, selector))
}

fn newest_until(entries: &[Entry], time: DateTime<Utc>) -> Option<&Entry> {
    main_line(entries).find(|entry| entry.created <= time)
}

/// The entries of the main line, newest first.
fn main_line(entries: &[Entry]) -> impl DoubleEndedIterator<Item = &Entry> {
    entries.iter().rev().filter(|entry| !entry.side)
}

fn missing(entries: &[Entry], selector: &Selector) -> Error {
    let operation = format!("find entry '{selector}'");
    match (main_line(entries).next_back(), main_line(entries).next()) {
        (Some(oldest), Some(newest)) => {
            let cause = format!(
                "no such entry; the oldest is @{} of {}, the newest @{} of {}",
                oldest.seq,
                timestamp(oldest.created),
                newest.seq,
                timestamp(newest.created)
            );
            Error::new(Kind::NotFound, operation, cause).next("'regen ring log' lists them")
        }
        _ => Error::new(Kind::NotFound, operation, "the ring has no entries yet").next("only @base is there"),
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsaid => f.write_str("@"),
            Self::Latest => f.write_str("@latest"),
            Self::Seq(seq) => write!(f, "@{seq}"),
            Self::Back(back) => write!(f, "@-{back}"),
            Self::At(time) => write!(f, "@{}", timestamp(*time)),
            Self::Ago(age) => write!(f, "@-{}", show_duration(*age)),
            Self::Id(id) => write!(f, "@{id}"),
            Self::Base => f.write_str("@base"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::{at, entry, side};
    use super::*;

    fn seq_of(selector: &str, entries: &[Entry]) -> Option<u64> {
        let selector = selector.parse().unwrap();
        match select(entries, &selector, entries.first().map(|entry| entry.seq), at(100)) {
            Ok(Selected::Entry(entry)) => Some(entry.seq),
            Ok(Selected::Base) => Some(0),
            Err(_) => None,
        }
    }

    #[test]
    fn every_form_finds_its_entry() {
        let entries: Vec<_> = [5, 6, 9].map(|seq| entry(seq, Outcome::Good)).into();
        assert_eq!(seq_of("latest", &entries), Some(9));
        assert_eq!(seq_of("6", &entries), Some(6));
        assert_eq!(seq_of("7", &entries), None);
        assert_eq!(seq_of("-0", &entries), Some(9));
        assert_eq!(seq_of("-1", &entries), Some(6));
        assert_eq!(seq_of("-3", &entries), None);
        assert_eq!(seq_of("base", &entries), Some(0));
        assert_eq!(seq_of(&timestamp(at(8)), &entries), Some(6));
        assert_eq!(seq_of(&timestamp(at(9)), &entries), Some(9));
        assert_eq!(seq_of(&timestamp(at(4)), &entries), None);
        assert_eq!(seq_of("-94s", &entries), Some(6));
        assert_eq!(seq_of("-1m35s", &entries), Some(5));
        assert_eq!(seq_of(&entries[1].id, &entries), Some(6));
    }

    #[test]
    fn an_entry_beside_the_main_line_is_found_by_number_and_tag_only() {
        let entries =
            [entry(5, Outcome::Good), side(6, Outcome::Good), entry(9, Outcome::Good), side(10, Outcome::Good)];
        assert_eq!(seq_of("latest", &entries), Some(9));
        assert_eq!(seq_of("-1", &entries), Some(5));
        assert_eq!(seq_of("-2", &entries), None);
        assert_eq!(seq_of(&timestamp(at(8)), &entries), Some(5));
        assert_eq!(seq_of("-1s", &entries), Some(9));
        assert_eq!(seq_of("10", &entries), Some(10));
        assert_eq!(seq_of(&entries[1].id, &entries), Some(6));
        let error = select(&entries[3..], &Selector::Latest, None, at(20)).unwrap_err();
        assert!(error.to_string().contains("no entries"), "{error}");
    }

    #[test]
    fn a_time_as_it_is_shown_to_people_means_its_whole_second() {
        let mut late = entry(5, Outcome::Good);
        late.created = at(5) + TimeDelta::milliseconds(900);
        let shown = late.created.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let exact = timestamp(late.created - TimeDelta::nanoseconds(1));
        let entries = [late];
        assert_eq!(seq_of(&shown, &entries), Some(5));
        assert_eq!(seq_of(&exact, &entries), None);
    }

    #[test]
    fn an_age_is_shown_as_it_is_typed() {
        for text in ["-5m", "-90s", "-2h", "-1w", "-0s"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), format!("@{text}"));
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for bad in ["", "x", "-", "-x", "-5y", "5m", "2026-11-22", "99999999999999999999", "-99999999999999999999w"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_selector_before_the_oldest_names_the_oldest() {
        let entries = [entry(5, Outcome::Good)];
        let error = select(&entries, &Selector::At(at(1)), None, at(9)).unwrap_err();
        assert!(error.to_string().contains("the oldest is @5 of 2026-"), "{error}");
    }

    #[test]
    fn the_ring_may_be_left_out_only_before_a_selector() {
        let root: Name = "root".parse().unwrap();
        let target = Target::parse("@-1", &root).unwrap();
        assert_eq!(target, Target { ring: None, selector: Selector::Back(1) });
        assert!(target.named().is_err());
        assert!(Target::parse("", &root).is_err());
        assert!(Target::parse("@", &root).is_err());
        let target = Target::parse("bob/alice@42", &root).unwrap();
        assert_eq!(target.named().unwrap().0.to_string(), "bob/alice");
    }
}
