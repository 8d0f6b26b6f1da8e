//! A progress bar for what takes longer than a second, on a terminal only.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::ops::transfer::Transfer;
use crate::ops::worker::Report;

/// How long to say nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows how far packing or a transfer is.
#[derive(Debug)]
pub(super) struct Bar {
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), bar: None }
    }

    /// Shows how far packing is.
    pub(super) fn show(&mut self, report: &Report) {
        self.set(&format!("packing {}@{}", report.ring, report.seq), report.done, report.total);
    }

    /// Shows how far a transfer is.
    pub(super) fn show_transfer(&mut self, transfer: &Transfer) {
        self.set(&transfer.what, transfer.done, transfer.total);
    }

    /// Shows something if there is a terminal and it has taken long enough.
    fn set(&mut self, what: &str, done: u64, total: u64) {
        if self.started.elapsed() < PATIENCE || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            let bar = ProgressBar::new(total);
            // A template that does not parse leaves the library's own.
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        bar.set_message(what.to_owned());
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
