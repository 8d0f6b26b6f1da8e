//! `ring`: one file per verb.

mod cat;
mod diff;
mod elsewhere;
mod export;
mod fork;
mod give;
mod graph;
mod import;
mod log;
mod ls;
mod mount;
mod pack;
mod pin;
mod prune;
mod pull;
mod push;
mod recover;
mod restore;
mod rm;
mod rollback;
mod set;
mod show;
mod snapshot;
mod take;
mod travel;
mod verify;
mod view;

use crate::cli::ring::{Ring as Arguments, Tls, Verb};
use crate::command::World;
use crate::command::answer::print;
use crate::distribution::Trust;
use crate::error::{Error, Kind, Result};
use crate::ids::RingName;
use crate::ring::{Pin, Ring};
use crate::store::Store;

/// The exit status of a verb that did what it should.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<u8> {
    if let Some(done) = elsewhere::run(world, &arguments.verb)? {
        return Ok(done);
    }
    match &arguments.verb {
        Verb::Ls(arguments) => return ls::run(world, *arguments),
        Verb::Log(arguments) => log::run(world, arguments),
        Verb::Show(arguments) => show::run(world, arguments),
        Verb::Cat(arguments) => cat::run(world, arguments),
        Verb::Restore(arguments) => restore::run(world, arguments),
        Verb::Mount(arguments) => mount::run(world, arguments),
        Verb::Unmount(arguments) => mount::unmount(world, arguments),
        Verb::Diff(arguments) => diff::run(world, arguments),
        Verb::Rollback(arguments) => rollback::run(world, arguments),
        Verb::Fork(arguments) => fork::run(world, arguments),
        Verb::Snapshot(arguments) => snapshot::run(world, arguments),
        Verb::Pin(arguments) => pin::run(world, arguments, Pin::Pinned),
        Verb::Unpin(arguments) => pin::run(world, arguments, Pin::Unpinned),
        Verb::Set(arguments) => set::run(world, arguments),
        Verb::Verify(arguments) => return verify::run(world, arguments),
        Verb::Pack(arguments) => pack::run(world, arguments),
        Verb::Export(arguments) => export::run(world, arguments),
        Verb::Import(arguments) => import::run(world, arguments),
        Verb::Push(arguments) => push::run(world, arguments),
        Verb::Pull(arguments) => pull::run(world, arguments),
        Verb::Move(arguments) => travel::run(world, arguments),
        Verb::Give(arguments) => give::run(world, arguments),
        Verb::Take(arguments) => take::run(world, arguments),
        Verb::Disown(arguments) => give::disown(world, arguments),
        Verb::Keep(arguments) => give::keep(world, arguments),
        Verb::Prune(arguments) => prune::run(world, arguments),
        Verb::Rm(arguments) => rm::run(world, arguments),
        Verb::Recover(arguments) => return recover::run(world, *arguments),
    }
    .map(|()| 0)
}

/// The store, which has to be there for anything to be in it.
fn store(world: &World) -> Result<Option<Store>> {
    Store::open_existing(&world.place.store)
}

/// A ring by what was typed.
fn ring(world: &World, text: &str) -> Result<Ring> {
    let name = RingName::parse(text, &world.place.owner)?;
    open(world, &name)
}

/// Whether a registry has to prove who it is.
fn trust(tls: Tls) -> Trust {
    if tls.tls_verify { Trust::Verified } else { Trust::Anyone }
}

fn open(world: &World, name: &RingName) -> Result<Ring> {
    match store(world)? {
        Some(store) => Ring::open(&store, name),
        None => {
            let cause = format!("there is no store at {}", crate::error::quote(&world.place.store));
            Err(Error::new(Kind::NotFound, format!("open ring '{name}'"), cause)
                .next("run a container with '--ring' first"))
        }
    }
}
