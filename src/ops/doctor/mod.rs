//! What a machine lacks, and what a crash left on it: a line for each finding, and the command that mends it.
//!
//! Every file here has pairs of functions: `look_` asks the machine and decides nothing, `judge_` decides and asks
//! nothing, so that each judgement is tested without a machine that deserves it. Nothing is mended here; the only
//! thing that is made is an overlay of empty directories in the store, to see whether the kernel mounts it.

mod cgroup;
pub(super) mod criu;
mod engine;
mod finding;
mod keeper;
mod kernel;
mod leftover;
mod program;
mod ring;
mod store;
mod template;

use super::Place;
use crate::config::DEFAULT_FILE;
use crate::error::{Error, quote};

pub use finding::{Finding, Status};

/// What is looked at.
#[derive(Debug)]
pub struct Patient<'a> {
    /// The directories, and the configuration as far as it could be read.
    pub place: &'a Place,
    /// Why the configuration could not be read.
    pub config_error: Option<Error>,
}

/// Everything that can be said, in the order in which an operator reads it: the machine, the configuration, the store,
/// the engines, what is left lying about, the rings. What cannot be looked at is a finding too.
#[must_use]
pub fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    let place = patient.place;
    let mut findings = kernel::examine();
    findings.extend(cgroup::examine());
    findings.push(criu::examine());
    findings.push(template::examine());
    findings.push(judge_config(patient));
    findings.extend(store::examine(place));
    findings.extend(engine::examine());
    findings.extend(leftover::examine(place));
    findings.extend(keeper::examine(place));
    findings.extend(ring::examine(place));
    findings
}

fn judge_config(patient: &Patient<'_>) -> Finding {
    let file = patient.place.config_file.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    match &patient.config_error {
        Some(error) => Finding::fail("configuration", error.without_next_step(), format!("$EDITOR {}", file.display())),
        None if file.exists() => Finding::ok("configuration", format!("{} is valid", quote(&file))),
        None => Finding::ok("configuration", format!("{} is not there, so the defaults hold", quote(&file))),
    }
}
