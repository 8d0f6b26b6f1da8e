//! A progress bar for what takes longer than a second, on a terminal only.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::ops::worker::Report;

/// How long to say nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows how far packing is.
#[derive(Debug)]
pub(super) struct Bar {
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), bar: None }
    }

    /// Shows a report, if there is a terminal and it has taken long enough.
    pub(super) fn show(&mut self, report: &Report) {
        if self.started.elapsed() < PATIENCE || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            let bar = ProgressBar::new(report.total);
            // A template that does not parse leaves the library's own.
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        bar.set_message(format!("packing {}@{}", report.ring, report.seq));
        bar.set_length(report.total);
        bar.set_position(report.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
