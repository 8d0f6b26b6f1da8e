//! `service logs`

use std::io::{ErrorKind, Write};

use super::{connect, which};
use crate::cli::service::Logs;
use crate::command::World;
use crate::control::life::{Line, Lines, Question, method};
use crate::error::{Context, Error, Kind, Result};

pub(super) fn run(world: &World, arguments: Logs) -> Result<()> {
    let Logs { service, follow, json } = arguments;
    let question = Question { which: which(service), follow };
    let mut open = true;
    let printed = connect(world)?.stream(method::LOGS, &question, |Lines { lines }| {
        open = print(&lines, json)?;
        // The only way to end a stream from here.
        if open { Ok(()) } else { Err(Error::new(Kind::System, "print the log", "nobody reads it")) }
    });
    if open { printed } else { Ok(()) }
}

/// Whether somebody still reads.
fn print(lines: &[Line], json: bool) -> Result<bool> {
    let mut text = Vec::new();
    for line in lines {
        if json {
            serde_json::to_writer(&mut text, line).context(|| "write JSON")?;
            text.push(b'\n');
        } else if line.source == "keeper" {
            text.extend_from_slice(format!("[{}] {}\n", line.instance, line.text).as_bytes());
        } else {
            text.extend_from_slice(line.text.as_bytes());
            // One that goes on is put together again.
            text.extend((line.source != "part").then_some(b'\n'));
        }
    }
    let mut output = std::io::stdout().lock();
    match output.write_all(&text).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.context(|| "print the log").map(|()| true),
    }
}
