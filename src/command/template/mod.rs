//! `template`: what the daemon is asked about templates.

mod create;
mod ls;
mod rm;
mod show;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::template::{Template, Verb};
use crate::command::World;
use crate::control::client::Client;
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Template) -> Result<()> {
    match arguments.verb {
        Verb::Create(arguments) => create::run(world, *arguments),
        Verb::Ls(output) => ls::run(world, output),
        Verb::Show(arguments) => show::run(world, arguments),
        Verb::Rm(arguments) => rm::run(world, arguments),
    }
}

/// Asks once.
fn ask<T: DeserializeOwned>(world: &World, method: &str, parameters: &impl Serialize) -> Result<T> {
    Client::connect(world.place.root.path())?.call(method, parameters).map(|(answer, _)| answer)
}
