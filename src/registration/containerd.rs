//! containerd: a part of `config.toml` between two marks. Its drop-in files can't be used: a plugin that one of them
//! names loses everything that other files say about it.

use toml::{Table, Value};

use super::{CgroupDriver, Engine, Entry, binary, foreign, toml_string};
use crate::error::{Error, Kind, Result};

/// The lines before and after what is ours.
fn marks(entry: &Entry) -> (String, String) {
    let undo = Engine::Containerd.undo(&entry.name);
    (
        format!("# BEGIN runtime '{}' ('{undo}' takes it away)\n", entry.name),
        format!("# END runtime '{}'\n", entry.name),
    )
}

/// What is between the marks.
pub(super) fn text(entry: &Entry, old: Option<&str>) -> Result<String> {
    let others = old.map(|old| parse(&without(entry, old)?)).transpose()?.unwrap_or_default();
    let plugin = plugin(&others)?;
    let table = format!("{}.{}", runtimes_of(plugin), toml_string(entry.name.as_str()));
    let binary = toml_string(binary(entry)?);
    let systemd = match entry.cgroups {
        CgroupDriver::Cgroupfs => "",
        CgroupDriver::Systemd => "SystemdCgroup = true\n",
    };
    let built_in = if loses_built_in(&others, entry.name.as_str()) { built_in(plugin) } else { String::new() };
    Ok(format!(
        "{built_in}[{table}]\nruntime_type = \"io.containerd.runc.v2\"\npod_annotations = [\"run.regen.*\"]\n\
         [{table}.options]\nBinaryName = {binary}\n{systemd}"
    ))
}

pub(super) fn add(entry: &Entry, old: Option<&str>) -> Result<String> {
    let text = text(entry, old)?;
    let (begin, end) = marks(entry);
    let Some(old) = old else { return Ok(format!("{begin}version = 2\n{text}{end}")) };
    let rest = without(entry, old)?;
    let others = parse(&rest)?;
    if find_runtime(&others, entry.name.as_str()).is_some() {
        return Err(foreign(Engine::Containerd, &format!("a runtime '{}'", entry.name)));
    }
    // A file that was ours as a whole stays so.
    let version = if others.is_empty() { "version = 2\n" } else { "" };
    let gap = if rest.is_empty() || rest.ends_with("\n\n") || version.is_empty() && rest == "\n" {
        ""
    } else if rest.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    let new = format!("{rest}{gap}{begin}{version}{text}{end}");
    let mut read = parse(&new)?;
    remove_runtime(&mut read, entry.name.as_str());
    if loses_built_in(&others, entry.name.as_str()) {
        remove_runtime(&mut read, BUILT_IN);
    }
    check_same(&read, &others)?;
    Ok(new)
}

/// `None` if nothing is left.
pub(super) fn remove(entry: &Entry, old: &str) -> Result<Option<String>> {
    let mut rest = without(entry, old)?;
    if rest.trim().is_empty() {
        return Ok(None);
    }
    let (mut read, mut left) = (parse(old)?, parse(&rest)?);
    if let (Some(version), None) = (read.get("version"), left.get("version")) {
        // Another runtime came after the one with which regen made the file.
        rest = format!("version = {version}\n\n{}", rest.trim_start());
        left = parse(&rest)?;
    }
    if find_runtime(&read, BUILT_IN).is_some() && find_runtime(&left, BUILT_IN).is_none() {
        if runtimes(&left).is_some_and(|others| !others.is_empty()) {
            // Another runtime came after the one with which regen wrote it down.
            rest = format!("{}\n\n{}", rest.trim_end(), built_in(plugin(&left)?));
            left = parse(&rest)?;
        } else {
            remove_runtime(&mut read, BUILT_IN);
        }
    }
    if rest != old {
        remove_runtime(&mut read, entry.name.as_str());
        check_same(&read, &left)?;
    }
    Ok(Some(rest))
}

