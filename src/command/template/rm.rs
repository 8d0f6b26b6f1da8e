//! `template rm`

use crate::cli::template::Remove;
use crate::command::World;
use crate::command::answer::print;
use crate::command::op::{How, change};
use crate::control::template::{Removal, Which, method};
use crate::error::Result;
use crate::operation::Kind;

pub(super) fn run(world: &World, arguments: Remove) -> Result<()> {
    let Remove { name, force, on, waiting, output } = arguments;
    let how = How { on: &on.on, patience: waiting.patience, output };
    change(world, (Kind::TemplateRemove, method::REMOVE), &Removal { name, force }, how, |removed: Which| {
        print(output, &removed, || format!("{} is removed\n", removed.name))
    })
}
