//! Containers that begin where another one was when it had loaded what it needs.

pub mod snapshot;
