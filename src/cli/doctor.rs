//! `regen doctor`

use clap::Args;

/// Say what this machine lacks, and what crashes left
#[derive(Debug, Clone, Copy, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
