//! `list`: the containers under the state root.

use std::io::Write;

use chrono::SecondsFormat;
use serde_json::{Value, json};

use crate::cli::{self, ListFormat};
use crate::command::World;
use crate::error::{Context, Result};
use crate::runtime::{self, Listed};

pub(super) fn run(world: &World, arguments: &cli::List) -> Result<()> {
    let listed = runtime::list(&world.place.root)?;
    let text = match (arguments.quiet, arguments.json, arguments.format) {
        (true, _, _) => listed.iter().map(|entry| format!("{}\n", entry.id)).collect(),
        (false, true, _) | (false, false, ListFormat::Json) => {
            let values: Vec<Value> = listed.iter().map(as_json).collect::<Result<_>>()?;
            format!("{}\n", Value::from(values))
        }
        (false, false, ListFormat::Table) => table(&listed),
    };
    write!(std::io::stdout(), "{text}").context(|| "print the list")
}

fn as_json(entry: &Listed) -> Result<Value> {
    match &entry.state {
        Ok(state) => serde_json::to_value(state).context(|| "write the list"),
        Err(error) => Ok(json!({"id": entry.id, "pid": 0, "status": "damaged", "error": error.to_string()})),
    }
}

/// Columns at least twelve wide and three apart, as runc prints them.
fn table(listed: &[Listed]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |entry: &Listed| match &entry.state {
        Ok(state) => [
            entry.id.to_string(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.display().to_string(),
            state.created.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            state.owner.clone(),
        ],
        Err(_) => [entry.id.to_string(), "0".into(), "damaged".into(), "-".into(), "-".into(), "-".into()],
    };
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(listed.iter().map(row)).collect();
    let widths: Vec<usize> = (0..6)
        .map(|column| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or(0).max(12))
        .collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}
