//! `node`: what the daemon is asked about nodes.

mod drain;
mod ls;

use crate::cli::node::{Node, Verb};
use crate::command::World;
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Node) -> Result<()> {
    match arguments.verb {
        Verb::Ls(output) => ls::run(world, output),
        Verb::Drain(arguments) => drain::run(world, arguments),
    }
}
