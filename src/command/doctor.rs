//! `doctor`: what the machine lacks, and what crashes left.

use std::io::{ErrorKind, Write};

use crate::cli::Global;
use crate::cli::doctor::Doctor;
use crate::command::World;
use crate::command::table::table;
use crate::config::Config;
use crate::error::{Context, Result};
use crate::ops::doctor::{Finding, Patient, Status, examine};

/// 1 if anything fails.
pub(super) fn run(global: &Global, arguments: Doctor) -> Result<u8> {
    // A configuration that no other verb starts with is just what a doctor is called for.
    let (config, config_error) = match Config::load(global.config.as_deref()) {
        Ok(config) => (config, None),
        Err(error) => (Config::default(), Some(error)),
    };
    let world = World::with_config(global, config)?;
    let findings = examine(&Patient { place: &world.place, config_error });
    let text = if arguments.json {
        format!("{}\n", serde_json::to_string(&findings).context(|| "write JSON")?)
    } else {
        table(&findings.iter().map(row).collect::<Vec<_>>())
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        other => other.context(|| "print the findings")?,
    }
    Ok(u8::from(findings.iter().any(|finding| finding.status == Status::Fail)))
}

fn row(finding: &Finding) -> [String; 3] {
    let status = match finding.status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "fail",
    };
    let text = match &finding.mend {
        Some(mend) => format!("{}: {mend}", finding.text),
        None => finding.text.clone(),
    };
    [status.to_owned(), finding.subject.clone(), text]
}
