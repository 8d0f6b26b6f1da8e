//! The page of numbers: that it is what others read, that what is said of it is so, that what happens is counted, and that
//! nobody harms the daemon by it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod count;
mod document;
#[path = "../harness/mod.rs"]
mod harness;
mod http;
mod log;
mod page;
