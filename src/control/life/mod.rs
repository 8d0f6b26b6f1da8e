//! The life of services: what is asked of `run.regen.Service` by those who operate them, and what is answered.
//!
//! ```text
//! Add, Adopt, Restart, Upgrade ──> with "more": how far it is, a step at a time; last: what came of it
//! Remove                       ──> which versions are gone
//! List, Show                   ──> how they are
//! Logs                         ──> what instances printed; with "more" and follow: what they print
//! ```

mod answer;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub(super) use answer::{access, call};

pub use crate::service::request::{Addition, Adoption, Removal, Restart, Upgrade, Which};

use crate::ops::service::{Report, Step, Summary};

/// The interface's methods, as callers spell them.
pub mod method {
    /// All versions of all services.
    pub const LIST: &str = "run.regen.Service.List";
    /// All that is known of one.
    pub const SHOW: &str = "run.regen.Service.Show";
    /// A new service.
    pub const ADD: &str = "run.regen.Service.Add";
    /// … whose first instance runs already.
    pub const ADOPT: &str = "run.regen.Service.Adopt";
    /// A new instance.
    pub const RESTART: &str = "run.regen.Service.Restart";
    /// A new version in the place of an old one.
    pub const UPGRADE: &str = "run.regen.Service.Upgrade";
    /// The end of a service.
    pub const REMOVE: &str = "run.regen.Service.Remove";
    /// What instances printed.
    pub const LOGS: &str = "run.regen.Service.Logs";
}

/// What Logs is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Which.
    #[serde(flatten)]
    pub which: Which,
    /// Whether to go on with what is printed from now on.
    #[serde(default)]
    pub follow: bool,
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepName {
    /// The instance is being made.
    Starting,
    /// It runs, and is not ready.
    Waiting,
    /// New connections go to it.
    Serving,
    /// It finishes its connections.
    Draining,
}

/// One answer to a change: how far it is, or in the last one what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepName>,
    /// Which instance that is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

impl From<&Step> for Progress {
    fn from(step: &Step) -> Self {
        let (step, instance) = match step {
            Step::Starting(instance) => (StepName::Starting, instance),
            Step::Waiting(instance) => (StepName::Waiting, instance),
            Step::Serving(instance) => (StepName::Serving, instance),
            Step::Draining(instance) => (StepName::Draining, instance),
        };
        Self { step: Some(step), instance: Some(instance.to_string()), report: None }
    }
}

/// The answer to List.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// In the order of names and versions.
    pub services: Vec<Summary>,
}

/// The answer to Remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// What is gone.
    pub removed: Vec<Which>,
}

/// One answer to Logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// In their order.
    pub lines: Vec<Line>,
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it came.
    pub time: DateTime<Utc>,
    /// Whose it is.
    pub instance: String,
    /// `out` for the program's own, `part` for one that goes on in the next, `keeper` for what its keeper says.
    pub source: String,
    /// The text.
    pub text: String,
}
