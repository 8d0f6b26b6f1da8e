//! Several hosts: what one node does when others, the wires or etcd fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod fault;
mod node;
mod operation;
mod page;
mod service;
mod site;
