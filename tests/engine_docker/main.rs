//! The real Docker with regen as its runtime, told of it by `regen install`; each test with a daemon of its own.
//!
//! Debian's Docker is 20.10, which has no annotations: a ring is chosen by the runtime's entry.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod docker;
#[path = "../harness/mod.rs"]
mod harness;
mod life;
mod ring;
