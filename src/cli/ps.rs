//! `regen ps`

use clap::{Args, ValueEnum};

use crate::ids::ContainerId;

/// List the processes of a container
#[derive(Debug, Args)]
pub struct Ps {
    /// The form of the list
    #[arg(long, short, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
    /// The same as --format json
    #[arg(long)]
    pub json: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
    /// Options of ps(1) for the table [default: -ef]; after -- if they look like those above
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    pub options: Vec<String>,
}

/// The form of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The lines of ps(1) that are of the container.
    Table,
    /// A JSON array of pids.
    Json,
}
