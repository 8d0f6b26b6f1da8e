//! How far an operation is, on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::control::operation::Progress;

/// How often something moves, so that one sees that it goes on.
const TICK: Duration = Duration::from_millis(200);

/// A line on standard error that tells the present step, or how many targets are over, and goes with this value.
#[derive(Debug)]
pub(in crate::command) struct Line(Option<ProgressBar>);

impl Line {
    pub(super) fn new() -> Self {
        Self(std::io::stderr().is_terminal().then(ProgressBar::new_spinner))
    }

    pub(super) fn show(&self, progress: &Progress) {
        let Some(line) = &self.0 else { return };
        if let Some(step) = &progress.step {
            line.set_message(step_text(step));
        }
        if progress.total > 1 {
            if line.length().is_none()
                && let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {msg}")
            {
                line.set_style(style.progress_chars("=> "));
            }
            line.set_length(progress.total as u64);
            line.set_position(progress.done as u64);
        }
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

/// A step for people: a service's has a word and an instance, a template's is a text.
pub(super) fn step_text(step: &Value) -> String {
    let instance = step["instance"].as_str().unwrap_or_default();
    let word = match step["step"].as_str().or_else(|| step.as_str()) {
        Some("starting") => "starting",
        Some("waiting") if !instance.is_empty() => "waiting until it is ready:",
        Some("serving") => "serving:",
        Some("draining") => "draining",
        Some(other) => other,
        None => return step.to_string(),
    };
    let percent = match (step["done"].as_u64(), step["total"].as_u64()) {
        (Some(done), Some(total @ 1..)) => format!(" {} %", done.min(total) * 100 / total),
        (Some(_) | None, Some(_) | None) => String::new(),
    };
    format!("{word}{percent} {instance}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_told_in_words() {
        assert_eq!(step_text(&json!({"step": "waiting", "instance": "a-1"})), "waiting until it is ready: a-1");
        assert_eq!(step_text(&json!({"step": "loading python3"})), "loading python3");
        assert_eq!(step_text(&json!({"step": "pushing root/a", "done": 1, "total": 3})), "pushing root/a 33 %");
        assert_eq!(step_text(&json!({"packed": 3})), r#"{"packed":3}"#);
    }
}
