//! What is between a new mount namespace and a process whose root is the container's.
//!
//! ```text
//! creator         plan(spec, around)   pure: every word of every mount, devices, paths, settings
//!                 Plan::open_sources   what needs the creator's rights: sources of bind mounts, maps of owners
//! ── clone ──
//! first process   Plan::mount          propagation, mounts, devices, links        ──> Mounted
//!   (hooks)       Mounted::enter       pivot_root, the working directory          ──> Entered
//!   (console)     Entered::finish      console, settings, what is read-only, what is masked
//! ```
//!
//! Names inside the container are the image's, and a volume may be shared with a hostile container that swaps
//! directories for symlinks all the time. So no name is ever looked up twice, and none by the host's eyes: each is
//! resolved once, inside the root, by the kernel (openat2 with RESOLVE_IN_ROOT) or component by component without
//! following anything, and what follows is done to the descriptor. Mounts are made detached and attached to a descriptor.
//! What must be the kernel's own (/proc, /sys, /dev) is reached through no symlink at all.

mod cgroup;
mod copy;
mod device;
mod enter;
mod file_system;
mod mask;
mod mount;
pub mod option;
mod place;
mod plan;
mod root;
mod source;
mod sysctl;

use std::path::{Path, PathBuf};

pub use enter::Entered;
pub use mount::Mounted;
pub use option::words as mount_options;
pub use place::make_places;
pub use plan::{Plan, plan};

/// What the specification does not say.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The bundle, absolute: relative sources of bind mounts start there.
    pub bundle: &'a Path,
    /// The root file system, absolute, as the creator sees it. It may be a directory or a mount.
    pub rootfs: &'a Path,
    /// The container's cgroups, for a mount of type cgroup. None where it has none.
    pub cgroups: &'a [Hierarchy],
    /// How the root is entered.
    pub pivot: Pivot,
}

/// A container's place in one cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// As in /proc/self/cgroup: `cpu,cpuacct`, `name=systemd`, and nothing for version 2.
    pub controllers: String,
    /// The directory of the container's cgroup on the host, absolute: `/sys/fs/cgroup/cpu,cpuacct/box`.
    pub directory: PathBuf,
}

/// How the container's root becomes `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pivot {
    /// pivot_root(2): the host's mounts are gone afterwards.
    #[default]
    Pivot,
    /// The mount is moved over `/` and entered by chroot(2), for a host whose own root is the initial ramdisk, which
    /// cannot be pivoted. Weaker.
    Move,
}
