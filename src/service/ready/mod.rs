//! When an instance is ready: what is asked of it, and how it says so.

pub mod http;
pub mod notify;
