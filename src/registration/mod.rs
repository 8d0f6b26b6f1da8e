//! How an engine comes to know of regen: which of its files says so, and what that file says afterwards. Pure.
//!
//! | engine | file | what is ours in it |
//! |---|---|---|
//! | podman | `containers.conf.d/50-regen.conf` | the file |
//! | CRI-O | `/etc/crio/crio.conf.d/50-regen.conf` | the file |
//! | containerd | `/etc/containerd/config.toml` | what is between two marks: its drop-ins replace whole plugins |
//! | Docker | `/etc/docker/daemon.json` | one key of `runtimes` |
//!
//! What somebody else wrote is never replaced or removed, and never made to mean something else: the new text is read
//! back and compared before it is handed out.

mod containerd;
mod docker;
mod dropin;

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result, quote};
use crate::ids::Name;

/// What users of an engine call regen unless they are told otherwise.
pub const DEFAULT_NAME: &str = "regen";

/// The engines that regen can be made known to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// podman 4.0 and newer.
    Podman,
    /// containerd 1.6 and newer, for its CRI plugin: Kubernetes.
    Containerd,
    /// Docker 20.10 and newer.
    Docker,
    /// CRI-O.
    Crio,
}

/// Who makes the cgroups of an engine's containers, where the engine asks that for each runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime.
    Cgroupfs,
    /// systemd.
    Systemd,
}

/// What an engine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What users of the engine call this runtime.
    pub name: Name,
    /// The program, absolute.
    pub binary: PathBuf,
    /// Flags that it gets before each verb; Docker only.
    pub arguments: Vec<String>,
    /// Who makes cgroups; containerd only.
    pub cgroups: CgroupDriver,
}

/// What is there already; `None` for a file that is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The file that is to be changed.
    pub file: Option<String>,
    /// The engine's main configuration, where [`Engine::main_file`] names one.
    pub main: Option<String>,
}

/// What is to become of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It says the right thing already.
    Nothing,
    /// It is to have this content.
    Write(String),
    /// It is to go: nothing but ours was in it.
    Remove,
}

impl Engine {
    /// What users call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Crio => "crio",
        }
    }

    /// The file that makes regen known, for all users of the machine.
    #[must_use]
    pub fn file(self, name: &Name) -> PathBuf {
        match self {
            Self::Podman => format!("/etc/containers/containers.conf.d/50-{name}.conf").into(),
            Self::Containerd => "/etc/containerd/config.toml".into(),
            Self::Docker => "/etc/docker/daemon.json".into(),
            Self::Crio => format!("/etc/crio/crio.conf.d/50-{name}.conf").into(),
        }
    }

    /// The command that takes away what [`Engine::add`] wrote.
    #[must_use]
    pub fn undo(self, name: &Name) -> String {
        let named = if name.as_str() == DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
        format!("regen install --engine {}{named} --undo", self.name())
    }

    /// The file whose lists a drop-in would replace, and therefore has to repeat.
    #[must_use]
    pub fn main_file(self) -> Option<&'static Path> {
        match self {
            Self::Podman => Some(Path::new("/etc/containers/containers.conf")),
            Self::Containerd | Self::Docker | Self::Crio => None,
        }
    }

    /// What makes a running engine read the file again, as a command; `None` if every call of it does.
    #[must_use]
    pub fn reload(self) -> Option<&'static str> {
        match self {
            Self::Podman => None,
            Self::Containerd => Some("systemctl restart containerd"),
            Self::Docker => Some("systemctl reload docker"),
            Self::Crio => Some("systemctl restart crio"),
        }
    }

    /// The text that is ours, alone.
    ///
    /// # Errors
    /// As [`Engine::add`].
    pub fn text(self, entry: &Entry, found: &Found) -> Result<String> {
        self.check(entry)?;
        match self {
            Self::Podman => dropin::podman(entry, found.main.as_deref()),
            Self::Crio => dropin::crio(entry),
            Self::Containerd => containerd::text(entry, found.file.as_deref()),
            Self::Docker => docker::text(entry),
        }
    }

    /// Makes regen known.
    ///
    /// # Errors
    /// [`Kind::Exists`] if somebody else has said something about a runtime of this name, [`Kind::Invalid`] if what
    /// is there can't be understood, [`Kind::Unsupported`] if the engine can't be told so.
    pub fn add(self, entry: &Entry, found: &Found) -> Result<Change> {
        self.check(entry)?;
        let old = found.file.as_deref();
        let new = match self {
            Self::Podman | Self::Crio => dropin::add(self, entry, &self.text(entry, found)?, old)?,
            Self::Containerd => containerd::add(entry, old)?,
            Self::Docker => docker::add(entry, old)?,
        };
        Ok(if old == Some(&new) { Change::Nothing } else { Change::Write(new) })
    }

    /// Undoes [`Engine::add`].
    ///
    /// # Errors
    /// As there.
    pub fn remove(self, entry: &Entry, found: &Found) -> Result<Change> {
        let Some(old) = found.file.as_deref() else { return Ok(Change::Nothing) };
        let new = match self {
            Self::Podman | Self::Crio => dropin::remove(self, entry, old)?,
            Self::Containerd => containerd::remove(entry, old)?,
            Self::Docker => docker::remove(entry, old)?,
        };
        Ok(match new {
            None => Change::Remove,
            Some(new) if new == old => Change::Nothing,
            Some(new) => Change::Write(new),
        })
    }

    fn check(self, entry: &Entry) -> Result<()> {
        let refuse = |cause: &str, next: &str| {
            let operation = format!("make runtime '{}' known to {}", entry.name, self.name());
            Err(Error::new(Kind::Unsupported, operation, cause).next(next))
        };
        if !entry.arguments.is_empty() && self != Self::Docker {
            let next = "write a script that calls regen with them, and name it with --binary";
            return refuse("it gives its runtimes no flags", next);
        }
        if entry.cgroups == CgroupDriver::Systemd && self != Self::Containerd {
            return refuse("it tells each runtime itself whether systemd makes the cgroups", "leave the flag out");
        }
        Ok(())
    }
}

