//! A verb's answer, in the form that was asked for.

use std::io::Write;

use serde::Serialize;

use crate::cli::ring::Output;
use crate::error::{Context, Result};

pub(super) fn print<T: Serialize>(output: Output, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    let text =
        if output.json { format!("{}\n", serde_json::to_string(value).context(|| "write JSON")?) } else { text() };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context(|| "print the answer"),
    }
}
