//! `op watch`: what operations do, as it happens.

use std::io::Write;

use super::progress::step_text;
use super::{connect, ls};
use crate::cli::op::Watch;
use crate::command::World;
use crate::control::operation::{News, Watching, method};
use crate::error::{Context, Result};

pub(super) fn run(world: &World, arguments: Watch) -> Result<()> {
    let Watch { id, json } = arguments;
    let mut open = true;
    let watched = connect(world)?.stream(method::WATCH, &Watching { id }, |news: News| {
        let line = if json { serde_json::to_string(&news).context(|| "write JSON")? } else { text(&news) };
        match writeln!(std::io::stdout(), "{line}") {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                open = false;
                Err(error).context(|| "print what operations do")
            }
            other => other.context(|| "print what operations do"),
        }
    });
    // Whoever reads has seen enough.
    if open { watched } else { Ok(()) }
}

fn text(news: &News) -> String {
    let News { id, operation, progress } = news;
    if let Some(operation) = operation {
        let done = format!("{}/{}", ls::done(operation), operation.total);
        let error = operation.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        return format!("{id} {} {} {done}{error}", operation.kind, operation.state);
    }
    let Some(progress) = progress else { return id.to_string() };
    let target = progress.target.as_ref().map(|target| format!(" {target}")).unwrap_or_default();
    let step = progress.step.as_ref().map(|step| format!(": {}", step_text(step))).unwrap_or_default();
    format!("{id} {}/{}{target}{step}", progress.done, progress.total)
}