/// The program's path as text, which all these files are.
fn binary(entry: &Entry) -> Result<&str> {
    entry.binary.to_str().ok_or_else(|| {
        let operation = format!("name {} in a configuration file", quote(&entry.binary));
        Error::new(Kind::Invalid, operation, "its path is not UTF-8")
    })
}

/// A string as TOML writes it.
fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Somebody else's file or entry is in the way.
fn foreign(engine: Engine, what: &str) -> Error {
    let operation = format!("make regen known to {}", engine.name());
    Error::new(Kind::Exists, operation, format!("{what} is there already, and is not of regen's writing"))
        .next("move it away, or choose another --name")
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn entry() -> Entry {
        Entry {
            name: "regen".parse().unwrap(),
            binary: "/usr/local/bin/regen".into(),
            arguments: Vec::new(),
            cgroups: CgroupDriver::Cgroupfs,
        }
    }

    const ALL: [Engine; 4] = [Engine::Podman, Engine::Containerd, Engine::Docker, Engine::Crio];

    #[test]
    fn adding_twice_changes_nothing_and_removing_leaves_nothing() {
        for engine in ALL {
            let Change::Write(text) = engine.add(&entry(), &Found::default()).unwrap() else { panic!("{engine:?}") };
            let found = Found { file: Some(text), main: None };
            assert_eq!(engine.add(&entry(), &found).unwrap(), Change::Nothing, "{engine:?}");
            assert_eq!(engine.remove(&entry(), &found).unwrap(), Change::Remove, "{engine:?}");
            assert_eq!(engine.remove(&entry(), &Found::default()).unwrap(), Change::Nothing, "{engine:?}");
        }
    }

    #[test]
    fn a_binary_that_moved_is_followed() {
        for engine in ALL {
            let Change::Write(text) = engine.add(&entry(), &Found::default()).unwrap() else { panic!("{engine:?}") };
            let moved = Entry { binary: "/opt/\"r\"/regen".into(), ..entry() };
            let Change::Write(new) = engine.add(&moved, &Found { file: Some(text), main: None }).unwrap() else {
                panic!("{engine:?}")
            };
            assert!(new.contains("/opt/") && !new.contains("/usr/local"), "{new}");
        }
    }

    #[test]
    fn only_docker_takes_flags_and_only_containerd_a_cgroup_driver() {
        let flags = Entry { arguments: vec!["--store".into(), "/s".into()], ..entry() };
        let systemd = Entry { cgroups: CgroupDriver::Systemd, ..entry() };
        for engine in ALL {
            let kind = |entry: &Entry| engine.add(entry, &Found::default()).map_err(|error| error.kind());
            assert_eq!(kind(&flags).is_ok(), engine == Engine::Docker, "{engine:?}");
            assert_eq!(kind(&systemd).is_ok(), engine == Engine::Containerd, "{engine:?}");
        }
    }
}
