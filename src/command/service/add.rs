//! `service add`

use super::{change, settings};
use crate::cli::service::Add;
use crate::command::World;
use crate::command::op::How;
use crate::control::life::{Addition, method};
use crate::error::Result;
use crate::operation::Kind;

pub(super) fn run(world: &World, arguments: Add) -> Result<()> {
    let Add { name, version, listen, program, on, waiting, output } = arguments;
    let settings = settings::read(program)?;
    let how = How { on: &on.on, patience: waiting.patience, output };
    change(world, (Kind::ServiceAdd, method::ADD), &Addition { name, version, listen, settings }, how)
}
