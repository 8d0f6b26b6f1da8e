//! podman and CRI-O: directories of drop-in files, one of which is ours as a whole.

use toml::{Table, Value};

use super::{Engine, Entry, binary, foreign, toml_string};
use crate::error::{Error, Kind, Result, quote};

/// How a file of ours begins.
const MARK: &str = "# Written by 'regen install'; ";

/// podman's own lists of runtimes that log errors as JSON, and that go without cgroups: a file that sets a list replaces
/// it.
const PODMAN_LISTS: [(&str, &[&str]); 2] = [
    ("runtime_supports_json", &["crun", "kata", "krun", "runc", "runsc", "youki"]),
    ("runtime_supports_nocgroup", &["crun", "krun"]),
];

/// containers.conf(5). `main` is the text of the administrator's own file.
pub(super) fn podman(entry: &Entry, main: Option<&str>) -> Result<String> {
    let main = main.map(read_main).transpose()?.unwrap_or_default();
    let mut text = mark(Engine::Podman, entry) + "[engine]\n";
    for (key, own) in PODMAN_LISTS {
        let mut names: Vec<String> = own.iter().map(|name| (*name).to_owned()).collect();
        for name in listed(&main, key).chain([entry.name.to_string()]) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let names: Vec<_> = names.iter().map(|name| toml_string(name)).collect();
        text += &format!("{key} = [{}]\n", names.join(", "));
    }
    let (name, binary) = (toml_string(entry.name.as_str()), toml_string(binary(entry)?));
    Ok(format!("{text}\n[engine.runtimes]\n{name} = [{binary}]\n"))
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

fn read_main(text: &str) -> Result<Table> {
    text.parse().map_err(|error: toml::de::Error| {
        let operation = "read '/etc/containers/containers.conf'";
        Error::new(Kind::Invalid, operation, error.message()).next("mend it first: podman can't read it either")
    })
}

/// What the administrator lists beyond podman's own.
fn listed(main: &Table, key: &str) -> impl Iterator<Item = String> {
    let names = main.get("engine").and_then(|engine| engine.get(key)).and_then(Value::as_array);
    names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned))
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
        assert_eq!(table["engine"]["runtime_supports_nocgroup"], Value::from(vec!["crun", "krun", "regen"]));
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
