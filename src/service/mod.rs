//! Services: a name and a version, the sockets that clients know, and instances that come and go behind them.
//!
//! ```text
//!  Definition ──> keeper: one process per instance, holds its sockets, its log, its end
//!                   │ order, commands, replies (message)
//!                 daemon: which instances there are, which one serves
//! ```
//!
//! An instance is an ordinary container. What must outlive it is with its keeper; what must outlive the keeper is handed
//! to the next one. The daemon decides and remembers, and its death harms nothing.

pub mod address;
pub mod choice;
pub mod connect;
pub mod definition;
pub mod drain;
pub mod intercept;
pub mod keeper;
pub mod log;
pub mod message;
pub mod policy;
pub mod ready;
pub mod request;
pub mod roster;
pub mod settings;
pub mod socket;
pub mod steer;
