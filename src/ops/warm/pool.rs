//! How many sandboxes are to wait. Pure.

/// What is known of the sandboxes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stock {
    /// How many wait for clones.
    pub ready: usize,
    /// How many are being made.
    pub making: usize,
    /// How many requests wait for one.
    pub waiting: usize,
}

/// What was measured of sandboxes, to know how many there may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    bytes: u64,
    count: u64,
}

impl Weight {
    /// Of how many the mean is.
    const MEMORY: u64 = 16;

    /// Puts one more into the mean.
    pub(super) fn add(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if self.count == Self::MEMORY {
            self.bytes -= self.bytes / self.count;
            self.count -= 1;
        }
        self.bytes += bytes;
        self.count += 1;
    }

    /// Bytes of a sandbox, on average; `None` if none was measured.
    pub(super) fn mean(self) -> Option<u64> {
        (self.count > 0).then(|| self.bytes / self.count)
    }
}

/// How many are to wait: as many as are wished for and fit into the memory, and at least one of a pool.
pub(super) fn wanted(pool: u32, memory: u64, weight: Weight) -> usize {
    let fit = weight.mean().map_or(u64::MAX, |mean| memory / mean.max(1));
    let fit = u32::try_from(fit).unwrap_or(u32::MAX).max(1);
    usize::try_from(pool.min(fit)).unwrap_or(usize::MAX)
}

/// How many more have to be made now. Who waits gets one beside those of the pool.
pub(super) fn lacking(wanted: usize, stock: Stock) -> usize {
    (wanted + stock.waiting).saturating_sub(stock.ready + stock.making)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pool_is_as_large_as_its_memory_allows() {
        let mut weight = Weight::default();
        assert_eq!(wanted(4, 1 << 20, weight), 4, "nothing is known yet");
        weight.add(1 << 20);
        assert_eq!(wanted(4, 3 << 20, weight), 3);
        assert_eq!(wanted(4, 1, weight), 1, "one is always there");
        assert_eq!(wanted(0, u64::MAX, weight), 0);
    }

    #[test]
    fn the_mean_follows_what_is_measured() {
        let mut weight = Weight::default();
        (0..100).for_each(|_| weight.add(100));
        assert_eq!(weight.mean(), Some(100));
        (0..200).for_each(|_| weight.add(1000));
        assert!(weight.mean().unwrap() > 900, "{weight:?}");
        let before = weight;
        weight.add(0);
        assert_eq!(weight, before, "what had ended has no weight");
    }

    proptest! {
        #[test]
        fn no_more_are_made_than_are_needed(wanted in 0..300_usize, ready in 0..300_usize, making in 0..300_usize, waiting in 0..64_usize) {
            let more = lacking(wanted, Stock { ready, making, waiting });
            prop_assert!(more == 0 || ready + making + more == wanted + waiting);
        }
    }
}
