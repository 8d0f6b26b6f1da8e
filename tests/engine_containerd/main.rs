//! The real containerd with regen as its runtime, through `ctr` and through the interface that kubelet uses.
//!
//! With `REGEN_OCI_TEST_RUNTIME=runc` in the environment the containers are runc's: all tests but those of rings pass then
//! too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crash;
mod cri;
mod ctr;
mod daemon;
#[path = "../harness/mod.rs"]
mod harness;
mod message;
mod pod;
mod ring;
mod security;
mod warm;
