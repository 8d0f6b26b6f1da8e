//! The real podman with regen as its runtime, told of it by what `regen install` prints; each test on a storage, a
//! configuration and a cgroup of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod data;
#[path = "../harness/mod.rs"]
mod harness;
mod install;
mod isolation;
mod life;
mod pod;
mod podman;
mod ring;
mod rootless;
mod warm;
