//! `op`: what the daemon is asked about operations.

mod cancel;
mod ls;
mod progress;
mod show;
mod wait;
mod watch;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::op::{Op, Verb};
use crate::command::World;
use crate::control::client::Client;
use crate::error::Result;

pub(super) use wait::{How, change, everywhere, submit};

pub(super) fn run(world: &World, arguments: Op) -> Result<u8> {
    match arguments.verb {
        Verb::Ls(arguments) => ls::run(world, arguments),
        Verb::Show(arguments) => show::run(world, arguments),
        Verb::Wait(arguments) => return wait::run(world, arguments),
        Verb::Cancel(arguments) => cancel::run(world, arguments),
        Verb::Watch(arguments) => watch::run(world, arguments),
    }
    .map(|()| 0)
}

fn connect(world: &World) -> Result<Client> {
    Client::connect(world.place.root.path())
}

/// Asks once.
fn ask<T: DeserializeOwned>(world: &World, method: &str, parameters: &impl Serialize) -> Result<T> {
    connect(world)?.call(method, parameters).map(|(answer, _)| answer)
}