/// The file without our part, and without the empty line that parts it from what is before.
fn without(entry: &Entry, old: &str) -> Result<String> {
    let (begin_mark, end_mark) = marks(entry);
    let Some(begin) = old.find(&begin_mark) else { return Ok(old.to_owned()) };
    let Some(length) = old[begin..].find(&end_mark) else {
        return Err(invalid(&format!("what begins with '{}' has no '{}'", begin_mark.trim(), end_mark.trim())));
    };
    let after = old[begin + length + end_mark.len()..].trim_start_matches('\n');
    // What stands behind our part without a table of its own is in the last one of ours.
    let first = after.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    if first.is_some_and(|line| !line.starts_with('[')) {
        return Err(invalid(&format!("what follows '{}' begins without a table", end_mark.trim())));
    }
    let before = &old[..begin];
    let before = before.strip_suffix("\n\n").map_or(before.to_owned(), |before| format!("{before}\n"));
    Ok(if after.is_empty() || before.is_empty() { before + after } else { format!("{before}\n{after}") })
}

const PLUGIN_2: &str = "io.containerd.grpc.v1.cri";
const PLUGIN_3: &str = "io.containerd.cri.v1.runtime";

/// The name of the plugin that has runtimes, by the version that the file states.
fn plugin(config: &Table) -> Result<&'static str> {
    match config.get("version").and_then(Value::as_integer) {
        Some(2) => Ok(PLUGIN_2),
        Some(3) => Ok(PLUGIN_3),
        None if config.is_empty() => Ok(PLUGIN_2),
        Some(1) | None => {
            Err(invalid("it is of version 1").next("replace it by what 'containerd config migrate' prints"))
        }
        Some(version) => Err(invalid(&format!("version {version} is not known"))),
    }
}

fn runtimes_of(plugin: &str) -> String {
    format!("plugins.{}.containerd.runtimes", toml_string(plugin))
}

/// What containerd's default is called, and is where no file names a runtime.
const BUILT_IN: &str = "runc";

/// Whether a runtime of this name, as the first one of a file, would take containerd's own away, and with it the default:
/// the plugin then does not start.
fn loses_built_in(others: &Table, name: &str) -> bool {
    name != BUILT_IN && runtimes(others).is_none_or(Table::is_empty)
}

fn built_in(plugin: &str) -> String {
    let table = runtimes_of(plugin);
    format!("# As it is where no runtime is named.\n[{table}.{BUILT_IN}]\nruntime_type = \"io.containerd.runc.v2\"\n")
}

fn runtimes(config: &Table) -> Option<&Table> {
    let plugin = config.get("plugins")?.get(plugin(config).ok()?)?;
    plugin.get("containerd")?.get("runtimes")?.as_table()
}

fn find_runtime<'a>(config: &'a Table, name: &str) -> Option<&'a Value> {
    runtimes(config)?.get(name)
}

fn remove_runtime(config: &mut Table, name: &str) {
    let Ok(plugin) = plugin(config) else { return };
    let plugin = config.get_mut("plugins").and_then(|plugins| plugins.get_mut(plugin));
    let runtimes = plugin.and_then(|plugin| plugin.get_mut("containerd")?.get_mut("runtimes")?.as_table_mut());
    if let Some(runtimes) = runtimes {
        runtimes.remove(name);
    }
}

/// Tables that are empty say nothing.
fn prune(table: &Table) -> Table {
    let keep = table.iter().map(|(key, value)| match value {
        Value::Table(inner) => (key.clone(), Value::Table(prune(inner))),
        other => (key.clone(), other.clone()),
    });
    keep.filter(|(_, value)| value.as_table().is_none_or(|table| !table.is_empty())).collect()
}

fn check_same(new: &Table, old: &Table) -> Result<()> {
    let mut new = prune(new);
    if old.is_empty() {
        new.remove("version");
    }
    if new == prune(old) { Ok(()) } else { Err(invalid("adding to it would change what it says")) }
}

fn parse(text: &str) -> Result<Table> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        invalid(&format!("line {line}: {}", error.message()))
    })
}

