//! `hook-relay`: becomes a hook, once the state on standard input shows the user's bundle.

use crate::cli;
use crate::error::Error;
use crate::runtime;

/// Returns only on failure.
pub(super) fn run(arguments: &cli::HookRelay) -> Error {
    runtime::relay(&arguments.bundle, &arguments.program, &arguments.arguments)
}
