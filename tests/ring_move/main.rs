//! Rings that move between hosts, by daemons that share an etcd, and a registry of images that both reach.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the seed and the moments are told, and kept to itself by a test that passes")]

mod away;
mod crash;
mod force;
#[path = "../harness/mod.rs"]
mod harness;
mod life;
mod scene;
