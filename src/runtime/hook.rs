//! Hooks: foreign programs that the specification wants run at fixed points of a container's life.
//!
//! | hooks | when | where |
//! |---|---|---|
//! | prestart, createRuntime | the file systems stand, the root is not entered yet | host |
//! | createContainer | after those | host's root, container's mount namespace |
//! | startContainer | just before the program | inside |
//! | poststart | the program was started | host |
//! | poststop | the container was deleted | host |
//!
//! Each gets the container's state on standard input, as the runtime specification writes it down.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;
use oci_spec::runtime::{Hook, Hooks};
use serde::Serialize;

use crate::error::{Context, Error, Kind, Result, quote};
use crate::runtime::Status;
use crate::runtime::record::Record;
use crate::sys::fs::memory_file;
use crate::sys::process::Process;
use crate::sys::signal::{Signal, with_mask};

/// What a hook reads.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a HashMap<String, String>>,
}

impl<'a> State<'a> {
    /// The state of a container; `pid` as whoever reads it sees it.
    pub(super) fn of(record: &'a Record, status: Status, pid: Option<i32>) -> Self {
        Self {
            oci_version: &record.oci_version,
            id: record.id.as_str(),
            status,
            pid,
            bundle: &record.bundle,
            annotations: record.annotations.as_ref(),
        }
    }
}

/// Where hooks run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// Their working directory; ours if none.
    pub directory: Option<&'a Path>,
    /// The environment of those that name none; ours if none.
    pub environment: Option<&'a [String]>,
    /// Their signal mask; ours if none.
    pub mask: Option<SigSet>,
}

/// The place of hooks on the host. A bundle that was removed before its container is no reason not to run its hooks.
pub(super) fn on_host(record: &Record, mask: Option<SigSet>) -> Place<'_> {
    let directory = Some(record.bundle.as_path()).filter(|bundle| bundle.is_dir());
    Place { directory, environment: None, mask }
}

/// The deprecated kind, which older engines still send.
pub(super) fn prestart(hooks: &Hooks) -> &[Hook] {
    #[allow(deprecated, reason = "see above")]
    hooks.prestart().as_deref().unwrap_or_default()
}

/// Runs hooks one after the other. `name` is theirs, for the error.
///
/// # Errors
/// That of the first that fails; the later ones are not run.
pub(super) fn run(name: &str, hooks: &[Hook], state: &State<'_>, place: Place<'_>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let operation = || format!("run {name} hooks");
    let text = serde_json::to_vec(state).context(operation)?;
    for hook in hooks {
        let input = memory_file("state", &text)?;
        run_one(hook, input, place).context(operation)?;
    }
    Ok(())
}

fn run_one(hook: &Hook, input: File, place: Place<'_>) -> Result<()> {
    let operation = || format!("run hook {}", quote(hook.path()));
    let mut command = Command::new(hook.path());
    match hook.args().as_deref().and_then(<[String]>::split_first) {
        Some((first, rest)) => command.arg0(first).args(rest),
        None => command.arg0(hook.path()),
    };
    if let Some(directory) = place.directory {
        command.current_dir(directory);
    }
    if let Some(environment) = hook.env().as_deref().or(place.environment) {
        let pairs = environment.iter().filter_map(|entry| entry.split_once('='));
        command.env_clear().envs(pairs.map(|(name, value)| (OsStr::new(name), OsStr::new(value))));
    }
    if let Some(mask) = place.mask {
        with_mask(&mut command, mask);
    }
    // What a hook prints is no output of ours.
    let mut child = command.stdin(input).stdout(Stdio::null()).spawn().context(operation)?;
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    if let Some(limit) = limit {
        let pid = i32::try_from(child.id()).unwrap_or_default();
        // A child's pid stays its own until we have reaped it.
        if let Some(process) = Process::open(pid)?
            && !process.wait_end(Duration::from_secs(limit))?
        {
            process.signal(Signal::KILL)?;
            child.wait().context(operation)?;
            return Err(Error::new(Kind::System, operation(), format!("it took more than {limit} s")));
        }
    }
    let status = child.wait().context(operation)?;
    if status.success() { Ok(()) } else { Err(Error::new(Kind::System, operation(), describe(status))) }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hook(script: &str, more: serde_json::Value) -> Hook {
        let mut hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(hook).unwrap()
    }

    fn run_here(hooks: &[Hook]) -> Result<()> {
        let state = State {
            oci_version: "1.2.0",
            id: "a",
            status: Status::Creating,
            pid: Some(7),
            bundle: Path::new("/b"),
            annotations: None,
        };
        let environment = ["GIVEN=1".to_owned()];
        run("test", hooks, &state, Place { directory: None, environment: Some(&environment), mask: None })
    }

    #[test]
    fn a_hook_reads_the_state_and_has_the_environment_that_it_names_or_the_places() {
        let state = r#"{"ociVersion":"1.2.0","id":"a","status":"creating","pid":7,"bundle":"/b"}"#;
        run_here(&[hook(&format!("test \"$(cat)\" = '{state}' && test \"$GIVEN\" = 1"), json!({}))]).unwrap();
        run_here(&[hook("test \"$OWN\" = 2 && test -z \"$GIVEN\"", json!({"env": ["OWN=2"]}))]).unwrap();
    }

    #[test]
    fn a_hook_that_fails_or_takes_too_long_is_named_and_stops_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let later = hook(&format!("touch {}/later", directory.path().display()), json!({}));
        for (script, more, words) in [
            ("exit 3", json!({}), "exit status 3"),
            ("kill -9 $$", json!({}), "signal 9"),
            ("exec sleep 1000", json!({"timeout": 1}), "more than 1 s"),
        ] {
            let error = run_here(&[hook(script, more), later.clone()]).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(!directory.path().join("later").exists());
        }
    }
}
