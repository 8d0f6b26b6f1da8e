//! Templates, clones and functions, as an operator has them: the real daemon, the real keepers, the host's Python.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod call;
mod container;
mod crash;
mod life;
mod many;
mod page;
