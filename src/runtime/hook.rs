//! Hooks: the state that they read on standard input is the user's view of the container.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use libcontainer::container::{ContainerStatus, State};
use oci_spec::runtime::Hook;

use crate::error::{Context, Error, Kind, Result, quote};
use crate::runtime::record::Record;
use crate::sys::fs::memory_file;

/// Runs hooks one after the other on the host.
///
/// # Errors
/// That of the first that fails; the later ones are not run.
pub(super) fn run(hooks: &[Hook], record: &Record, status: ContainerStatus) -> Result<()> {
    // A bundle that was removed before its container is no reason not to run its hooks.
    let directory = Some(record.bundle.as_path()).filter(|bundle| bundle.is_dir());
    libcontainer::hooks::run_hooks(Some(&hooks.to_vec()), Some(&view(record, status)), directory, None, None).map_err(
        |error| {
            let cause = std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
            Error::new(Kind::System, "run hooks", cause)
        },
    )
}

fn view(record: &Record, status: ContainerStatus) -> State {
    let pid = match status {
        ContainerStatus::Stopped => None,
        _ => record.init.as_ref().map(|init| init.pid),
    };
    let mut state = State::new(record.id.as_str(), status, pid, record.bundle.clone());
    state.oci_version.clone_from(&record.oci_version);
    state.annotations.clone_from(&record.annotations);
    state
}

/// What stands before each of the engine's hooks: reads the engine's state on standard input, puts the user's bundle
/// into it, and becomes the hook. Returns only on failure.
#[must_use]
pub fn relay(bundle: &Path, program: &Path, arguments: &[String]) -> Error {
    match prepare_relay(bundle) {
        Err(error) => error,
        Ok(input) => {
            let (first, rest) = arguments.split_first().map_or(("", arguments), |(first, rest)| (first.as_str(), rest));
            let mut command = Command::new(program);
            command.arg0(first).args(rest).stdin(input);
            if bundle.is_dir() {
                command.current_dir(bundle);
            }
            let failure = std::result::Result::<(), _>::Err(command.exec());
            failure
                .context(|| format!("execute hook {}", quote(program)))
                .err()
                .unwrap_or_else(|| Error::new(Kind::System, format!("execute hook {}", quote(program)), "it returned"))
        }
    }
}

fn prepare_relay(bundle: &Path) -> Result<File> {
    let operation = || "read the state for a hook";
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).context(operation)?;
    let mut state: serde_json::Value = serde_json::from_slice(&text).context(operation)?;
    state["bundle"] = bundle.display().to_string().into();
    let mut changed = Vec::new();
    changed.write_all(state.to_string().as_bytes()).context(operation)?;
    memory_file("state", &changed)
}
