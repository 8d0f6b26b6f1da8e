//! Numbers about what is done, for those who watch many machines: counted where it happens, told as OpenMetrics text
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>) where somebody asks ([`page()`]).
//!
//! ```text
//! daemon:  an atomic, or a map of a few labels ──────────────────────────────┐
//! worker, verbs:  the same, emptied into STORE/metrics.json ([`Tally`]) ──────┼──> page, when it is scraped
//! keepers:  in their status ──────────────────────────────────────────────────┘
//! ```
//!
//! To count costs an atomic addition, or a short lock, and no memory before the first event. Nothing is lost by a process
//! that is killed but what it has counted since the last time that it was emptied or asked. Counters begin at zero with
//! the process that tells them, as those who read them expect.

mod durations;
mod family;
mod page;
mod tally;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use durations::{Bounds, Durations};
pub use family::{Family, OTHER};
pub use page::{CONTENT_TYPE, Process, Rings, Snapshot, Template, Work, page};
pub use tally::{
    Clones, Packs, TALLY_VERSION, Tally, clone_restored, drain, entries_evicted, layer_packed, pack_failed,
};

/// Calls of the control socket, by method and outcome.
static CALLS: Family<u64, 2> = Family::new();
/// Connections that were refused, by reason.
static CONNECTIONS_REFUSED: Family<u64, 1> = Family::new();
/// Who was asked for and found, or not: by [`Resolved`].
static RESOLVES: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// Changes of services, by service, change and outcome.
static SERVICE_CHANGES: Family<u64, 3> = Family::new();
/// Connections that old instances did not finish, by service.
static SERVICE_CUT: Family<u64, 1> = Family::new();
/// Operations that were taken on, by kind.
static OPERATIONS_ACCEPTED: Family<u64, 1> = Family::new();
/// … that conflict with another one, by kind.
static OPERATION_CONFLICTS: Family<u64, 1> = Family::new();
/// … that were refused for another reason, by reason.
static OPERATIONS_REFUSED: Family<u64, 1> = Family::new();
/// … that have ended, by kind and state.
static OPERATION_DURATIONS: Family<Durations, 2> = Family::new();
/// Requests to the registry, by call.
static REGISTRY_DURATIONS: Family<Durations, 1> = Family::new();
/// … that had no answer, by call and sort.
static REGISTRY_FAILURES: Family<u64, 2> = Family::new();
static LEASES_LOST: AtomicU64 = AtomicU64::new(0);

/// What came of a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// Somebody serves that version.
    Found,
    /// Nobody does.
    Unmatched,
    /// Somebody does, and could not be connected to.
    Unreachable,
}

impl Resolved {
    const ALL: [Self; 3] = [Self::Found, Self::Unmatched, Self::Unreachable];

    fn word(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Unmatched => "unmatched",
            Self::Unreachable => "unreachable",
        }
    }

    fn counter(self) -> &'static AtomicU64 {
        match self {
            Self::Found => &RESOLVES[0],
            Self::Unmatched => &RESOLVES[1],
            Self::Unreachable => &RESOLVES[2],
        }
    }
}

/// What came of something that may fail and then changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not, or was undone.
    Failed,
}

impl Outcome {
    /// That of a result.
    #[must_use]
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Done } else { Self::Failed }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// A method was called: its whole name, and the name of the error that it was answered with, or `ok`.
pub fn call_answered(method: &str, outcome: &'static str) {
    CALLS.add([method, outcome], 1);
}

/// A connection was refused.
pub fn connection_refused(reason: &'static str) {
    CONNECTIONS_REFUSED.add([reason], 1);
}

/// Somebody asked who serves.
pub fn resolved(how: Resolved) {
    how.counter().fetch_add(1, Ordering::Relaxed);
}

/// A change of a service has come about, or was undone: `restart`, `upgrade`, …
pub fn service_changed(service: &str, change: &'static str, outcome: Outcome) {
    SERVICE_CHANGES.add([service, change, outcome.word()], 1);
}

/// An old instance has ended and had so many connections still.
pub fn connections_cut(service: &str, connections: u64) {
    SERVICE_CUT.add([service], connections);
}

/// An operation was taken on, and waits to be begun.
pub fn operation_accepted(kind: &str) {
    OPERATIONS_ACCEPTED.add([kind], 1);
}

/// An operation was refused because another one has what it needs.
pub fn operation_conflicted(kind: &str) {
    OPERATION_CONFLICTS.add([kind], 1);
}

/// An operation was refused for another reason: the word for it.
pub fn operation_refused(reason: &str) {
    OPERATIONS_REFUSED.add([reason], 1);
}

/// An operation has come to its final state, so long after it was taken on.
pub fn operation_ended(kind: &str, state: &str, took: Duration) {
    OPERATION_DURATIONS.change([kind, state], || Durations::new(Bounds::Work), |durations| durations.observe(took));
}

/// The registry was asked for something, and has answered or failed after so long.
pub fn registry_asked(call: &'static str, took: Duration) {
    REGISTRY_DURATIONS.change([call], || Durations::new(Bounds::Answer), |durations| durations.observe(took));
}

/// The registry did not answer: the sort of failure.
pub fn registry_failed(call: &'static str, sort: &'static str) {
    REGISTRY_FAILURES.add([call, sort], 1);
}

/// A lease is gone, and what it held, though it was to be kept.
pub fn lease_lost() {
    LEASES_LOST.fetch_add(1, Ordering::Relaxed);
}
