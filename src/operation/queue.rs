//! What is taken into the queue: decided from how full it is, and from what is asked.

use crate::error::{Error, Kind as Fault};
use crate::ids::NodeName;

use super::{Kind, OperationId};

/// How much there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Operations that are not at their end.
    pub operations: usize,
    /// Their targets.
    pub targets: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { operations: 10_000, targets: 1_000_000 }
    }
}

/// Whether a daemon takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// It does.
    Open,
    /// It is about to end.
    Closed,
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Operations that are not at their end.
    pub operations: usize,
    /// Their targets.
    pub targets: usize,
    /// Whether anything is taken.
    pub door: Door,
}

/// What of a request matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What it is to do.
    pub kind: Kind,
    /// To how many things.
    pub targets: usize,
    /// The first node that nobody knows, if there is one.
    pub stranger: Option<NodeName>,
    /// Whether its time is over before it begins.
    pub late: Late,
    /// The operation that has its idempotency key already.
    pub known: Option<OperationId>,
}

/// Whether the time of a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// No, or it has no limit.
    No,
    /// Yes.
    Yes,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It becomes an operation, if nobody else holds what it takes.
    Accept,
    /// It is one already.
    Duplicate(OperationId),
    /// It is not taken.
    Refuse(Reason),
}

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// There are too many operations.
    QueueFull,
    /// It, or all together, have too many targets.
    TooManyTargets,
    /// The daemon is about to end.
    ShuttingDown,
    /// There is no such node.
    UnknownNode(NodeName),
    /// It is about nothing.
    NoTarget,
    /// Its time is over.
    DeadlinePassed,
}

/// Decides. A duplicate is no work, so it is known even where nothing more is taken.
#[must_use]
pub fn admit(load: &Load, bounds: &Bounds, asked: &Asked) -> Admission {
    if let Some(id) = asked.known {
        return Admission::Duplicate(id);
    }
    let reason = match (load.door, &asked.stranger) {
        (Door::Closed, _) => Reason::ShuttingDown,
        (Door::Open, _) if asked.targets == 0 => Reason::NoTarget,
        (Door::Open, Some(node)) => Reason::UnknownNode(node.clone()),
        (Door::Open, None) if asked.late == Late::Yes => Reason::DeadlinePassed,
        (Door::Open, None) if load.operations >= bounds.operations => Reason::QueueFull,
        (Door::Open, None) if asked.targets > bounds.targets.saturating_sub(load.targets) => Reason::TooManyTargets,
        (Door::Open, None) => return Admission::Accept,
    };
    Admission::Refuse(reason)
}

impl Reason {
    /// Its sort, for those who count.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::TooManyTargets => "too-many-targets",
            Self::ShuttingDown => "shutting-down",
            Self::UnknownNode(_) => "unknown-node",
            Self::NoTarget => "no-target",
            Self::DeadlinePassed => "deadline-passed",
        }
    }

    /// In words.
    #[must_use]
    pub fn error(&self, kind: Kind, bounds: &Bounds) -> Error {
        let refuse = |fault, cause: String| Error::new(fault, format!("submit {kind}"), cause);
        match self {
            Self::QueueFull => {
                refuse(Fault::Busy, format!("{} operations are under way, no more are taken", bounds.operations))
                    .next("try again later, see 'regen op ls'")
            }
            Self::TooManyTargets => {
                refuse(Fault::Busy, format!("there would be more than {} targets under way", bounds.targets))
                    .next("divide it, or try again later, see 'regen op ls'")
            }
            Self::ShuttingDown => {
                refuse(Fault::Busy, "the daemon is about to end".to_owned()).next("try again when it is back")
            }
            Self::UnknownNode(node) => {
                refuse(Fault::NotFound, format!("there is no node '{node}'")).next("see 'regen node ls'")
            }
            Self::NoTarget => refuse(Fault::Usage, "there is nothing to do it to".to_owned()).next("name a target"),
            Self::DeadlinePassed => {
                refuse(Fault::State, "its deadline is over before it begins".to_owned()).next("give it more time")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked() -> impl Strategy<Value = Asked> {
        let known = proptest::option::of(Just(OperationId::new(1, [1; 16])));
        let stranger = proptest::option::of(Just("n9".parse::<NodeName>().unwrap()));
        (0..30_usize, stranger, any::<bool>(), known).prop_map(|(targets, stranger, late, known)| Asked {
            kind: Kind::Probe,
            targets,
            stranger,
            late: if late { Late::Yes } else { Late::No },
            known,
        })
    }

    proptest! {
        /// A queue that admits by this never grows past its bounds, and takes whatever fits.
        #[test]
        fn the_bounds_hold_and_nothing_that_fits_is_refused(
            requests in proptest::collection::vec((asked(), any::<bool>(), any::<bool>()), 0..60),
        ) {
            let bounds = Bounds { operations: 8, targets: 100 };
            let mut queue: Vec<usize> = Vec::new();
            for (asked, ends, closed) in requests {
                if ends && !queue.is_empty() {
                    queue.remove(0);
                }
                let door = if closed { Door::Closed } else { Door::Open };
                let load = Load { operations: queue.len(), targets: queue.iter().sum(), door };
                let fits = load.operations < 8 && load.targets + asked.targets <= 100;
                let good = asked.targets > 0 && asked.stranger.is_none() && asked.late == Late::No && !closed;
                match admit(&load, &bounds, &asked) {
                    Admission::Accept => {
                        prop_assert!(fits && good && asked.known.is_none());
                        queue.push(asked.targets);
                    }
                    Admission::Duplicate(id) => prop_assert_eq!(Some(id), asked.known),
                    Admission::Refuse(reason) => {
                        prop_assert!(!(fits && good) && asked.known.is_none(), "{:?}", reason);
                        prop_assert!(reason.error(Kind::Probe, &bounds).next_step().is_some());
                    }
                }
            }
        }
    }
}
