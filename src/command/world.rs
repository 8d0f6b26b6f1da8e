//! What the verbs work on: the directories and choices that the global flags name.

use std::path::{Path, PathBuf};

use crate::cgroup::Manager;
use crate::cli::{CgroupManager, Global, Rootless};
use crate::config::Config;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Name;
use crate::ops::request::{RingRequest, parse_depth};
use crate::ops::{self, Place};
use crate::runtime::StateRoot;
use crate::sys::user;
use crate::sys::user_namespace::outside;

/// The places and choices of one call.
#[derive(Debug)]
pub struct World {
    /// Where things are, and whose.
    pub place: Place,
    /// Who makes the cgroups.
    pub cgroups: Manager,
    /// The ring of a new container that names none.
    pub default_ring: Option<RingRequest>,
}

impl World {
    /// Reads the global flags. Nothing is created yet.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a cgroup manager that cannot be had.
    pub fn open(global: &Global) -> Result<Self> {
        Self::with_config(global, Config::load(global.config.as_deref())?)
    }

    /// Reads the global flags beside a configuration that was read already.
    ///
    /// # Errors
    /// As [`World::open`].
    pub fn with_config(global: &Global, config: Config) -> Result<Self> {
        let cgroups = match global.cgroup_manager {
            None if global.systemd_cgroup => Manager::Systemd,
            Some(CgroupManager::Systemd) => Manager::Systemd,
            None | Some(CgroupManager::Cgroupfs) => Manager::Cgroupfs,
            Some(CgroupManager::Disabled) => Manager::Disabled,
        };
        let rootless = is_rootless(global.rootless);
        let root = match &global.root {
            Some(root) => absolute(root)?,
            None => default_root(rootless, directory_variable("XDG_RUNTIME_DIR"))?,
        };
        let home = directory_variable("HOME").or_else(|| rootless.then(home_of_caller).flatten());
        let store = match &global.store {
            Some(store) => absolute(store)?,
            None => default_store(rootless, directory_variable("XDG_DATA_HOME"), home)?,
        };
        let place = Place {
            root: StateRoot::new(root),
            store,
            config,
            config_file: global.config.as_deref().map(absolute).transpose()?,
            owner: ops::caller()?,
        };
        let default_ring = ring_request(global.ring.as_deref(), global.depth.as_deref(), &place.owner)?;
        Ok(Self { place, cgroups, default_ring })
    }
}

/// Reads `--ring` with the `--depth` that goes with it.
pub(super) fn ring_request(ring: Option<&str>, depth: Option<&str>, owner: &Name) -> Result<Option<RingRequest>> {
    let Some(ring) = ring else { return Ok(None) };
    let mut request = RingRequest::parse(ring, owner)?;
    request.depth = depth.map(parse_depth).transpose()?;
    Ok(Some(request))
}

fn is_rootless(flag: Rootless) -> bool {
    match flag {
        Rootless::True => true,
        Rootless::False => false,
        Rootless::Auto => {
            let entered = std::env::var_os(super::rootless::MARK).is_some() && outside(0).is_some();
            entered || !nix::unistd::geteuid().is_root() || is_root_of_a_users_namespace()
        }
    }
}

/// podman calls its runtime as root of the user namespace of an ordinary user, with little more in its environment than
/// the directory for what runs. Root of a system container has none, or is called root.
fn is_root_of_a_users_namespace() -> bool {
    let named_root = std::env::var_os("USER").is_some_and(|user| user == "root");
    outside(0).is_some() && directory_variable("XDG_RUNTIME_DIR").is_some() && !named_root
}

/// The home directory of the user that this one is outside of the user namespace: engines do not always name it.
fn home_of_caller() -> Option<PathBuf> {
    let uid = nix::unistd::geteuid();
    let user = user::by_id(outside(uid.as_raw()).unwrap_or(uid.as_raw()));
    user.ok().flatten().map(|user| user.home).filter(|home| home.is_absolute())
}

fn default_root(rootless: bool, runtime_directory: Option<PathBuf>) -> Result<PathBuf> {
    if !rootless {
        return Ok(PathBuf::from("/run/regen"));
    }
    runtime_directory.map(|directory| directory.join("regen")).ok_or_else(|| {
        Error::new(Kind::Usage, "choose the state root", "XDG_RUNTIME_DIR is not set").next("give --root DIR")
    })
}

fn directory_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn default_store(rootless: bool, data: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    if !rootless {
        return Ok(PathBuf::from("/var/lib/regen"));
    }
    let data = data.or_else(|| home.map(|home| home.join(".local/share")));
    data.map(|directory| directory.join("regen")).ok_or_else(|| {
        Error::new(Kind::Usage, "choose the store", "neither XDG_DATA_HOME nor HOME is set").next("give --store DIR")
    })
}

/// A path that stays the same whatever the working directory becomes.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(|| format!("make {} absolute", quote(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_users_own_without_privileges() {
        assert_eq!(default_root(false, None).unwrap(), Path::new("/run/regen"));
        assert_eq!(default_root(true, Some("/run/user/7".into())).unwrap(), Path::new("/run/user/7/regen"));
        assert_eq!(default_root(true, None).unwrap_err().kind(), Kind::Usage);
    }
}
