//! How far a change is, on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::control::life::{Progress, StepName};

/// How often something moves, so that one sees that it goes on.
const TICK: Duration = Duration::from_millis(200);

/// A line on standard error that tells the present step, and goes with this value.
#[derive(Debug)]
pub(super) struct Line(Option<ProgressBar>);

impl Line {
    pub(super) fn new() -> Self {
        Self(std::io::stderr().is_terminal().then(ProgressBar::new_spinner))
    }

    pub(super) fn show(&self, progress: &Progress) {
        let (Some(line), Some(step)) = (&self.0, progress.step) else { return };
        let text = match step {
            StepName::Starting => "starting",
            StepName::Waiting => "waiting until it is ready:",
            StepName::Serving => "serving:",
            StepName::Draining => "draining",
        };
        line.set_message(format!("{text} {}", progress.instance.as_deref().unwrap_or_default()));
        line.enable_steady_tick(TICK);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(line) = &self.0 {
            line.finish_and_clear();
        }
    }
}
