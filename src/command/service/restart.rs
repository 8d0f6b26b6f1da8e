//! `service restart`

use super::{change, which};
use crate::cli::service::Restart as Arguments;
use crate::command::World;
use crate::control::life::{Restart, method};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: Arguments) -> Result<()> {
    let Arguments { service, wait, output } = arguments;
    change(world, output, method::RESTART, &Restart { which: which(service), wait })
}
