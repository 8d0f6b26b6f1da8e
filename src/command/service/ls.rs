//! `service ls`: all of them.

use serde_json::json;

use super::ask;
use crate::cli::ring::Output;
use crate::command::World;
use crate::command::answer::print;
use crate::command::table::{local, table};
use crate::control::life::{List, method};
use crate::error::Result;
use crate::ops::service::{State, Summary};

pub(super) fn run(world: &World, output: Output) -> Result<()> {
    let List { services } = ask(world, method::LIST, &json!({}))?;
    print(output, &services, || text(&services))
}

fn text(services: &[Summary]) -> String {
    let head = ["SERVICE", "VERSION", "STATE", "ADDRESSES", "INSTANCE", "SINCE", "RESTARTS"].map(str::to_owned);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = |service: &Summary| {
        [
            service.name.to_string(),
            service.version.to_string(),
            word(service.state).to_owned(),
            service.addresses.join(" "),
            or_none(service.instance.as_ref().map(ToString::to_string)),
            or_none(service.since.map(local)),
            service.restarts.to_string(),
        ]
    };
    table(&std::iter::once(head).chain(services.iter().map(row)).collect::<Vec<_>>())
}

pub(super) fn word(state: State) -> &'static str {
    match state {
        State::Serving => "serving",
        State::Starting => "starting",
        State::Waiting => "waiting",
        State::Ended => "ended",
        State::Removing => "removing",
        State::Unknown => "unknown",
    }
}
