//! What processes that come and go have counted: the worker that packs, and verbs. Each adds what it has to a file of the
//! store, which the daemon reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::family::within;
use super::{Bounds, Durations, Family, Outcome};

/// The version of the file that is written. One of another version is begun anew.
pub const TALLY_VERSION: u32 = 1;

static HERE: Count = Count::new();

/// What this process has counted and not yet told.
#[derive(Debug)]
struct Count {
    evicted: AtomicU64,
    packs: Family<Packs, 0>,
    clones: Family<Clones, 1>,
}

/// What was counted of one store since its file was begun.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// [`TALLY_VERSION`]
    pub version: u32,
    /// Layers that were packed.
    #[serde(default)]
    pub packs: Packs,
    /// Entries that left their ring because it was over its limits.
    #[serde(default)]
    pub evicted: u64,
    /// Clones that were restored from snapshots, by template.
    #[serde(default)]
    pub clones: BTreeMap<String, Clones>,
}

/// Packs of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packs {
    /// Those that came about, and how long each took.
    pub durations: Durations,
    /// Those that did not.
    pub failed: u64,
    /// Bytes on disk of the layers.
    pub read: u64,
    /// Bytes of the packs.
    pub written: u64,
}

/// Clones of a template.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Clones {
    /// Those that came about, and how long each took.
    pub durations: Durations,
    /// Those that did not.
    pub failed: u64,
}

/// A layer was packed: its bytes on disk, those of its pack, and how long that took.
pub fn layer_packed(read: u64, written: u64, took: Duration) {
    HERE.layer_packed(read, written, took);
}

/// A layer could not be packed.
pub fn pack_failed() {
    HERE.pack_failed();
}

/// Entries were evicted.
pub fn entries_evicted(number: usize) {
    HERE.entries_evicted(number);
}

/// A clone was restored from a snapshot, or was not, after so long.
pub fn clone_restored(template: &str, outcome: Outcome, took: Duration) {
    HERE.clone_restored(template, outcome, took);
}

/// What this process has counted since the last time; `None` if nothing. It is for whoever adds it to the file.
#[must_use]
pub fn drain() -> Option<Tally> {
    HERE.drain()
}

impl Count {
    const fn new() -> Self {
        Self { evicted: AtomicU64::new(0), packs: Family::new(), clones: Family::new() }
    }

    fn layer_packed(&self, read: u64, written: u64, took: Duration) {
        self.packs.change([], Packs::default, |packs| {
            packs.durations.observe(took);
            packs.read = packs.read.saturating_add(read);
            packs.written = packs.written.saturating_add(written);
        });
    }

    fn pack_failed(&self) {
        self.packs.change([], Packs::default, |packs| packs.failed += 1);
    }

    fn entries_evicted(&self, number: usize) {
        self.evicted.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn clone_restored(&self, template: &str, outcome: Outcome, took: Duration) {
        self.clones.change([template], Clones::default, |clones| match outcome {
            Outcome::Done => clones.durations.observe(took),
            Outcome::Failed => clones.failed += 1,
        });
    }

    fn drain(&self) -> Option<Tally> {
        let packs = self.packs.take().into_iter().next().map(|(_, packs)| packs).unwrap_or_default();
        let clones = self.clones.take().into_iter().map(|([template], clones)| (template, clones)).collect();
        let tally = Tally { version: TALLY_VERSION, packs, evicted: self.evicted.swap(0, Ordering::Relaxed), clones };
        (tally != Tally { version: TALLY_VERSION, ..Tally::default() }).then_some(tally)
    }
}

impl Default for Packs {
    fn default() -> Self {
        Self { durations: Durations::new(Bounds::Work), failed: 0, read: 0, written: 0 }
    }
}

impl Tally {
    /// Adds what another process has counted.
    pub fn add(&mut self, more: &Self) {
        let packs = &mut self.packs;
        packs.durations.add(&more.packs.durations);
        packs.failed = packs.failed.saturating_add(more.packs.failed);
        packs.read = packs.read.saturating_add(more.packs.read);
        packs.written = packs.written.saturating_add(more.packs.written);
        self.evicted = self.evicted.saturating_add(more.evicted);
        for (template, more) in &more.clones {
            let key = within(&self.clones, template);
            self.clones.entry(key).or_default().add(more);
        }
    }
}

impl Clones {
    /// Adds others.
    pub fn add(&mut self, more: &Self) {
        self.durations.add(&more.durations);
        self.failed = self.failed.saturating_add(more.failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_once_and_adds_up() {
        let here = Count::new();
        assert_eq!(here.drain(), None);
        here.pack_failed();
        here.layer_packed(100, 10, Duration::from_millis(3));
        here.layer_packed(50, 5, Duration::from_secs(3));
        here.entries_evicted(2);
        here.clone_restored("web", Outcome::Done, Duration::from_millis(90));
        here.clone_restored("web", Outcome::Failed, Duration::from_millis(90));
        let first = here.drain().unwrap();
        assert_eq!(here.drain(), None);
        let (packs, clones) = (&first.packs, &first.clones["web"]);
        assert_eq!((packs.durations.count(), packs.failed, packs.read, packs.written), (2, 1, 150, 15));
        assert_eq!((first.evicted, clones.durations.count(), clones.failed), (2, 1, 1));
        let mut sum = Tally::default();
        sum.add(&first);
        sum.add(&first);
        assert_eq!((sum.packs.durations.count(), sum.evicted, sum.clones["web"].failed), (4, 4, 2));
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), sum);
    }
}
