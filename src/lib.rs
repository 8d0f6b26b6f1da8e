//! regen: an OCI container runtime whose containers can be regenerated.
//!
//! The map, in rank order: a module imports from lower ranks only, never up or sideways
//! (`tests/layering.rs` reads the `use` lines).

#![deny(unsafe_code)]

// rank 0: words that everything speaks
pub mod config;
pub mod error;
pub mod ids;
pub mod metrics;

// rank 1: the kernel; the only unsafe code
#[allow(unsafe_code)]
pub mod sys;

// rank 2: one subject each, unaware of one another
pub mod bundle;
pub mod cgroup;
pub mod criu;
pub mod distribution;
pub mod image;
pub mod overlay;
pub mod pack;
pub mod program;
pub mod registration;
pub mod registry;
pub mod rootfs;
pub mod store;

// rank 3: one capability each
pub mod node;
pub mod operation;
pub mod ring;
pub mod runtime;
pub mod service;
pub mod template;

// rank 4: where they meet
pub mod ops;

// rank 5: the daemon's socket
pub mod control;

// rank 6: what a user types
pub mod cli;
pub mod command;
