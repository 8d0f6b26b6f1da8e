//! The daemon's socket: what it answers, to whom, what becomes of callers who misbehave, and of callers while daemons come
//! and go. The other end is written here byte by byte, or is zlink's, which others have made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod caller;
mod daemon;
mod description;
mod foreign;
#[path = "../harness/mod.rs"]
mod harness;
mod hostile;
mod life;
mod local;
mod protocol;
mod stream;
mod unit;