fn invalid(cause: &str) -> Error {
    Error::new(Kind::Invalid, "read '/etc/containerd/config.toml'", cause)
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::super::{Change, Found};
    use super::*;

    const DEBIAN: &str = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
        [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\" # here\n";

    fn found(text: &str) -> Found {
        Found { file: Some(text.to_owned()), main: None }
    }

    fn added(text: &str) -> String {
        let Change::Write(new) = Engine::Containerd.add(&entry(), &found(text)).unwrap() else { panic!("{text}") };
        assert_eq!(Engine::Containerd.add(&entry(), &found(&new)).unwrap(), Change::Nothing);
        new
    }

    #[test]
    fn what_is_there_stays_and_comes_back() {
        for text in [DEBIAN, DEBIAN.trim_end(), &format!("{DEBIAN}\n"), "version = 2\n", "version = 2\nroot = '/x'"] {
            let new = added(text);
            assert!(new.starts_with(text), "{new}");
            let Change::Write(old) = Engine::Containerd.remove(&entry(), &found(&new)).unwrap() else { panic!() };
            assert_eq!(old.trim_end(), text.trim_end());
            let later = format!("{new}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"/opt\"\n");
            let Change::Write(old) = Engine::Containerd.remove(&entry(), &found(&later)).unwrap() else { panic!() };
            assert!(old.ends_with("\n\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"/opt\"\n"), "{old}");
        }
        let alice = Entry { name: "regen-alice".parse().unwrap(), ..entry() };
        let both = add(&alice, Some(&add(&entry(), None).unwrap())).unwrap();
        let one = remove(&entry(), &both).unwrap().unwrap();
        assert!(one.starts_with("version = 2\n") && parse(&one).is_ok(), "{one}");
        assert!(find_runtime(&parse(&one).unwrap(), "regen-alice").is_some(), "{one}");
        assert!(find_runtime(&parse(&one).unwrap(), "runc").is_some(), "the default is still there: {one}");
        assert_eq!(parse(&remove(&alice, &one).unwrap().unwrap()).unwrap()["version"].as_integer(), Some(2));
        for empty in ["", "\n"] {
            let new = added(empty);
            assert!(new.contains("version = 2\n"));
            assert_eq!(Engine::Containerd.remove(&entry(), &found(&new)).unwrap(), Change::Remove);
        }
    }

    #[test]
    fn the_plugin_is_called_as_the_version_says() {
        let of = |version: u8| {
            let table: Table = added(&format!("version = {version}\n")).parse().unwrap();
            find_runtime(&table, "regen").unwrap()["options"]["BinaryName"].as_str().map(str::to_owned)
        };
        assert_eq!(of(2).as_deref(), Some("/usr/local/bin/regen"));
        assert_eq!(of(3).as_deref(), Some("/usr/local/bin/regen"));
        for bad in ["version = 1", "root = '/x'", "version = 9", "version = 2\n[plugins", "version = 2\nversion = 2"] {
            let error = Engine::Containerd.add(&entry(), &found(bad)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{bad}: {error}");
        }
    }

    #[test]
    fn the_default_runtime_is_not_lost() {
        let types = |text: &str| {
            let table: Table = added(text).parse().unwrap();
            find_runtime(&table, "runc").map(|runc| runc["runtime_type"].as_str().unwrap().to_owned())
        };
        assert_eq!(types(DEBIAN).as_deref(), Some("io.containerd.runc.v2"));
        let theirs = format!("{DEBIAN}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n");
        assert_eq!(types(&format!("{theirs}runtime_type = \"x\"\n")).as_deref(), Some("x"));
        let other = theirs.replace("runtimes.runc", "runtimes.other");
        assert_eq!(types(&other), None, "it was taken away before");
    }

    #[test]
    fn a_runtime_of_somebody_elses_is_left_alone() {
        let theirs = format!("{DEBIAN}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.regen]\na = 1\n");
        assert_eq!(Engine::Containerd.add(&entry(), &found(&theirs)).unwrap_err().kind(), Kind::Exists);
        assert_eq!(Engine::Containerd.remove(&entry(), &found(&theirs)).unwrap(), Change::Nothing);
        let inline = "version = 2\nplugins = {x = {y = 1}}\n";
        assert_eq!(Engine::Containerd.add(&entry(), &found(inline)).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn keys_that_were_added_behind_ours_are_not_torn_from_their_table() {
        let new = added(DEBIAN) + "Root = \"/x\"\n";
        for result in
            [Engine::Containerd.add(&entry(), &found(&new)), Engine::Containerd.remove(&entry(), &found(&new))]
        {
            assert_eq!(result.unwrap_err().kind(), Kind::Invalid);
        }
    }

    #[test]
    fn systemd_makes_cgroups_if_that_is_asked_for() {
        let systemd = Entry { cgroups: CgroupDriver::Systemd, ..entry() };
        let table: Table = add(&systemd, Some(DEBIAN)).unwrap().parse().unwrap();
        assert_eq!(find_runtime(&table, "regen").unwrap()["options"]["SystemdCgroup"].as_bool(), Some(true));
    }
}
