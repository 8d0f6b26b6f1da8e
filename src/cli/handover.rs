//! `waker` and `handover`: what a ring needs of processes of its own while its container goes on.

use clap::{Args, Subcommand};

use super::Container;

/// `waker`
#[derive(Debug, Args)]
pub struct Waker {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
}

/// `handover`
#[derive(Debug, Subcommand)]
pub enum Handover {
    /// Free the ring of a container that goes on, and print what undoes it
    Prepare(Container),
    /// Give the ring back
    Undo {
        /// What `prepare` printed
        #[arg(value_name = "JSON")]
        handover: String,
    },
}
