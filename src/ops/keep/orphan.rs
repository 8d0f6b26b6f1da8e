//! The end of an instance whose keeper is gone.

use super::end::gone_is_fine;
use super::signal::effective;
use super::stage::PATIENCE;
use crate::error::Result;
use crate::ids::ContainerId;
use crate::runtime::{self, StateRoot};
use crate::service::keeper;
use crate::sys::process::Process;
use crate::sys::signal::Signal;

/// Tells an instance without a keeper to end, in its own way, and waits ten seconds at most for that. What is left of it
/// then is for `delete --force`.
///
/// # Errors
/// Those of sending the signal and of waiting.
pub fn stop(root: &StateRoot, instance: &ContainerId, process: &Process) -> Result<()> {
    let meant = keeper::order(root.path(), instance).map_or_else(
        |error| {
            tracing::warn!("{error}");
            Signal::TERM
        },
        |order| order.definition.stop_signal,
    );
    let signal = effective(process.pid(), meant);
    gone_is_fine(runtime::kill(root, instance, signal, false))?;
    process.wait_end(PATIENCE).map(drop)
}
