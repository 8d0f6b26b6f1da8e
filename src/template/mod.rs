//! Warm templates: a program that has loaded what it needs, once, and from which containers are forked that run at once.
//!
//! ```text
//!  Definition ──> keeper: one process per template, holds the loaded program, forks it into containers
//!                   ▲ request, answer (message), job (job)
//!                 whoever wants a clone: `regen clone`, `regen invoke`, `regen start` under an engine
//! ```
//!
//! A clone is an ordinary container. What is kept of a template beside its definition is only speed: without its keeper
//! everything starts as it always does.

pub mod client;
pub mod definition;
pub mod job;
pub mod message;
pub mod program;
pub mod proxy;
pub mod python;
pub mod request;
