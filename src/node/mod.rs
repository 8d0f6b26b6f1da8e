//! Nodes as words: what is known of a host with a daemon, how some of many are chosen, and a copy of who serves where.
//!
//! ```text
//! registry  node/NAME                       Node, as JSON; goes when that node renews its lease no more
//!           member/NODE/SERVICE/VERSION     who serves there, as JSON; goes with it
//!             │ listing, events
//!             ▼
//! Directory ──> which nodes there are, who serves: answered from memory, also while the registry is away
//! ```
//!
//! Nothing here reads or writes: [`crate::ops::cluster`] does.

mod directory;
mod freshness;
mod key;
mod label;
mod record;
mod selector;
mod shard;

pub use crate::ids::NodeName;
pub use directory::{Directory, Offer, Placed, Snapshot};
pub use key::{MEMBERS, NODES, member_key, member_prefix, node_key};
pub use label::Label;
pub use record::{Capacity, Counts, Node, State, Versions};
pub use selector::{Selector, select};
