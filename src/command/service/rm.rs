//! `service rm`

use super::which;
use crate::cli::service::Remove;
use crate::command::World;
use crate::command::answer::print;
use crate::command::op::{How, change};
use crate::control::life::{Removal, Removed, Which, method};
use crate::error::Result;
use crate::operation::Kind;

pub(super) fn run(world: &World, arguments: Remove) -> Result<()> {
    let Remove { service, force, on, waiting, output } = arguments;
    let removal = Removal { which: which(service), force };
    let how = How { on: &on.on, patience: waiting.patience, output };
    change(world, (Kind::ServiceRemove, method::REMOVE), &removal, how, |Removed { removed }| {
        print(output, &removed, || removed.iter().map(line).collect())
    })
}

fn line(which: &Which) -> String {
    match &which.version {
        Some(version) => format!("{}@{version} is removed\n", which.name),
        None => format!("{} is removed\n", which.name),
    }
}
