//! `regen ring …`, the verbs that look at what a ring has.

use std::path::PathBuf;

use clap::Args;

use super::ring::Output;

/// List the entries of a ring, newest first
#[derive(Debug, Args)]
pub struct Log {
    /// The ring, as NAME or OWNER/NAME
    #[arg(value_name = "RING")]
    pub ring: String,
    /// Draw which entry came of which
    #[arg(long, conflicts_with = "json")]
    pub graph: bool,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Print a file of a saved state
#[derive(Debug, Args)]
pub struct Cat {
    /// The entry: RING for the newest, RING@42, RING@-1, RING@-5m, RING@2026-11-22T15:24:48Z; RING@base for the bare base
    #[arg(value_name = "RING[@SEL]")]
    pub target: String,
    /// The file, by its path in the container
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// Put a file or a directory of a saved state back
#[derive(Debug, Args)]
pub struct Restore {
    /// The entry: RING for the newest, RING@42, RING@-1, RING@-5m, RING@2026-11-22T15:24:48Z; RING@base for the bare base
    #[arg(value_name = "RING[@SEL]")]
    pub target: String,
    /// The file or directory, by its path in the container
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// A directory of the host that gets it [default: the container that has the ring, at the same path]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Mount a saved state read-only
#[derive(Debug, Args)]
pub struct Mount {
    /// The entry: RING for the newest, RING@42, RING@-1, RING@-5m, RING@2026-11-22T15:24:48Z; RING@base for the bare base
    #[arg(value_name = "RING[@SEL]")]
    pub target: String,
    /// The directory to mount it at
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Unmount a saved state
#[derive(Debug, Args)]
pub struct Unmount {
    /// The directory that 'ring mount' was given
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Which entries `ring set` keeps whatever the depth.
#[derive(Debug, Clone, Copy, Args)]
pub struct Rules {
    /// Keep the newest N entries, also where the depth is less; 0 to take such a rule away
    #[arg(long = "keep-last", value_name = "N")]
    pub last: Option<u32>,
    /// Keep the newest entry of each of the last N hours that have one
    #[arg(long = "keep-hourly", value_name = "N")]
    pub hourly: Option<u32>,
    /// Keep the newest entry of each of the last N days that have one
    #[arg(long = "keep-daily", value_name = "N")]
    pub daily: Option<u32>,
    /// Keep the newest entry of each of the last N weeks that have one
    #[arg(long = "keep-weekly", value_name = "N")]
    pub weekly: Option<u32>,
}
