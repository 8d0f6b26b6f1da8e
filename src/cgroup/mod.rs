//! A container's cgroups: made, entered, limited, counted, frozen, emptied, removed.
//!
//! ```text
//! plan     which directories they will be; nothing is made                               pure but for a look at the mounts
//! create   the directories, their controllers, their limits: before any process exists  ──> Entrance
//! Entrance CLONE_INTO_CGROUP on version 2; on version 1 the new process itself goes in
//! admit    systemd alone: it makes a cgroup only around a process that exists
//! apply, freeze, thaw, stats, processes, kill_all                                        while the container lives
//! remove                                                                                 once it is empty
//! ```
//!
//! On a unified hierarchy a container has one directory, on version 1 one per hierarchy that is mounted.
//!
//! **How a process goes in.** Writing a pid to `cgroup.procs` takes a lock of the whole machine, which first waits for
//! a grace period of RCU: 6 to 11 ms here. A new process that writes `0` to `tasks` moves only itself, for which the
//! kernel takes no such lock (cgroup_procs_write_start): 60 µs for nine hierarchies. The descriptors are opened before
//! it exists, so it needs neither the path nor the right.

mod device;
mod freeze;
mod hierarchy;
mod limit;
mod make;
mod member;
pub mod stat;
mod systemd;

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, quote};
use crate::ids::ContainerId;
use hierarchy::Layout;

pub use freeze::thaw_at;
pub use make::{Creation, Entrance, Refusal};
pub use stat::Stats;

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// We do, as directories.
    Cgroupfs,
    /// systemd does: a transient scope, whose cgroup is delegated to us.
    Systemd,
    /// Nobody does: the container stays where its creator is.
    Disabled,
}

impl Manager {
    /// Its word, where it is written down: `cgroupfs`, `systemd`, `disabled`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
            Self::Disabled => "disabled",
        }
    }
}

impl FromStr for Manager {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let all = [Self::Cgroupfs, Self::Systemd, Self::Disabled];
        all.into_iter().find(|manager| manager.word() == word).ok_or_else(|| {
            Error::new(Kind::Invalid, "read who makes the cgroups", format!("'{}'", word.escape_debug()))
        })
    }
}

/// What a container's place in the hierarchies is decided from.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The container's id.
    pub id: &'a ContainerId,
    /// `linux.cgroupsPath`: absolute, below the mount points; relative, for the host's root the same, for everybody else
    /// below our own cgroup (on version 2 below the parent of that, which may have controllers); for systemd
    /// `SLICE:PREFIX:NAME`. None means `ID`, with systemd `:regen:ID`.
    pub path: Option<&'a Path>,
    /// Who makes them.
    pub manager: Manager,
}

/// A container's place in the hierarchies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// The path below each mount point, absolute; or `slice:prefix:name`, if systemd makes it.
    pub path: PathBuf,
    /// Who makes it.
    pub manager: Manager,
    /// Its directories: planned ones until [`Cgroup::create`], then those that were made. Empty with systemd until
    /// [`Cgroup::admit`], and for a container that has no cgroup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<Directory>,
}

/// A container's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The controllers as `/proc/PID/cgroup` writes them: `cpu,cpuacct`, `name=systemd`; empty for version 2.
    pub controllers: String,
    /// Where it is, absolute.
    pub path: PathBuf,
}

/// Decides where a container's cgroups will be. Nothing is made.
///
/// # Errors
/// [`Kind::Invalid`] for the root of a hierarchy, [`Kind::Unsupported`] if no cgroup file system is mounted.
pub fn plan(request: Request<'_>) -> Result<Cgroup> {
    let path = request.path.filter(|path| !path.as_os_str().is_empty());
    let manager = request.manager;
    match manager {
        Manager::Disabled => Ok(Cgroup { path: PathBuf::new(), manager, directories: Vec::new() }),
        Manager::Systemd => {
            let path = path.map_or_else(|| PathBuf::from(format!(":regen:{}", request.id)), Path::to_owned);
            Ok(Cgroup { path: manager.check(&path)?, manager, directories: Vec::new() })
        }
        Manager::Cgroupfs => {
            let path = path.unwrap_or(Path::new(request.id.as_str()));
            // What is delegated to a user is around them, hardly ever at the top.
            let own = match Refusal::of_caller() {
                Refusal::Skips if !path.is_absolute() => make::own_membership()?,
                Refusal::Skips | Refusal::Fails => String::new(),
            };
            let directories = place(&Layout::find()?, path, &own)?;
            let path = if own.is_empty() { Path::new("/").join(path) } else { path.to_owned() };
            Ok(Cgroup { path, manager, directories })
        }
    }
}

