//! Programs that know nothing of services: their binds and listens, answered by an interceptor, without a container
//! around them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod file;
#[path = "../harness/port.rs"]
mod free;
mod hostile;
mod instance;
mod port;
mod private;
