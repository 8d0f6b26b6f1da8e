//! `service upgrade`

use super::{change, settings, which};
use crate::cli::service::Upgrade as Arguments;
use crate::command::World;
use crate::control::life::{Upgrade, method};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Arguments) -> Result<()> {
    let Arguments { service, to, allow_downgrade, wait, program, output } = arguments;
    let settings = settings::read(program)?;
    change(world, output, method::UPGRADE, &Upgrade { which: which(service), to, settings, allow_downgrade, wait })
}
