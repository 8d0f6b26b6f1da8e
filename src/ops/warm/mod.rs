//! The keeper of a template: one process that holds the loaded program and has it forked into sandboxes.
//!
//! ```text
//! run        order off descriptor 0                                                          birth
//!            directory, sockets, workers; what dead keepers left goes                        home, crew, leftover
//!            the template's container, its program in it, `ready`    ──> Report::Ready       loading
//! keep       one epoll(7) over everything, and nothing is waited for alone:                  keeper
//!            requests ──> a sandbox that waits, forked into, answered                        clone
//!            sandboxes are made and taken away by workers                                    stock, crew, worker
//!            commands ──> status, retire, stop                                               status, end
//!
//! the other side, in the process that creates or starts a container:
//!
//! wish       what a container's annotations say is written down at its creation
//! start      a container of an engine's becomes a clone, or starts as ever                    base
//! ```
//!
//! **Crashes.** A keeper that is killed takes the loaded program with it (it is its tracer), and every sandbox that waits
//! (their first processes hear the end of their channel). What is left are ordinary containers: `delete --force` takes
//! them away, and so does the next keeper of the template. Clones that were told of go on.
//!
//! **Order of a clone.** Between a request and the running clone is only what the clone needs. Its name and its record are
//! written while it runs already; hooks, and what the store says of it, are a worker's. So whoever is killed in between
//! leaves a container under the sandbox's name, never two of one process.

mod base;
mod birth;
mod blank;
mod caller;
mod clone;
mod crew;
mod end;
mod fit;
mod function;
mod home;
mod keeper;
mod leftover;
mod loading;
mod pool;
pub mod snapshot;
pub mod start;
mod status;
mod stock;
mod tail;
mod task;
mod watch;
pub(super) mod wish;
mod worker;
mod zygote;

pub use birth::run;
pub use worker::run as run_worker;

use birth::{place, receive_order};

/// Where a clone finds its function, if it has one.
pub(super) const FUNCTION_INSIDE: &str = "/function";

/// The verb that a keeper is started with; the template behind it is for those who look at processes.
pub const KEEPER: &str = "template-keeper";
/// The verb that a keeper's worker is started with.
pub const WORKER: &str = "template-worker";
