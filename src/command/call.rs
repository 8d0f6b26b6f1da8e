//! `call`: the daemon's socket by hand.

use std::io::{ErrorKind, Write};

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::cli::daemon::Call;
use crate::command::World;
use crate::control::client::{Client, Reply};
use crate::control::{Following, Mode, STANDARD};
use crate::error::{Context, Error, Kind, Result};

pub(super) fn run(world: &World, arguments: &Call) -> Result<()> {
    let parameters = parse_parameters(&arguments.parameters)?;
    let mut client = Client::connect(world.place.root.path())?;
    if arguments.parameters.is_empty() && is_interface(&mut client, &arguments.method)? {
        return describe(&mut client, &arguments.method);
    }
    let mode = if arguments.more { Mode::More } else { Mode::Once };
    client.send(&arguments.method, &parameters, mode)?;
    loop {
        match client.receive()? {
            // What was to be done with open files is nothing that a command can do: they are closed.
            Reply::Answer { parameters, following, .. } => {
                let text = if arguments.json { compact(&parameters)? } else { pretty(&parameters)? };
                if !print(&text)? || following == Following::Nothing {
                    return Ok(());
                }
            }
            Reply::Refusal { name, parameters } => {
                let operation = format!("call {}", arguments.method);
                return Err(Error::new(Kind::System, operation, format!("{name} {parameters}")));
            }
        }
    }
}

fn is_interface(client: &mut Client, name: &str) -> Result<bool> {
    let (info, _) = client.call::<Value>(&format!("{STANDARD}.GetInfo"), &json!({}))?;
    Ok(info["interfaces"].as_array().is_some_and(|names| names.iter().any(|known| known == name)))
}

fn describe(client: &mut Client, interface: &str) -> Result<()> {
    let method = format!("{STANDARD}.GetInterfaceDescription");
    let (answer, _) = client.call::<Value>(&method, &json!({"interface": interface}))?;
    print(answer["description"].as_str().unwrap_or_default().trim_end()).map(|_| ())
}

fn compact(parameters: &RawValue) -> Result<String> {
    let value: Value = serde_json::from_str(parameters.get()).context(|| "read the answer")?;
    Ok(value.to_string())
}

fn pretty(parameters: &RawValue) -> Result<String> {
    let value: Value = serde_json::from_str(parameters.get()).context(|| "read the answer")?;
    serde_json::to_string_pretty(&value).context(|| "write JSON")
}

/// Prints a line; `false` if nobody reads any more.
fn print(text: &str) -> Result<bool> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.context(|| "print the answer").map(|()| true),
    }
}

/// `a=1 b.c=x` as `{"a": 1, "b": {"c": "x"}}`.
fn parse_parameters(texts: &[String]) -> Result<Value> {
    let mut parameters = Value::Object(Map::new());
    for text in texts {
        let refuse = |cause: &str| Error::new(Kind::Usage, format!("read parameter '{}'", text.escape_debug()), cause);
        let Some((path, value)) = text.split_once('=') else { return Err(refuse("it is not KEY=VALUE")) };
        if path.split('.').any(str::is_empty) {
            return Err(refuse("its key is empty"));
        }
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        let mut place = &mut parameters;
        for key in path.split('.') {
            let Some(object) = place.as_object_mut() else { return Err(refuse("its key contradicts another's")) };
            // Null, for a moment, is what has no value yet.
            place = object.entry(key).or_insert(Value::Null);
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
        }
        if place.as_object().is_none_or(|object| !object.is_empty()) {
            return Err(refuse("its key contradicts another's"));
        }
        *place = value;
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Value> {
        parse_parameters(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn values_are_json_or_text_and_keys_are_paths() {
        assert_eq!(parse_parameters(&[]).unwrap(), json!({}));
        let parsed = parse(r#"a=1 b.c=x b.d=["y"] e=true f= g=1.2.3 h="1" i=k=v"#).unwrap();
        let expected =
            json!({"a": 1, "b": {"c": "x", "d": ["y"]}, "e": true, "f": "", "g": "1.2.3", "h": "1", "i": "k=v"});
        assert_eq!(parsed, expected);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in ["a", "=1", "a.=1", "a=1 a.b=2", "a.b=1 a=2", "a=1 a=2"] {
            assert_eq!(parse(line).unwrap_err().kind(), Kind::Usage, "{line}");
        }
    }
}
