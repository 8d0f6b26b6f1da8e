//! `service rm`

use super::{ask, which};
use crate::cli::service::Remove;
use crate::command::World;
use crate::command::answer::print;
use crate::control::life::{Removal, Removed, method};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Remove) -> Result<()> {
    let Remove { service, force, output } = arguments;
    let Removed { removed } = ask(world, method::REMOVE, &Removal { which: which(service), force })?;
    let line = |which: &crate::control::life::Which| match &which.version {
        Some(version) => format!("{}@{version} is removed\n", which.name),
        None => format!("{} is removed\n", which.name),
    };
    print(output, &removed, || removed.iter().map(line).collect())
}
