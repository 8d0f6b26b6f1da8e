//! Forks that containers were given and that nobody needs any more. They go when somebody asks for that: of what a container
//! left nobody else knows whether it is wanted.

use std::fs;

use chrono::{DateTime, TimeDelta, Utc};

use super::entry::Reason;
use super::seal::{has_changes, is_held};
use super::state::RingState;
use super::{Locked, Removal, Ring};
use crate::error::{Context, Kind, Result, quote};
use crate::store::{Run, Store};

/// Nobody has a fork between its making and its first run, which takes some milliseconds.
const NEW: TimeDelta = TimeDelta::minutes(1);

/// Which of them are meant: always those in which nothing was changed, and of the others those that are old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disuse {
    /// How long nothing ran there; `None` if others stay however old they are.
    pub older_than: Option<TimeDelta>,
}

impl Disuse {
    /// The forks that may go now, by name.
    ///
    /// # Errors
    /// If a ring cannot be read; those of looking at what dead containers left.
    pub fn find(self, store: &Store) -> Result<Vec<Ring>> {
        let mut found = Vec::new();
        // Most rings are none, and are not locked for that.
        let is_meant = |ring: &Ring| Ok(ring.read()?.made_for.is_some() && ring.lock()?.is_disused(self)?);
        for (ring, is_meant) in Ring::each(store, is_meant)? {
            if is_meant? {
                found.push(ring);
            }
        }
        Ok(found)
    }

    /// Removes one of them; `false` if it has come to be used since it was found.
    ///
    /// # Errors
    /// As [`Removal::carry_out`].
    pub fn remove(self, ring: &Ring) -> Result<bool> {
        let locked = match ring.lock() {
            Err(error) if error.kind() == Kind::NotFound => return Ok(false),
            other => other?,
        };
        if !locked.is_disused(self)? {
            return Ok(false);
        }
        Removal::from(locked).carry_out().map(|()| true)
    }

    /// Pure. `ran` is when the run began that has it, whose container is dead and changed nothing; `written` when its state
    /// was last written.
    fn means(self, state: &RingState, ran: Option<DateTime<Utc>>, written: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let is_one = state.made_for.is_some() && state.elsewhere.is_none() && state.moves == 0;
        if !is_one || !state.sides.is_empty() || state.entries.iter().any(|entry| entry.pinned) {
            return false;
        }
        let made = state.newest().map(|entry| entry.created);
        let idle = now - [made, state.last_exit, ran].into_iter().flatten().max().unwrap_or(written);
        if state.last_exit.is_none() && ran.is_none() && idle < NEW {
            return false;
        }
        let is_untouched = state.last_seq <= 1 && state.entries.iter().all(|entry| entry.reason == Reason::Fork);
        is_untouched || self.older_than.is_some_and(|age| idle >= age)
    }
}

impl Locked {
    fn is_disused(&self, disuse: Disuse) -> Result<bool> {
        let store = self.ring().store();
        let run = self.state.run.as_ref().map(|id| Run::load(store, id)).transpose()?.flatten();
        let ran = run.as_ref().map(|run| run.record.started);
        let file = self.ring().state_file();
        let written =
            fs::metadata(&file).and_then(|file| file.modified()).context(|| format!("look at {}", quote(&file)))?;
        if !disuse.means(&self.state, ran, written.into(), Utc::now()) {
            return Ok(false);
        }
        match run {
            Some(run) => Ok(run.record.living_holder()?.is_none() && !is_held(&run)? && !has_changes(store, &run)?),
            None => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::super::entry::tests::entry;
    use super::super::entry::{Entry, Outcome};
    use super::*;

    /// A fork of an entry, made and used so many hours ago.
    fn fork(made: i64, used: Option<i64>, now: DateTime<Utc>) -> RingState {
        let mut state = RingState::new(Limits { depth: 8, max_bytes: None });
        let ago = |hours| now - TimeDelta::hours(hours);
        state.made_for = Some("box1".parse().unwrap());
        state.entries = vec![Entry { reason: Reason::Fork, created: ago(made), ..entry(1, Outcome::Good) }];
        state.last_exit = used.map(ago);
        (state.last_seq, state.next) = (1, Some(1));
        state
    }

    #[test]
    fn a_fork_goes_that_is_untouched_or_was_not_used_for_long() {
        let now = Utc::now();
        let day = Disuse { older_than: Some(TimeDelta::days(1)) };
        let untouched = Disuse { older_than: None };
        let changed = |made, used| {
            let mut state = fork(made, used, now);
            let newer = Entry { created: state.entries[0].created, ..entry(2, Outcome::Good) };
            state.entries.push(newer);
            state.last_seq = 2;
            state
        };
        let means = |disuse: Disuse, state: &RingState| disuse.means(state, None, now, now);
        assert!(means(untouched, &fork(1, None, now)) && means(untouched, &fork(1, Some(0), now)));
        assert!(!means(untouched, &fork(0, None, now)), "its first run is about to begin");
        assert!(untouched.means(&fork(0, None, now), Some(now), now, now), "its first run is over");
        assert!(!means(untouched, &changed(1000, Some(999))));
        assert!(means(day, &changed(1000, Some(999))) && !means(day, &changed(1000, Some(23))));
        assert!(!day.means(&changed(1000, Some(999)), Some(now), now, now), "it was used just now");
    }

    #[test]
    fn what_is_no_fork_of_a_container_or_held_by_anything_stays() {
        let now = Utc::now();
        let means = |change: &dyn Fn(&mut RingState)| {
            let mut state = fork(1000, Some(1000), now);
            change(&mut state);
            Disuse { older_than: Some(TimeDelta::days(1)) }.means(&state, None, now, now)
        };
        assert!(means(&|_| {}));
        assert!(!means(&|state| state.made_for = None));
        assert!(!means(&|state| state.entries[0].pinned = true));
        assert!(!means(&|state| state.moves = 1));
    }
}
