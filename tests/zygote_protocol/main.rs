//! The zygote protocol, with the tests in the place of regen: templates are started as they are, asked to fork, and their
//! clones watched. The forks are plain ones, so no right is needed, and the clones are in no container.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod call;
mod native;
mod peer;
mod program;
mod template;
