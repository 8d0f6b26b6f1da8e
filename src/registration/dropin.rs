//! podman and CRI-O: directories of drop-in files, one of which is ours as a whole.

use toml::{Table, Value};

use super::{Engine, Entry, binary, foreign, toml_string};
use crate::error::{Error, Kind, Result, quote};

/// How a file of ours begins.
const MARK: &str = "# Written by 'regen install'; ";

/// podman's own list of runtimes that log errors as JSON, which a file that sets the list replaces.
const PODMAN_JSON: [&str; 6] = ["crun", "kata", "krun", "runc", "runsc", "youki"];

/// containers.conf(5). `main` is the text of the administrator's own file.
pub(super) fn podman(entry: &Entry, main: Option<&str>) -> Result<String> {
    let mut names: Vec<String> = PODMAN_JSON.map(str::to_owned).into();
    for name in main.map(json_runtimes).transpose()?.into_iter().flatten().chain([entry.name.to_string()]) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let names: Vec<_> = names.iter().map(|name| toml_string(name)).collect();
    let mark = mark(Engine::Podman, entry);
    let (name, names) = (toml_string(entry.name.as_str()), names.join(", "));
    let binary = toml_string(binary(entry)?);
    Ok(format!("{mark}[engine]\nruntime_supports_json = [{names}]\n\n[engine.runtimes]\n{name} = [{binary}]\n"))
}

/// crio.conf(5).
pub(super) fn crio(entry: &Entry) -> Result<String> {
    let mark = mark(Engine::Crio, entry);
    let (name, binary) = (toml_string(entry.name.as_str()), toml_string(binary(entry)?));
    // CRI-O takes no other word for the directory of states than this one.
    Ok(format!(
        "{mark}[crio.runtime.runtimes.{name}]\nruntime_path = {binary}\nruntime_type = \"oci\"\n\
         runtime_root = \"/run/regen\"\n"
    ))
}

pub(super) fn add(engine: Engine, entry: &Entry, text: &str, old: Option<&str>) -> Result<String> {
    old.map(|old| check_ours(engine, entry, old)).transpose()?;
    Ok(text.to_owned())
}

pub(super) fn remove(engine: Engine, entry: &Entry, old: &str) -> Result<Option<String>> {
    check_ours(engine, entry, old).map(|()| None)
}

fn mark(engine: Engine, entry: &Entry) -> String {
    format!("{MARK}'{}' takes it away.\n", engine.undo(&entry.name))
}

fn check_ours(engine: Engine, entry: &Entry, old: &str) -> Result<()> {
    if old.starts_with(MARK) { Ok(()) } else { Err(foreign(engine, &quote(engine.file(&entry.name)))) }
}

/// What the administrator lists beyond podman's own.
fn json_runtimes(main: &str) -> Result<Vec<String>> {
    let table: Table = main.parse().map_err(|error: toml::de::Error| {
        let operation = "read '/etc/containers/containers.conf'";
        Error::new(Kind::Invalid, operation, error.message()).next("mend it first: podman can't read it either")
    })?;
    let names = table.get("engine").and_then(|engine| engine.get("runtime_supports_json"));
    let names = names.and_then(Value::as_array).into_iter().flatten();
    Ok(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::super::{Change, Found};
    use super::*;

    #[test]
    fn podman_keeps_the_runtimes_that_the_administrator_lists() {
        let main = "[engine]\nruntime_supports_json = [\"runc\", \"mine\"]\n";
        let text = podman(&entry(), Some(main)).unwrap();
        let table: Table = text.parse().unwrap();
        let names = table["engine"]["runtime_supports_json"].as_array().unwrap();
        assert!(["crun", "mine", "regen"].iter().all(|name| names.contains(&Value::from(*name))), "{text}");
        assert_eq!(names.len(), 8, "{text}");
        assert_eq!(podman(&entry(), Some("[engine")).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_alone() {
        for engine in [Engine::Podman, Engine::Crio] {
            let found = Found { file: Some("[engine]\n".into()), main: None };
            assert_eq!(engine.add(&entry(), &found).unwrap_err().kind(), Kind::Exists);
            assert_eq!(engine.remove(&entry(), &found).unwrap_err().kind(), Kind::Exists);
        }
    }

    #[test]
    fn what_crio_is_told_is_toml() {
        let Change::Write(text) = Engine::Crio.add(&entry(), &Found::default()).unwrap() else { panic!() };
        let table: Table = text.parse().unwrap();
        let runtime = &table["crio"]["runtime"]["runtimes"]["regen"];
        assert_eq!(runtime["runtime_path"].as_str(), Some("/usr/local/bin/regen"));
    }
}
