//! Numbers that are told apart by labels.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most combinations of labels that are told apart. Names of services and templates are chosen by users, and every
/// combination takes memory here and there.
const SERIES: usize = 1000;
/// The first label of what comes after that.
pub const OTHER: &str = "other";

/// So many labels, and for every combination of their values a number of sort `T`. It takes no memory while it is empty.
#[derive(Debug)]
pub struct Family<T, const LABELS: usize>(Mutex<BTreeMap<[String; LABELS], T>>);

impl<T, const LABELS: usize> Family<T, LABELS> {
    /// One with nothing in it.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Changes one number, which is `fresh` if it was not there.
    pub fn change(&self, labels: [&str; LABELS], fresh: impl FnOnce() -> T, change: impl FnOnce(&mut T)) {
        let mut key = labels.map(str::to_owned);
        let mut cells = self.lock();
        if cells.len() >= SERIES
            && !cells.contains_key(&key)
            && let Some(first) = key.first_mut()
        {
            OTHER.clone_into(first);
        }
        change(cells.entry(key).or_insert_with(fresh));
    }

    /// All of them, which are then gone.
    #[must_use]
    pub fn take(&self) -> BTreeMap<[String; LABELS], T> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<[String; LABELS], T>> {
        // Numbers are right at every moment, whatever became of the thread that held them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key for `name` in a map that has room for so many names.
pub(super) fn within<T>(map: &BTreeMap<String, T>, name: &str) -> String {
    if map.len() < SERIES || map.contains_key(name) { name.to_owned() } else { OTHER.to_owned() }
}

impl<T: Clone, const LABELS: usize> Family<T, LABELS> {
    /// All of them.
    #[must_use]
    pub fn read(&self) -> Vec<([String; LABELS], T)> {
        self.lock().iter().map(|(labels, value)| (labels.clone(), value.clone())).collect()
    }
}

impl<const LABELS: usize> Family<u64, LABELS> {
    /// Adds to one number.
    pub fn add(&self, labels: [&str; LABELS], more: u64) {
        self.change(labels, u64::default, |value| *value = value.saturating_add(more));
    }
}

impl<T, const LABELS: usize> Default for Family<T, LABELS> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_end_take_memory_with_an_end() {
        let family: Family<u64, 2> = Family::new();
        for number in 0..SERIES * 2 {
            family.add([&format!("service{number:06}"), "done"], 1);
        }
        family.add(["service000000", "done"], 1);
        let all = family.read();
        assert_eq!(all.len(), SERIES + 1);
        assert_eq!(all[0], ([OTHER.to_owned(), "done".to_owned()], u64::try_from(SERIES).unwrap()));
        assert_eq!(all[1].1, 2);
    }
}
