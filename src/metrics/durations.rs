//! How long something took, many times: how often it took at most so long, and the sum.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, in microseconds. What takes longer is in one more bucket.
const ANSWER: &[u64] =
    &[100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];
const WORK: &[u64] = &[
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
];

/// What bounds fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bounds {
    /// From a tenth of a millisecond to five seconds: somebody waits for it.
    #[default]
    Answer,
    /// From a millisecond to half an hour: work.
    Work,
}

impl Bounds {
    fn micros(self) -> &'static [u64] {
        match self {
            Self::Answer => ANSWER,
            Self::Work => WORK,
        }
    }
}

/// A histogram of durations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durations {
    bounds: Bounds,
    /// For each bucket how many fell into it and no lower one; as long as needed.
    counts: Vec<u64>,
    /// The sum, in microseconds.
    micros: u64,
}

impl Durations {
    /// Of nothing yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, counts: Vec::new(), micros: 0 }
    }

    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds.micros().partition_point(|bound| *bound < micros);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.micros = self.micros.saturating_add(micros);
    }

    /// Counts those of another one, too. One with other bounds comes from another version, and is passed over.
    pub fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.bounds = other.bounds;
        }
        let known = other.bounds.micros().len() + 1;
        if other.bounds != self.bounds || other.counts.len() > known {
            return;
        }
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own = own.saturating_add(*more);
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Their sum in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        Duration::from_micros(self.micros).as_secs_f64()
    }

    /// Each bucket's upper bound in seconds, the last infinite, and how many fell into it and no lower one.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.micros().iter().map(|micros| Duration::from_micros(*micros).as_secs_f64());
        let counts = self.counts.iter().copied().chain(std::iter::repeat(0));
        bounds.chain(std::iter::once(f64::INFINITY)).zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let mut durations = Durations::new(Bounds::Answer);
        for micros in [0, 100, 101, 5_000_000, 5_000_001, u64::MAX / 4] {
            durations.observe(Duration::from_micros(micros));
        }
        let buckets = durations.buckets();
        assert_eq!(buckets.len(), ANSWER.len() + 1);
        assert_eq!((buckets[0], buckets[1], buckets[ANSWER.len()]), ((0.0001, 2), (0.00025, 1), (f64::INFINITY, 2)));
        assert_eq!((buckets[ANSWER.len() - 1], durations.count()), ((5.0, 1), 6));
        assert!(ANSWER.is_sorted() && WORK.is_sorted());
    }

    #[test]
    fn sums_have_what_their_parts_have_and_other_bounds_are_passed_over() {
        let mut one = Durations::new(Bounds::Work);
        one.observe(Duration::from_secs(2));
        let mut sum = Durations::default();
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.count(), sum.seconds()), (2, 4.0));
        let mut other = Durations::new(Bounds::Answer);
        other.observe(Duration::from_secs(9));
        sum.add(&other);
        assert_eq!(sum.count(), 2);
        let strange: Durations =
            serde_json::from_str(r#"{"bounds":"work","counts":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"micros":1}"#)
                .unwrap();
        sum.add(&strange);
        assert_eq!(sum.count(), 2);
    }
}
