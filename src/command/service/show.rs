//! `service show`: all that is known of one.

use super::{ask, ls, which};
use crate::cli::service::Show;
use crate::command::World;
use crate::command::answer::print;
use crate::command::table::local;
use crate::control::life::method;
use crate::error::Result;
use crate::ops::service::{Details, InstanceView};
use crate::service::definition::{Definition, Handover, Restart, Source};
use crate::service::message::Phase;

pub(super) fn run(world: &World, arguments: Show) -> Result<()> {
    let Show { service, output } = arguments;
    let details: Details = ask(world, method::SHOW, &which(service))?;
    print(output, &details, || text(&details))
}

fn text(details: &Details) -> String {
    let Details { summary, definition, added, instances, drained, outcome } = details;
    let mut lines = vec![
        ("service", format!("{}@{}", summary.name, summary.version)),
        ("state", ls::word(summary.state).to_owned()),
        ("addresses", summary.addresses.join(" ")),
        ("added", local(*added)),
        ("restarts", summary.restarts.to_string()),
    ];
    if let Some(change) = &summary.change {
        lines.push(("change", format!("{} {} since {}", change.kind.verb(), change.id, local(change.since))));
    }
    lines.extend(summary.error.clone().map(|error| ("error", error)));
    lines.extend(describe(definition));
    lines.extend(instances.iter().map(|instance| ("instance", describe_instance(instance))));
    if let Some(drained) = drained {
        let text = format!("{} at {}, cut {}", drained.instance, local(drained.ended), drained.cut);
        lines.push(("drained", text));
    }
    if let Some(outcome) = outcome {
        let how = outcome.exit_code.map_or_else(|| "ended".to_owned(), |code| format!("ended with status {code}"));
        lines.push(("outcome", format!("{how} at {}", local(outcome.ended))));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, text)| format!("{name:<width$}  {text}\n")).collect()
}

fn describe(definition: &Definition) -> Vec<(&'static str, String)> {
    let source = match &definition.source {
        Some(Source::Bundle(directory)) => format!("bundle {}", directory.display()),
        Some(Source::Rootfs(directory)) => format!("rootfs {}", directory.display()),
        Some(Source::Image(image)) => format!("image {image}"),
        None => "adopted".to_owned(),
    };
    let handover = match definition.handover {
        Handover::ListenFds => "listen-fds",
        Handover::Intercept => "intercept",
    };
    let restart = match definition.restart {
        Restart::No => "no",
        Restart::OnFailure => "on-failure",
        Restart::Always => "always",
    };
    let seconds = |time: std::time::Duration| format!("{}s", time.as_secs_f64());
    let mut lines = vec![("source", source)];
    lines.extend(definition.ring.clone().map(|ring| ("ring", ring)));
    if !definition.command.is_empty() {
        lines.push(("command", definition.command.join(" ")));
    }
    lines.push(("handover", handover.to_owned()));
    lines.push(("ready", format!("{} within {}", definition.ready, seconds(definition.ready_timeout))));
    lines.push(("drain", seconds(definition.drain_timeout)));
    lines.push(("restart", restart.to_owned()));
    lines
}

fn describe_instance(instance: &InstanceView) -> String {
    let phase = match instance.phase {
        Some(Phase::Starting) => "starting",
        Some(Phase::Ready) => "ready",
        Some(Phase::Serving) => "serving",
        Some(Phase::Draining) => "draining",
        Some(Phase::Stopping) => "stopping",
        Some(Phase::Ended) => "ended",
        None => "unknown",
    };
    let mut text = format!("{} {phase}", instance.id);
    if let Some(pid) = instance.pid {
        text.push_str(&format!(" pid {pid}"));
    }
    for note in instance.text.iter().chain(&instance.notes) {
        text.push_str("; ");
        text.push_str(note);
    }
    text
}
