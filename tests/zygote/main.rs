//! Templates on the real kernel: loaded programs whose forks become the processes of containers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod fidelity;
mod hostile;
mod load;
mod python;
mod stage;
