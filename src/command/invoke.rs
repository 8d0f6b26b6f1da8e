//! `invoke`: one call of a function in a clone.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::template::Invoke;
use crate::command::World;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ops::clone::Wish;
use crate::ops::function;
use crate::ops::invoke::{Bounds, Failure, Outcome, invoke};
use crate::ops::warm::snapshot::{self, Invocation, Snapshot};
use crate::template::definition::directory;
use crate::template::job::Call;
use crate::template::message::Cleanup;

/// The longest event.
const EVENT_MAX: usize = 1 << 20;

/// 0, or 1 if the function failed: that is told here.
pub(super) fn run(world: &World, arguments: &Invoke) -> Result<u8> {
    let event = event(arguments)?;
    let handler = arguments.handler.as_str();
    let place = &world.place;
    if let Some(snapshot) = Snapshot::of_template(&directory(&place.store, &place.owner, &arguments.template))? {
        return tell(arguments, restore(world, arguments, snapshot, event)?);
    }
    let wish = Wish {
        template: arguments.template.clone(),
        id: None,
        function: Some(arguments.function.clone()),
        command: Vec::new(),
        call: Some(Call { handler: handler.to_owned(), event }),
        env: arguments.env.clone(),
        workdir: None,
        memory: arguments.memory,
        cleanup: Cleanup::WithConnection,
    };
    let null = File::open("/dev/null").context(|| "open '/dev/null'")?;
    let stderr = std::io::stderr();
    let bounds = Bounds { time: arguments.timeout, output: arguments.max_output };
    // Standard output is for the result alone.
    tell(arguments, invoke(place, &wish, bounds, [null.as_fd(), stderr.as_fd(), stderr.as_fd()])?)
}

/// The same where the template is of mode 'snapshot'.
fn restore(world: &World, arguments: &Invoke, snapshot: Snapshot, event: String) -> Result<Outcome> {
    snapshot::refuse_program(arguments.template.as_str(), &[], &arguments.env, None)?;
    let function = function::open(&world.place, &arguments.function)?;
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().context(|| "duplicate standard error")?;
    let invocation = Invocation {
        template: arguments.template.clone(),
        call: Call { handler: arguments.handler.as_str().to_owned(), event },
        function: Some(function),
        bounds: Bounds { time: arguments.timeout, output: arguments.max_output },
        memory: arguments.memory,
        cgroups: world.cgroups,
        stderr,
    };
    let mut complain = |line: &[u8]| std::io::stderr().write_all(line).context(|| "print what it says");
    snapshot::invoke(&world.place, snapshot, invocation, &mut complain)
}

/// Prints what came of it: 0, or 1 if the function failed.
fn tell(arguments: &Invoke, outcome: Outcome) -> Result<u8> {
    let handler = arguments.handler.as_str();
    match (outcome, arguments.output.json) {
        (Outcome::Result(result), false) => print(&line(&result)?).map(|()| 0),
        (Outcome::Result(result), true) => print(&format!("{{\"result\":{}}}", line(&result)?)).map(|()| 0),
        (Outcome::Error(failure), json) => {
            if json {
                print(&serde_json::json!({ "error": failure }).to_string())?;
            } else {
                complain(&failure.traceback);
            }
            let Failure { kind, message, .. } = failure;
            let operation = format!("invoke '{handler}' in a clone of '{}'", arguments.template);
            Err(Error::new(Kind::State, operation, harmless(&format!("{kind}: {message}"))))
        }
    }
}

/// Somebody else's text, which may say things to a terminal; of its lines an error makes one.
fn harmless(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() && character != '\n' {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

/// The event's text: JSON, and not too long. Nothing is begun before it is known to be good.
fn event(arguments: &Invoke) -> Result<String> {
    let (text, operation) = match (&arguments.event, &arguments.event_file) {
        (Some(event), _) => (event.clone(), "read the event".to_owned()),
        (None, Some(path)) => (read(path)?, format!("read event {}", quote(path))),
        (None, None) => return Ok("null".to_owned()),
    };
    if text.len() > EVENT_MAX {
        let cause = format!("it has more than {} MiB", EVENT_MAX >> 20);
        return Err(Error::new(Kind::Usage, operation, cause).next("put it into a file that the function reads"));
    }
    match serde_json::from_str::<IgnoredAny>(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Error::new(Kind::Usage, operation, format!("it is not JSON: {error}"))),
    }
}

fn read(path: &Path) -> Result<String> {
    let operation = || format!("read event {}", quote(path));
    let mut bytes = Vec::new();
    // One more than may be, so that too much is seen.
    let cap = EVENT_MAX as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(cap).read_to_end(&mut bytes).context(operation)?;
    } else {
        File::open(path).and_then(|file| file.take(cap).read_to_end(&mut bytes)).context(operation)?;
    }
    // What was cut in the middle of a character is too long anyway.
    String::from_utf8(bytes).or_else(|error| {
        if error.as_bytes().len() > EVENT_MAX {
            return Ok(String::from_utf8_lossy(error.as_bytes()).into_owned());
        }
        Err(Error::new(Kind::Usage, operation(), "it is not UTF-8"))
    })
}

/// JSON in one line, as it is if it has none.
fn line(result: &RawValue) -> Result<String> {
    if !result.get().contains(['\n', '\r']) {
        return Ok(result.get().to_owned());
    }
    let value: Value = serde_json::from_str(result.get()).context(|| "read the result")?;
    Ok(value.to_string())
}

fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(format!("{text}\n").as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context(|| "print the result"),
    }
}

/// If even standard error is closed there is nobody left to tell.
fn complain(traceback: &str) {
    if !traceback.is_empty() {
        let _ = writeln!(std::io::stderr(), "{}", traceback.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_moves_no_cursor() {
        assert_eq!(harmless("KeyError: 'ä'\n\x1b[31m"), "KeyError: 'ä'\n\\u{1b}[31m");
    }
}
