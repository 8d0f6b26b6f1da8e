//! What the administrator allows all rings of a store together: the worker keeps it.

use super::Place;
use crate::config;
use crate::error::Result;
use crate::ring::quota::Usage;
use crate::store::Store;
use crate::sys::fs::space;

/// Lets entries go where the rings take more than they may, or too little is free. What is freed is gone after the collection.
///
/// # Errors
/// If a ring cannot be read, nothing leaves; else those of removing.
pub(super) fn keep(place: &Place, store: &Store) -> Result<()> {
    let config::Store { min_free, max_bytes, make_room } = place.config.store;
    if max_bytes.is_none() && !make_room {
        return Ok(());
    }
    let usage = Usage::measure(store)?;
    let space = space(store.directory())?;
    let (free, total) = (space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize);
    let floor = if make_room { min_free.bytes(total) } else { 0 };
    for (ring, gone) in usage.free(excess(usage.bytes, max_bytes.map(|size| size.0), free, floor))? {
        tracing::info!("ring '{ring}': {} entries have left for the limits of the store", gone.len());
    }
    Ok(())
}

/// How many bytes too many the rings have, or too few are free.
fn excess(used: u64, limit: Option<u64>, free: u64, floor: u64) -> u64 {
    let over = limit.map_or(0, |limit| used.saturating_sub(limit));
    over.max(floor.saturating_sub(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold() {
        assert_eq!(excess(100, None, 0, 0), 0);
        assert_eq!(excess(100, Some(100), 10, 10), 0);
        assert_eq!(excess(100, Some(70), 10, 20), 30);
        assert_eq!(excess(100, Some(95), 10, 20), 10);
        assert_eq!(excess(0, Some(95), 10, 20), 10);
    }
}
