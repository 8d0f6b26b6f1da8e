//! `regen node …`

use clap::{Args, Subcommand};

use super::op::Patience;
use super::ring::Output;
use crate::error::Error;
use crate::ids::NodeName;

/// The nodes of a cluster: list them, and take one out of use (see regen-serve(8))
#[derive(Debug, Clone, Args)]
pub struct Node {
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with nodes.
#[derive(Debug, Clone, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// List the nodes that live
    Ls(Output),
    /// Place nothing on a node any more, and send no clients of other nodes there; what runs there goes on
    Drain(Drain),
}

/// Place nothing on a node any more, and send no clients of other nodes there; what runs there goes on
#[derive(Debug, Clone, Args)]
pub struct Drain {
    /// The node
    #[arg(value_name = "NAME", value_parser = parse_node)]
    pub name: NodeName,
    /// Let it take more again
    #[arg(long)]
    pub undo: bool,
    /// Wait for the operation's end, as is done if nothing is said
    #[arg(long)]
    pub wait: bool,
    /// Or not.
    #[command(flatten)]
    pub patience: Patience,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Reads the name of a node.
pub(super) fn parse_node(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error: Error| error.to_string())
}
