//! How much of a ring a container asks for: how many entries, how many bytes, which are kept.

use super::RingRequest;
use crate::config::{self, parse_bytes};
use crate::error::{Error, Kind, Result, is_too_large};
use crate::ring::Limits;
use crate::ring::keep::Keep;
use crate::ring::state::RingState;

/// Reads the depth of a ring: at least one entry.
///
/// # Errors
/// [`Kind::Invalid`] if it is not a number from 1 on.
pub fn parse_depth(text: &str) -> Result<usize> {
    match text.parse::<usize>() {
        Ok(0) => Err(Error::new(Kind::Invalid, "read depth '0'", "a ring has at least one entry")),
        Ok(depth) => Ok(depth),
        Err(error) => {
            let operation = format!("read depth '{}'", text.escape_debug());
            let cause = if is_too_large(&error) { "it is too large" } else { "it is no number from 1 on" };
            Err(Error::new(Kind::Invalid, operation, cause))
        }
    }
}

/// Reads the byte limit of a ring. Zero is none: a ring that always keeps just its newest entry has a depth of 1.
///
/// # Errors
/// [`Kind::Invalid`] if it is no size above zero.
pub fn parse_max_bytes(text: &str) -> Result<u64> {
    match parse_bytes(text)? {
        0 => Err(Error::new(
            Kind::Invalid,
            format!("read byte limit '{}'", text.escape_debug()),
            "it would keep nothing",
        )
        .next("use 'none' for no limit, or --depth 1 for one entry")),
        bytes => Ok(bytes),
    }
}

/// The limits that a new ring has.
#[must_use]
pub fn initial_limits(request: &RingRequest, defaults: &config::Ring) -> Limits {
    Limits {
        depth: request.depth.unwrap_or(defaults.depth as usize),
        max_bytes: request.max_bytes.or(defaults.max_bytes.map(|size| size.0)),
    }
}

/// The rules by which a new ring keeps entries.
#[must_use]
pub fn initial_keep(request: &RingRequest, defaults: &config::Ring) -> Keep {
    let config::Ring { keep_last: last, keep_hourly: hourly, keep_daily: daily, keep_weekly: weekly, .. } = *defaults;
    Keep { last, hourly, daily, weekly }.changed(request.keep)
}

impl RingRequest {
    /// Gives a ring that is there what is asked for.
    pub(in crate::ops) fn limit(&self, state: &mut RingState) {
        state.depth = self.depth.unwrap_or(state.depth);
        state.max_bytes = self.max_bytes.or(state.max_bytes);
        state.keep = state.keep.changed(self.keep);
    }
}
