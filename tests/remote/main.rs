//! From node to node: who is let in, who is not and what they are told, and what becomes of strangers who misbehave. Certificates
//! are those of `hack/certs`; strangers are written here byte by byte, or are openssl's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod authority;
mod call;
mod certificate;
mod daemon;
#[path = "../harness/mod.rs"]
mod harness;
mod hostile;
mod node;
