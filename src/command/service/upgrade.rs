//! `service upgrade`

use super::{change, settings, which};
use crate::cli::service::Upgrade as Arguments;
use crate::command::World;
use crate::command::op::How;
use crate::control::life::{Upgrade, method};
use crate::error::Result;
use crate::operation::Kind;

pub(super) fn run(world: &World, arguments: Arguments) -> Result<()> {
    let Arguments { service, to, allow_downgrade, wait, program, on, patience, output } = arguments;
    let settings = settings::read(program)?;
    let how = How { on: &on.on, patience, output };
    let upgrade = Upgrade { which: which(service), to, settings, allow_downgrade, wait };
    change(world, (Kind::ServiceUpgrade, method::UPGRADE), &upgrade, how)
}
