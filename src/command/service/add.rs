//! `service add`

use super::{change, settings};
use crate::cli::service::Add;
use crate::command::World;
use crate::control::life::{Addition, method};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Add) -> Result<()> {
    let Add { name, version, listen, program, output } = arguments;
    let settings = settings::read(program)?;
    change(world, output, method::ADD, &Addition { name, version, listen, settings })
}
