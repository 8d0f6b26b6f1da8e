//! `service restart`

use super::{change, which};
use crate::cli::service::Restart as Arguments;
use crate::command::World;
use crate::command::op::How;
use crate::control::life::{Restart, method};
use crate::error::Result;
use crate::operation::Kind;

pub(super) fn run(world: &World, arguments: Arguments) -> Result<()> {
    let Arguments { service, wait, on, patience, output } = arguments;
    let how = How { on: &on.on, patience, output };
    change(world, (Kind::ServiceRestart, method::RESTART), &Restart { which: which(service), wait }, how)
}
