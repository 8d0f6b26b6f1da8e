//! `waker`, `snapshots` and `handover`: what a ring needs of processes of its own while its container goes on.

use clap::{Args, Subcommand};

use super::Container;
use crate::ids::LayerId;

/// Let a container go on if whoever froze it dies (the runtime's own use)
#[derive(Debug, Args)]
pub struct Waker {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
}

/// Make entries of a container every so often (the runtime's own use)
#[derive(Debug, Args)]
pub struct Snapshots {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// The run
    #[arg(value_name = "RUN")]
    pub run: LayerId,
    /// How often, in milliseconds
    #[arg(value_name = "MS")]
    pub every: u64,
}

/// `handover`
#[derive(Debug, Subcommand)]
#[command(defer = true)]
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
