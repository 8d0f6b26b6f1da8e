//! A mount of type cgroup: the container's view of its place in the host's hierarchies, whatever those are.
//!
//! Nothing is mounted anew. The host's directories are bound: a new mount of version 2 by a process in the initial
//! cgroup namespace would take away the options of the host's. What a container with a cgroup namespace sees of a bound
//! directory is the same, since names in that namespace begin at the container's own cgroup.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, mkdirat, openat, statfs, symlinkat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::file_system::{open_source, tmpfs};
use super::mask::empty_directory;
use super::mount::{Stage, attach};
use super::option::Source;
use super::plan::Mount;
use super::root::Make;
use crate::error::{Context, Kind, Result};
use crate::sys::mount::Depth;

/// Where hosts mount them.
const HOST: &str = "/sys/fs/cgroup";
/// f_type of cgroup version 2, from the kernel's magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Mounts the view.
///
/// # Errors
/// Those of the bind mounts.
pub(super) fn mount(stage: &mut Stage<'_>, mount: &Mount) -> Result<()> {
    let place = stage.place(mount, Make::Directory)?;
    let unified = statfs(HOST).is_ok_and(|found| found.f_type == CGROUP2_MAGIC);
    let tree = if unified { unified_tree(stage)? } else { view(stage, mount, &place)? };
    if unified {
        mount.change_attributes(&tree, MountAttrFlags::empty())?;
        return stage.put(mount, tree, &place);
    }
    // Already in its place and full.
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    if mount.options.this.set.contains(read_only) {
        crate::sys::mount::set_attributes(&tree, read_only, MountAttrFlags::empty(), Depth::One)
            .context(|| "make it read-only")?;
    }
    for word in &mount.options.propagation {
        super::mount::propagate(&tree, *word)?;
    }
    Ok(())
}

/// Version 2: the container's own cgroup if it has a namespace that begins there, else all of them.
fn unified_tree(stage: &Stage<'_>) -> Result<OwnedFd> {
    let plan = stage.plan;
    let own = plan.cgroups.iter().find(|hierarchy| hierarchy.controllers.is_empty());
    let source = match own {
        Some(own) if plan.cgroup_namespace => own.directory.as_path(),
        Some(_) | None => Path::new(HOST),
    };
    match open_source(source, Depth::One, Source::NoFollow) {
        // A container that could not be given a cgroup is shown none, rather than the host's.
        Err(error) if error.kind() == Kind::NotFound => empty_directory().context(|| "hide the host's"),
        result => result,
    }
}

/// Version 1, and both together: a directory for each hierarchy, and a link for each controller of one that has several.
fn view(stage: &Stage<'_>, mount: &Mount, place: &OwnedFd) -> Result<OwnedFd> {
    let attributes = mount.options.this.set.difference(MountAttrFlags::MOUNT_ATTR_RDONLY);
    let tree = tmpfs(&[("mode", "755")], attributes).context(|| "make a tmpfs")?;
    attach(&tree, place).context(|| "attach it")?;
    for hierarchy in &stage.plan.cgroups {
        let name = match hierarchy.controllers.as_str() {
            "" => "unified",
            controllers => controllers.strip_prefix("name=").unwrap_or(controllers),
        };
        let operation = || format!("mount hierarchy '{}'", name.escape_debug());
        let source = match open_source(&hierarchy.directory, Depth::One, Source::NoFollow) {
            Err(error) if error.kind() == Kind::NotFound => continue,
            result => result.context(operation)?,
        };
        super::mount::change_unlocked(&source, mount.options.this, Depth::One).context(operation)?;
        let point = directory(&tree, name).context(operation)?;
        attach(&source, &point).context(operation)?;
        for controller in name.split(',').filter(|controller| *controller != name) {
            match symlinkat(name, &tree, controller) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).context(operation),
            }
        }
    }
    Ok(tree)
}

fn directory(parent: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
