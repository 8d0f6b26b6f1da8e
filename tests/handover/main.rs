//! Hot restart of unmodified programs: the keeper of each instance answers its binds, and no connection is lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adopt;
#[path = "../harness/mod.rs"]
mod harness;
mod limit;
mod program;
mod tcp;
mod unix;
