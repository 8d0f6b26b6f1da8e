//! What only the creator may do, before the first process exists.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;

use super::file_system;
use super::option::Source;
use super::plan::{Form, IdMap, Mount, Plan};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::mount::{Depth, set_id_map};
use crate::sys::user_namespace;

impl Plan {
    /// Opens the sources of bind mounts, and the root, which the first process may not reach or not map because it
    /// will be in a user namespace. To be called by the creator, before the clone; the descriptors are inherited.
    ///
    /// A creator without the rights, which is in a user namespace itself, leaves to the first process what that can do.
    ///
    /// # Errors
    /// A missing source, by its path; a file system whose owners cannot be mapped; a network namespace that is joined, and
    /// to be configured, but the host's.
    pub fn open_sources(&mut self) -> Result<()> {
        self.check_network()?;
        let word = self.inherited();
        if self.user_namespace {
            let operation = || format!("open the root file system {}", quote(&self.rootfs));
            let root = file_system::open_source(&self.rootfs, Depth::All, Source::Follow);
            self.root_tree = allowed(root).context(operation)?;
            if let Some(tree) = &self.root_tree {
                super::mount::propagate(tree, word).context(operation)?;
            }
        }
        let mut namespaces = HashMap::new();
        for mount in &mut self.mounts {
            let Form::Bind { source, .. } = &mount.form else { continue };
            if mount.tree.is_some() {
                continue;
            }
            let operation = format!("mount {} at {}", quote(source), quote(&mount.destination));
            if mount.id_map.is_some() || (self.user_namespace && mount.options.source != Source::CopySymlink) {
                let source = source.clone();
                let tree = take(mount, &source, &mut namespaces).context(|| operation.clone())?;
                if let Some(tree) = &tree {
                    super::mount::propagate(tree, word).context(|| operation)?;
                }
                mount.tree = tree;
            }
        }
        Ok(())
    }

    /// Has a mount that is attached nowhere yet take the place of the source of the bind mount at a destination; the last
    /// one there, which is the one that is seen.
    pub fn give(&mut self, destination: &Path, tree: OwnedFd) {
        let mut mounts = self.mounts.iter_mut().rev();
        let found = mounts.find(|mount| matches!(mount.form, Form::Bind { .. }) && mount.destination == destination);
        if let Some(mount) = found {
            mount.tree = Some(tree);
        }
    }

    /// The settings of a network namespace that somebody else uses are not the container's to make.
    fn check_network(&self) -> Result<()> {
        let Some(path) = &self.network else { return Ok(()) };
        let Some(setting) = self.sysctls.iter().find(|setting| setting.network) else { return Ok(()) };
        let operation = || format!("check sysctl '{}'", setting.name.escape_debug());
        let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).context(operation);
        if identity(path)? == identity(Path::new("/proc/self/ns/net"))? {
            return Err(Error::new(Kind::Invalid, operation(), "it is not allowed in the host's network namespace"));
        }
        Ok(())
    }
}

/// The source, mapped; None if only the first process may open it.
fn take(mount: &Mount, source: &Path, namespaces: &mut HashMap<IdMap, OwnedFd>) -> Result<Option<OwnedFd>> {
    let Some(map) = &mount.id_map else { return allowed(mount.open_source(source)) };
    let tree = mount.open_source(source)?;
    if !namespaces.contains_key(map) {
        namespaces.insert(map.clone(), open_namespace(map)?);
    }
    let depth = mount.options.id_map.unwrap_or(Depth::One);
    if let Some(namespace) = namespaces.get(map) {
        set_id_map(&tree, namespace, depth).context(|| "map its owners").map_err(|error| match error.errno() {
            Some(errno) if errno == Errno::INVAL.raw_os_error() => {
                error.next("use a file system that can do idmapped mounts, or leave the maps out")
            }
            _ => error,
        })?;
    }
    Ok(Some(tree))
}

fn open_namespace(map: &IdMap) -> Result<OwnedFd> {
    match map {
        IdMap::Ranges { uids, gids } => user_namespace::create(uids, gids),
        IdMap::Namespace(path) => {
            let operation = || format!("open user namespace {}", quote(path));
            File::open(path).map(OwnedFd::from).context(operation)
        }
    }
}

fn allowed(tree: Result<OwnedFd>) -> Result<Option<OwnedFd>> {
    match tree {
        Err(error) if error.errno() == Some(Errno::PERM.raw_os_error()) => Ok(None),
        result => result.map(Some),
    }
}
