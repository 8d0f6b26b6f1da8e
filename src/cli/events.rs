//! `regen events`

use std::time::Duration;

use clap::Args;

use super::duration::parse_interval;
use crate::ids::ContainerId;

/// Tell what a container uses, and when it ran out of memory
#[derive(Debug, Args)]
pub struct Events {
    /// Print the numbers of now, once
    #[arg(long)]
    pub stats: bool,
    /// The time between two looks: 5s, 500ms, 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_interval)]
    pub interval: Duration,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}
