//! `template rm`

use super::ask;
use crate::cli::template::Remove;
use crate::command::World;
use crate::command::answer::print;
use crate::control::template::{Removal, Which, method};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Remove) -> Result<()> {
    let Remove { name, force, output } = arguments;
    let removed: Which = ask(world, method::REMOVE, &Removal { name, force })?;
    print(output, &removed, || format!("{} is removed\n", removed.name))
}
