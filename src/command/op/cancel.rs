//! `op cancel`: what was not begun is not begun.

use super::ask;
use crate::cli::op::Show;
use crate::command::World;
use crate::command::answer::print;
use crate::control::operation::{Cancelled, Which, method};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Show) -> Result<()> {
    let Show { id, output } = arguments;
    let Cancelled { operation } = ask(world, method::CANCEL, &Which { id })?;
    print(output, &operation, || {
        if operation.state.is_final() {
            format!("{id} is {}\n", operation.state)
        } else {
            format!("{id} is {} and ends as soon as that harms nothing: see 'regen op wait {id}'\n", operation.state)
        }
    })
}
