//! `template ls`: all of them.

use serde_json::json;

use super::ask;
use crate::cli::ring::Output;
use crate::command::World;
use crate::command::answer::print;
use crate::command::table::{local, table};
use crate::config::human_bytes;
use crate::control::template::{List, method};
use crate::error::Result;
use crate::ops::template::{State, Summary};

pub(super) fn run(world: &World, output: Output) -> Result<()> {
    let List { templates } = ask(world, method::LIST, &json!({}))?;
    print(output, &templates, || text(&templates))
}

fn text(templates: &[Summary]) -> String {
    let head =
        ["TEMPLATE", "STATE", "PROGRAM", "MEMORY", "SANDBOXES", "CLONES", "SINCE", "RESTARTS"].map(str::to_owned);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = |template: &Summary| {
        [
            template.name.to_string(),
            word(template.state).to_owned(),
            or_none(template.language.clone()),
            or_none(template.memory.process.map(human_bytes)),
            format!("{}/{}", template.sandboxes, template.wanted),
            template.clones.to_string(),
            or_none(template.since.map(local)),
            template.restarts.to_string(),
        ]
    };
    table(&std::iter::once(head).chain(templates.iter().map(row)).collect::<Vec<_>>())
}

pub(super) fn word(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Ready => "ready",
        State::Failed => "failed",
        State::Removing => "removing",
    }
}
