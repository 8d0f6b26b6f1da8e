//! Docker: one key of `runtimes` in `daemon.json`. Everything else keeps its order and its spelling.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Engine, Entry, binary, foreign};
use crate::error::{Error, Kind, Result};

/// An object whose values are left as they are written.
#[derive(Debug, Default)]
struct Object(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if object.get(&key).is_some() {
                        return Err(A::Error::custom(format!("key '{key}' is there twice")));
                    }
                    object.0.push((key, value));
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Object {
    fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    fn set(&mut self, key: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    fn write(&self, indent: &str) -> String {
        let pairs = self.0.iter().map(|(key, value)| format!("{indent}    {}: {}", json!(key), value.get()));
        let pairs: Vec<_> = pairs.collect();
        if pairs.is_empty() { "{}".to_owned() } else { format!("{{\n{}\n{indent}}}", pairs.join(",\n")) }
    }
}

/// A whole `daemon.json` for a daemon that has none.
pub(super) fn text(entry: &Entry) -> Result<String> {
    add(entry, None)
}

pub(super) fn add(entry: &Entry, old: Option<&str>) -> Result<String> {
    let (mut config, mut runtimes) = read(old.unwrap_or_default())?;
    let value = value(entry)?;
    if let Some(there) = runtimes.get(entry.name.as_str()) {
        let there: Value = serde_json::from_str(there.get()).map_err(|error| invalid(&error))?;
        if there == value {
            return Ok(old.unwrap_or_default().to_owned());
        }
        check_ours(entry, &there)?;
    }
    runtimes.set(entry.name.as_str(), raw(&value.to_string())?);
    config.set("runtimes", raw(&runtimes.write("    "))?);
    Ok(config.write("") + "\n")
}

/// `None` if nothing is left.
pub(super) fn remove(entry: &Entry, old: &str) -> Result<Option<String>> {
    let (mut config, mut runtimes) = read(old)?;
    let Some(there) = runtimes.get(entry.name.as_str()) else { return Ok(Some(old.to_owned())) };
    check_ours(entry, &serde_json::from_str(there.get()).map_err(|error| invalid(&error))?)?;
    let quoted = format!("\"{}\"", entry.name);
    if config.get("default-runtime").is_some_and(|name| name.get() == quoted) {
        let operation = format!("make docker forget runtime '{}'", entry.name);
        return Err(Error::new(Kind::Busy, operation, "it is the daemon's default-runtime")
            .next("choose another default in '/etc/docker/daemon.json' first"));
    }
    runtimes.remove(entry.name.as_str());
    if runtimes.0.is_empty() {
        config.remove("runtimes");
    } else {
        config.set("runtimes", raw(&runtimes.write("    "))?);
    }
    Ok((!config.0.is_empty()).then(|| config.write("") + "\n"))
}

fn read(text: &str) -> Result<(Object, Object)> {
    // The daemon takes an empty file for an empty object.
    let text = if text.trim().is_empty() { "{}" } else { text };
    let config: Object = serde_json::from_str(text).map_err(|error| invalid(&error))?;
    let runtimes = match config.get("runtimes") {
        Some(runtimes) => serde_json::from_str(runtimes.get()).map_err(|error| invalid(&error))?,
        None => Object::default(),
    };
    Ok((config, runtimes))
}

fn value(entry: &Entry) -> Result<Value> {
    let path = binary(entry)?;
    Ok(if entry.arguments.is_empty() {
        json!({"path": path})
    } else {
        json!({"path": path, "runtimeArgs": entry.arguments})
    })
}

/// JSON has no comments that could say who wrote it: an entry is ours if its program is.
fn check_ours(entry: &Entry, there: &Value) -> Result<()> {
    let file_name = |path: &str| std::path::Path::new(path).file_name().map(ToOwned::to_owned);
    let path = there["path"].as_str().unwrap_or_default();
    let ours = path == binary(entry)? || file_name(path).is_some_and(|name| name == "regen");
    if ours { Ok(()) } else { Err(foreign(Engine::Docker, &format!("a runtime '{}'", entry.name))) }
}

fn raw(text: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).map_err(|error| invalid(&error))
}

fn invalid(error: &serde_json::Error) -> Error {
    Error::new(Kind::Invalid, "read '/etc/docker/daemon.json'", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::super::{Change, Found};
    use super::*;

    const THEIRS: &str = r#"{
        "storage-driver": "overlay2",
        "runtimes": {"kata": {"path": "/usr/bin/kata", "runtimeArgs": [ "-v" ]}},
        "default-ulimits": {"nofile": {"Name": "nofile",   "Hard": 1e3}},
        "bip": "10.0.0.1/24"
    }"#;

    fn found(text: &str) -> Found {
        Found { file: Some(text.to_owned()), main: None }
    }

    fn added(text: &str) -> String {
        let Change::Write(new) = Engine::Docker.add(&entry(), &found(text)).unwrap() else { panic!("{text}") };
        assert_eq!(Engine::Docker.add(&entry(), &found(&new)).unwrap(), Change::Nothing);
        new
    }

    #[test]
    fn what_is_there_stays_as_it_is_written() {
        let new = added(THEIRS);
        for part in [r#"{"path": "/usr/bin/kata", "runtimeArgs": [ "-v" ]}"#, r#""Name": "nofile",   "Hard": 1e3"#] {
            assert!(new.contains(part), "{new}");
        }
        assert!(new.find("storage-driver").unwrap() < new.find("bip").unwrap(), "{new}");
        let read: Value = serde_json::from_str(&new).unwrap();
        assert_eq!(read["runtimes"]["regen"], json!({"path": "/usr/local/bin/regen"}));
        let Change::Write(old) = Engine::Docker.remove(&entry(), &found(&new)).unwrap() else { panic!() };
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&old), value(THEIRS));
    }

    #[test]
    fn entries_with_flags_stand_beside_one_another() {
        let alice = Entry { name: "regen-alice".parse().unwrap(), arguments: vec!["--ring=alice".into()], ..entry() };
        let both = add(&alice, Some(&added("{}"))).unwrap();
        let read: Value = serde_json::from_str(&both).unwrap();
        assert_eq!(read["runtimes"]["regen-alice"]["runtimeArgs"], json!(["--ring=alice"]));
        assert_eq!(read["runtimes"]["regen"], json!({"path": "/usr/local/bin/regen"}));
        let one = remove(&alice, &both).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&one).unwrap()["runtimes"].as_object().unwrap().len(), 1);
    }

    #[test]
    fn what_is_not_ours_or_not_json_is_left_alone() {
        let theirs = r#"{"runtimes": {"regen": {"path": "/opt/other"}}}"#;
        assert_eq!(Engine::Docker.add(&entry(), &found(theirs)).unwrap_err().kind(), Kind::Exists);
        assert_eq!(Engine::Docker.remove(&entry(), &found(theirs)).unwrap_err().kind(), Kind::Exists);
        for bad in ["{", "[]", r#"{"runtimes": 3}"#, r#"{"a": 1, "a": 2}"#] {
            assert_eq!(Engine::Docker.add(&entry(), &found(bad)).unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
        let default = r#"{"runtimes": {"regen": {"path": "/b/regen"}}, "default-runtime": "regen"}"#;
        assert_eq!(Engine::Docker.remove(&entry(), &found(default)).unwrap_err().kind(), Kind::Busy);
    }
}
