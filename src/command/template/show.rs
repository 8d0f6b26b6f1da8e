//! `template show`: all that is known of one.

use super::{ask, ls};
use crate::cli::template::Show;
use crate::command::World;
use crate::command::answer::print;
use crate::command::table::local;
use crate::config::human_bytes;
use crate::control::template::{Which, method};
use crate::error::Result;
use crate::ops::template::{Details, Summary};
use crate::template::definition::{Definition, Mode, Source};

pub(super) fn run(world: &World, arguments: Show) -> Result<()> {
    let Show { name, output } = arguments;
    let details: Details = ask(world, method::SHOW, &Which { name })?;
    print(output, &details, || text(&details))
}

fn text(details: &Details) -> String {
    let Details { summary, definition, added, source, step, notes } = details;
    let mut lines = vec![("template", summary.name.to_string()), ("state", ls::word(summary.state).to_owned())];
    lines.extend(step.clone().map(|step| ("step", step)));
    lines.extend(summary.error.clone().map(|error| ("error", error)));
    lines.extend(summary.retry.map(|retry| ("retry", local(retry))));
    lines.extend(describe(summary));
    lines.push(("restarts", summary.restarts.to_string()));
    lines.push(("added", local(*added)));
    lines.extend(define(definition));
    lines.extend(source.clone().map(|source| ("loaded", source)));
    lines.extend(notes.iter().map(|note| ("note", note.clone())));
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, text)| format!("{name:<width$}  {text}\n")).collect()
}

/// What its keeper says.
fn describe(summary: &Summary) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    lines.extend(summary.since.map(|since| ("since", local(since))));
    lines.extend(summary.language.clone().map(|language| ("program", language)));
    lines.extend(summary.pid.map(|pid| ("pid", pid.to_string())));
    lines.extend(summary.keeper.map(|pid| ("keeper", pid.to_string())));
    lines.extend(summary.container.as_ref().map(|container| ("container", container.to_string())));
    lines.push(("generation", summary.generation.to_string()));
    let memory =
        [("program", summary.memory.process), ("a sandbox", summary.memory.sandbox), ("keeper", summary.memory.keeper)];
    let memory: Vec<_> =
        memory.iter().filter_map(|(of, bytes)| Some(format!("{of} {}", human_bytes((*bytes)?)))).collect();
    if !memory.is_empty() {
        lines.push(("memory", memory.join(", ")));
    }
    let waiting = if summary.waiting > 0 { format!(", {} wait for one", summary.waiting) } else { String::new() };
    lines.push(("sandboxes", format!("{} of {}{waiting}", summary.sandboxes, summary.wanted)));
    let failed = if summary.failed > 0 { format!(", {} failed", summary.failed) } else { String::new() };
    lines.push(("clones", format!("{}{failed}", summary.clones)));
    lines
}

/// What was said of it.
fn define(definition: &Definition) -> Vec<(&'static str, String)> {
    let source = match &definition.source {
        Source::Bundle(directory) => format!("bundle {}", directory.display()),
        Source::Rootfs(directory) => format!("rootfs {}", directory.display()),
        Source::Image(image) => format!("image {image}"),
    };
    let mode = match definition.mode {
        Mode::Zygote => "zygote",
        Mode::Snapshot => "snapshot",
    };
    let mut lines = vec![("source", source)];
    lines.extend(definition.ring.clone().map(|ring| ("ring", ring)));
    lines.push(("mode", mode.to_owned()));
    if !definition.command.is_empty() {
        lines.push(("command", definition.command.join(" ")));
    }
    lines.push(("pool", format!("{}, {}", definition.pool, human_bytes(definition.pool_memory))));
    lines.push(("ready", format!("within {}s", definition.ready_timeout().as_secs_f64())));
    lines
}
