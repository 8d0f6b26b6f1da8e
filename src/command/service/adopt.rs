//! `service adopt`

use super::change;
use crate::cli::service::Adopt;
use crate::command::World;
use crate::command::argument::milliseconds;
use crate::command::op::How;
use crate::control::life::{Addition, Adoption, method};
use crate::error::Result;
use crate::operation::Kind;
use crate::service::settings::{Settings, StopSignal};

pub(super) fn run(world: &World, arguments: Adopt) -> Result<()> {
    let Adopt { name, version, pid, listen, drain_timeout, stop_signal, waiting, output } = arguments;
    let settings = Settings {
        drain_timeout_ms: drain_timeout.map(milliseconds),
        stop_signal: stop_signal.map(StopSignal),
        ..Settings::default()
    };
    let addition = Addition { name, version, listen, settings };
    let how = How { on: &[], patience: waiting.patience, output };
    change(world, (Kind::ServiceAdopt, method::ADOPT), &Adoption { addition, pid }, how)
}
