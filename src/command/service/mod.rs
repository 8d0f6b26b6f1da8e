//! `service`: what the daemon is asked about services.

mod add;
mod adopt;
mod logs;
mod ls;
mod restart;
mod rm;
mod settings;
mod show;
mod upgrade;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::service::{Service, ServiceName, Verb};
use crate::command::op::{self, How};
use crate::command::{World, answer};
use crate::control::client::Client;
use crate::control::life::{Progress, Which};
use crate::error::{Error, Kind, Result};
use crate::operation;
use crate::ops::service::Report;

pub(super) fn run(world: &World, arguments: Service) -> Result<()> {
    match arguments.verb {
        Verb::Add(arguments) => add::run(world, *arguments),
        Verb::Ls(output) => ls::run(world, output),
        Verb::Show(arguments) => show::run(world, arguments),
        Verb::Rm(arguments) => rm::run(world, arguments),
        Verb::Restart(arguments) => restart::run(world, arguments),
        Verb::Upgrade(arguments) => upgrade::run(world, *arguments),
        Verb::Adopt(arguments) => adopt::run(world, arguments),
        Verb::Logs(arguments) => logs::run(world, arguments),
    }
}

fn connect(world: &World) -> Result<Client> {
    Client::connect(world.place.root.path())
}

/// Asks once.
fn ask<T: DeserializeOwned>(world: &World, method: &str, parameters: &impl Serialize) -> Result<T> {
    connect(world)?.call(method, parameters).map(|(answer, _)| answer)
}

/// Has something done that takes time, shows how far it is, and what came of it.
fn change(
    world: &World,
    (kind, method): (operation::Kind, &str),
    parameters: &impl Serialize,
    how: How<'_>,
) -> Result<()> {
    op::change(world, (kind, method), parameters, how, |progress: Progress| {
        let report: Report = progress.report.ok_or_else(|| {
            Error::new(Kind::Damaged, format!("call {method}"), "the daemon does not say what came of it")
        })?;
        answer::print(how.output, &report, || text(&report))
    })
}

fn text(report: &Report) -> String {
    let Report { name, version, instance, addresses, old, drained, .. } = report;
    let mut text = format!("{name}@{version} serves at {}: instance {instance}\n", addresses.join(", "));
    match (old, drained) {
        (Some(old), Some(drained)) if drained.cut > 0 => {
            text.push_str(&format!("instance {old} is gone; connections that were cut: {}\n", drained.cut));
        }
        (Some(old), Some(_)) => text.push_str(&format!("instance {old} is gone; no connection was cut\n")),
        (Some(_) | None, _) => {}
    }
    text
}

fn which(service: ServiceName) -> Which {
    Which { name: service.name, version: service.version }
}