/// The directories of a path in every hierarchy: below the mount points, or below where we are ourselves, if that is
/// given as the text of `/proc/self/cgroup`.
fn place(layout: &Layout, path: &Path, own: &str) -> Result<Vec<Directory>> {
    let below: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    if below.as_os_str().is_empty() {
        let operation = format!("use cgroup {}", quote(path));
        return Err(Error::new(Kind::Invalid, operation, "it is the root of the hierarchy"));
    }
    let own = hierarchy::parse_membership(own);
    let parent = |one: &hierarchy::Hierarchy| -> PathBuf {
        let name = own.iter().find(|(controllers, _)| *controllers == one.controllers).map(|(_, name)| *name);
        // Our own cgroup of version 2 has us in it, so it can have no controllers for its children.
        let name = if one.controllers.is_empty() { name.and_then(Path::parent) } else { name };
        name.and_then(|name| one.directory(name)).unwrap_or_else(|| one.mount.clone())
    };
    let directory =
        |one: &hierarchy::Hierarchy| Directory { controllers: one.controllers.clone(), path: parent(one).join(&below) };
    Ok(layout.hierarchies().iter().map(directory).collect())
}

impl Cgroup {
    /// Its directory for a controller of version 1, or its only one on version 2.
    #[must_use]
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        let has = |directory: &&Directory| {
            directory.is_unified() || directory.controllers.split(',').any(|word| word == controller)
        };
        self.directories.iter().find(has).map(|directory| directory.path.as_path())
    }

    /// Its directory on version 2; none on version 1.
    #[must_use]
    pub fn unified(&self) -> Option<&Path> {
        self.directories.iter().find(|directory| directory.is_unified()).map(|directory| directory.path.as_path())
    }

    /// Its directories that exist, in every hierarchy.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| &directory.path).filter(|path| path.is_dir()).cloned().collect()
    }
}

/// Whether we are in a user namespace of our own, where the kernel grants neither devices nor their rules.
fn in_user_namespace() -> bool {
    !crate::sys::user_namespace::is_initial()
}

impl Directory {
    /// Whether it is one of version 2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hierarchy::Hierarchy;

    fn layout() -> Layout {
        let one = |controllers: &str| Hierarchy {
            controllers: controllers.into(),
            mount: Path::new("/sys/fs/cgroup").join(controllers),
            root: "/".into(),
        };
        Layout::Legacy(vec![one("cpu"), one("pids")])
    }

    #[test]
    fn a_path_cannot_climb_out_of_its_mount_nor_be_its_root() {
        let placed = place(&layout(), Path::new("/../../a/./b"), "").unwrap();
        let paths: Vec<_> = placed.iter().map(|directory| directory.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/sys/fs/cgroup/cpu/a/b", "/sys/fs/cgroup/pids/a/b"]);
        for root in ["/", "", "/..", "/./"] {
            assert_eq!(place(&layout(), Path::new(root), "").unwrap_err().kind(), Kind::Invalid, "{root:?}");
        }
    }

    #[test]
    fn a_users_path_is_below_what_may_be_delegated_to_them() {
        let paths = |layout: &Layout, own: &str| -> Vec<PathBuf> {
            place(layout, Path::new("c1"), own).unwrap().into_iter().map(|directory| directory.path).collect()
        };
        let own = "2:pids:/user/a\n1:cpu:/\n0::/user.slice/app.slice/x.scope\n";
        let [cpu, pids] = ["/sys/fs/cgroup/cpu/c1", "/sys/fs/cgroup/pids/user/a/c1"].map(PathBuf::from);
        assert_eq!(paths(&layout(), own), [cpu, pids]);
        let unified = Hierarchy { controllers: String::new(), mount: "/sys/fs/cgroup".into(), root: "/".into() };
        let expected = PathBuf::from("/sys/fs/cgroup/user.slice/app.slice/c1");
        assert_eq!(paths(&Layout::Unified(unified), own), [expected]);
    }

    #[test]
    fn a_directory_is_found_by_its_controller() {
        let id: ContainerId = "c1".parse().unwrap();
        let mut cgroup = plan(Request { id: &id, path: None, manager: Manager::Disabled }).unwrap();
        assert!(cgroup.paths().is_empty());
        cgroup.directories = vec![Directory { controllers: "cpu,cpuacct".into(), path: "/x".into() }];
        assert_eq!(cgroup.directory("cpuacct"), Some(Path::new("/x")));
        assert_eq!(cgroup.directory("memory"), None);
        assert_eq!(cgroup.unified(), None);
        cgroup.directories = vec![Directory { controllers: String::new(), path: "/y".into() }];
        assert_eq!(cgroup.directory("memory"), Some(Path::new("/y")));
        assert_eq!(cgroup.unified(), Some(Path::new("/y")));
    }
}
