//! Operations: every change that is asked of the daemon, as words and rules. Who carries them out is [`crate::ops::operation`].
//!
//! ```text
//! asked ──> admit (queue) ──> markers taken, written down (marker) ──> queued ──> running ──> succeeded | failed
//!              │ refused             │ held by another                   │          │        cancelled | unknown
//!              └── a reason          └── its holder, node and age        └── begun only past the fence
//! ```
//!
//! Two operations that contradict each other never both run: a *kind* takes *classes* of its resources ([`class`]), and each
//! (resource, class) has one *marker* in the registry, which goes with the lease of the daemon that took it. The revision that
//! made the marker is the operation's *token*. Whoever acts for it shows the token to the *fence* of the node, which has the
//! highest one that it saw on disk and refuses lower ones. So a daemon that was cut off and lost its markers can do no harm
//! with what it sends late.
//!
//! ```text
//! operation/ID                 Record: kind, state, requester, node, times, counts
//! operation/ID/targets         the targets, if there are more than a few
//! operation/ID/results/NNNN    what came of each, in pieces
//! operation-key/KEY            the operation that was submitted under this key
//! active/NODE/ID               which are not at their end, by the node that has them
//! marker/RESOURCE/CLASS        Marker; leased
//! wide/ID                      Wide: the markers of an operation that has too many for one transaction; leased
//! wide                         changed by every wide operation; narrow ones compare it
//! ```
//!
//! The only input and output here is that of a registry that the caller gives, and the fence's file.

pub mod book;
pub mod class;
mod clock;
pub mod course;
mod dense;
pub mod fence;
mod id;
mod kind;
pub mod lane;
pub mod lease;
pub mod marker;
pub mod queue;
pub mod record;
pub mod resource;
pub mod retry;
mod state;
mod target;

pub use clock::{Clock, Machine};
pub use id::OperationId;
pub use kind::{Kind, SubjectKind};
pub use record::{Counts, Outcome, Record, key};
pub use resource::Resource;
pub use state::State;
pub use target::Target;
