//! `regen doctor`

use clap::Args;

/// `doctor`
#[derive(Debug, Clone, Copy, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
