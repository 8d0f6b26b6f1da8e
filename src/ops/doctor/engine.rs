//! The engines that could run containers by regen: whether they are there, know of it, and would find it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Finding;
use super::program;
use crate::error::quote;
use crate::sys::fs::read_capped;

const CAP: u64 = 1 << 20;

/// An engine, and where it is told of runtimes.
#[derive(Debug, Clone, Copy)]
struct Engine {
    name: &'static str,
    /// Any of these in the path says that it is installed.
    programs: &'static [&'static str],
    /// Files; one that ends in `/` is a directory of them. Later ones win.
    files: &'static [&'static str],
    /// Picks the runtimes out of one file.
    pick: fn(&Value) -> Vec<Runtime>,
}

const ENGINES: [Engine; 4] = [
    Engine {
        name: "podman",
        programs: &["podman"],
        files: &[
            "/usr/share/containers/containers.conf",
            "/etc/containers/containers.conf",
            "/etc/containers/containers.conf.d/",
        ],
        pick: pick_podman,
    },
    Engine {
        name: "containerd",
        programs: &["containerd"],
        files: &["/etc/containerd/config.toml", "/etc/containerd/conf.d/", "/etc/containerd/config.d/"],
        pick: pick_containerd,
    },
    Engine { name: "docker", programs: &["dockerd"], files: &["/etc/docker/daemon.json"], pick: pick_docker },
    Engine {
        name: "crio",
        programs: &["crio"],
        files: &["/etc/crio/crio.conf", "/etc/crio/crio.conf.d/"],
        pick: pick_crio,
    },
];

/// A runtime as an engine's configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Runtime {
    name: String,
    /// Where its program is; the first that exists counts.
    paths: Vec<PathBuf>,
}

/// What was found of one engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    installed: bool,
    /// Those that are regen, each with the program that the engine would execute.
    runtimes: Vec<(Runtime, Option<PathBuf>)>,
    /// Files that could not be understood, with the reason.
    faults: Vec<String>,
}

pub(super) fn examine() -> Vec<Finding> {
    ENGINES.iter().map(|engine| judge(engine.name, &look(engine))).collect()
}

fn look(engine: &Engine) -> Found {
    let mut found =
        Found { installed: engine.programs.iter().any(|name| program::find(name).is_some()), ..Found::default() };
    for file in engine.files.iter().flat_map(|name| files_of(name)).chain(own_files(engine)) {
        match read(&file) {
            Ok(None) => {}
            Ok(Some(value)) => {
                for runtime in (engine.pick)(&value).into_iter().filter(is_regen) {
                    let program = runtime.paths.iter().find_map(|path| locate(path));
                    found.runtimes.retain(|(other, _)| other.name != runtime.name);
                    found.runtimes.push((runtime, program));
                }
            }
            Err(cause) => found.faults.push(format!("{}: {cause}", quote(&file))),
        }
    }
    found
}

fn files_of(name: &str) -> Vec<PathBuf> {
    if !name.ends_with('/') {
        return vec![PathBuf::from(name)];
    }
    let children = fs::read_dir(name).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> =
        children.filter(|path| path.extension().is_some_and(|e| e == "conf" || e == "toml")).collect();
    files.sort();
    files
}

/// An ordinary user's podman has files of its own.
fn own_files(engine: &Engine) -> Vec<PathBuf> {
    if engine.name != "podman" || nix::unistd::geteuid().is_root() {
        return Vec::new();
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    let names = ["containers/containers.conf", "containers/containers.conf.d/"];
    home.iter().flat_map(|home| names.map(|name| files_of(&format!("{}/{name}", home.display())))).flatten().collect()
}

/// The content of a file, TOML or JSON; `None` if it is not there.
fn read(file: &Path) -> Result<Option<Value>, String> {
    let bytes = match read_capped(file, CAP) {
        Err(error) if error.kind() == crate::error::Kind::NotFound => return Ok(None),
        other => other.map_err(|error| error.to_string())?,
    };
    let value = if file.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    } else {
        let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
        toml::from_str(&text).map_err(|error| error.message().to_owned())
    };
    value.map(Some)
}

/// An engine looks for a bare name in the path.
fn locate(path: &Path) -> Option<PathBuf> {
    match path.to_str() {
        Some(name) if !name.contains('/') => program::find(name),
        _ => program::is_executable(path).then(|| path.to_owned()),
    }
}

fn is_regen(runtime: &Runtime) -> bool {
    // 'regen install --ring alice' calls its runtime regen-alice.
    let named = runtime.name == "regen" || runtime.name.starts_with("regen-");
    named || runtime.paths.iter().any(|path| path.file_name().is_some_and(|name| name == "regen"))
}

/// `[engine.runtimes] NAME = [PATH, …]`
fn pick_podman(value: &Value) -> Vec<Runtime> {
    each(&value["engine"]["runtimes"], |paths| {
        paths.as_array().into_iter().flatten().filter_map(Value::as_str).map(PathBuf::from).collect()
    })
}

