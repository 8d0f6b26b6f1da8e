//! Services, as an operator has them: the real daemon, its keepers, and clients that notice everything.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod adoption;
mod bad_input;
mod crash;
mod daemon;
mod life;
mod many;
mod orphan;
mod policy;
mod registry;
mod ring;