/// `[plugins.CRI.containerd.runtimes.NAME.options] BinaryName = PATH`; the plugin's name depends on the version.
fn pick_containerd(value: &Value) -> Vec<Runtime> {
    let plugins = value["plugins"].as_object().into_iter().flatten().map(|(_, plugin)| plugin);
    plugins
        .flat_map(|plugin| {
            each(&plugin["containerd"]["runtimes"], |runtime| {
                [&runtime["options"]["BinaryName"], &runtime["runtime_path"]]
                    .into_iter()
                    .filter_map(Value::as_str)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from)
                    .collect()
            })
        })
        .collect()
}

/// `{"runtimes": {"NAME": {"path": PATH}}}`
fn pick_docker(value: &Value) -> Vec<Runtime> {
    each(&value["runtimes"], |runtime| runtime["path"].as_str().map(PathBuf::from).into_iter().collect())
}

/// `[crio.runtime.runtimes.NAME] runtime_path = PATH`
fn pick_crio(value: &Value) -> Vec<Runtime> {
    each(&value["crio"]["runtime"]["runtimes"], |runtime| {
        runtime["runtime_path"].as_str().map(PathBuf::from).into_iter().collect()
    })
}

fn each(table: &Value, paths: impl Fn(&Value) -> Vec<PathBuf>) -> Vec<Runtime> {
    let entries = table.as_object().into_iter().flatten();
    entries.map(|(name, value)| Runtime { name: name.clone(), paths: paths(value) }).collect()
}

fn judge(engine: &str, found: &Found) -> Finding {
    let subject = format!("engine {engine}");
    let install = format!("regen install --engine {engine}");
    if let Some(fault) = found.faults.first() {
        return Finding::warn(subject, format!("its configuration cannot be read: {fault}"), install);
    }
    let broken = found.runtimes.iter().find(|(_, program)| program.is_none());
    match (found.installed, broken, found.runtimes.first()) {
        (_, Some((runtime, _)), _) => {
            let paths = runtime.paths.iter().map(quote).collect::<Vec<_>>().join(", ");
            let text = format!("regen is registered as '{}', but there is no program at {paths}", runtime.name);
            Finding::fail(subject, text, install)
        }
        (true, None, Some((runtime, Some(program)))) => {
            Finding::ok(subject, format!("regen is registered as '{}' at {}", runtime.name, quote(program)))
        }
        (true, None, _) => Finding::warn(subject, "installed, but does not know of regen", install),
        (false, None, Some(_)) => Finding::ok(subject, "regen is registered, the engine is not installed"),
        (false, None, None) => Finding::ok(subject, "not installed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::doctor::Status;
    use serde_json::json;

    fn named(name: &str, path: &str) -> Vec<Runtime> {
        vec![Runtime { name: name.into(), paths: vec![path.into()] }]
    }

    #[test]
    fn runtimes_are_found_where_each_engine_keeps_them() {
        let toml = |text: &str| toml::from_str::<Value>(text).unwrap();
        assert_eq!(pick_podman(&toml("[engine.runtimes]\nregen = [\"/u/regen\"]")), named("regen", "/u/regen"));
        for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
            let text = format!("[plugins.\"{plugin}\".containerd.runtimes.r.options]\nBinaryName = \"/u/regen\"");
            assert_eq!(pick_containerd(&toml(&text)), named("r", "/u/regen"));
        }
        assert_eq!(pick_docker(&json!({"runtimes": {"regen": {"path": "/u/regen"}}})), named("regen", "/u/regen"));
        let text = "[crio.runtime.runtimes.regen]\nruntime_path = \"/u/regen\"";
        assert_eq!(pick_crio(&toml(text)), named("regen", "/u/regen"));
        for pick in [pick_podman, pick_containerd, pick_docker, pick_crio] {
            assert_eq!(pick(&json!({"engine": 1, "plugins": [1], "runtimes": "x", "crio": null})), []);
        }
    }

    #[test]
    fn a_registered_path_that_leads_nowhere_is_a_failure() {
        let runtime = named("regen", "/u/regen").remove(0);
        let found = |installed, runtimes| Found { installed, runtimes, faults: Vec::new() };
        let status = |found: &Found| judge("podman", found).status;
        assert_eq!(status(&found(false, vec![])), Status::Ok);
        assert_eq!(status(&found(true, vec![])), Status::Warn);
        assert_eq!(status(&found(true, vec![(runtime.clone(), Some("/u/regen".into()))])), Status::Ok);
        assert_eq!(status(&found(true, vec![(runtime, None)])), Status::Fail);
        let torn = Found { faults: vec!["'/etc/x': line 1".into()], ..found(true, vec![]) };
        assert_eq!(status(&torn), Status::Warn);
    }

    #[test]
    fn regen_is_known_by_its_name_or_its_programs() {
        assert!(is_regen(&named("regen", "/opt/wrapper").remove(0)));
        assert!(is_regen(&named("regen-alice", "/opt/wrapper").remove(0)));
        assert!(is_regen(&named("other", "/usr/bin/regen").remove(0)));
        assert!(!is_regen(&named("crun", "/usr/bin/crun").remove(0)));
    }
}
