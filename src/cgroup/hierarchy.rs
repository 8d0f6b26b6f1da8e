//! Which cgroup hierarchies there are, and where they are mounted.
//!
//! One look is enough on most machines: `/sys/fs/cgroup` is a cgroup2 file system, and that is all. Otherwise the mount
//! table is read: version 1 has a mount per set of controllers, a hybrid machine version 2 beside it, and either may
//! be mounted elsewhere, more than once, or with another root than `/` (inside a container without a cgroup namespace).

use std::path::{Path, PathBuf};

use rustix::fs::{FsWord, statfs};

use crate::error::{Error, Kind, Result};
use crate::sys::mount_table::{self, Mount};

/// Where the kernel shows cgroups, by convention.
pub(super) const ROOT: &str = "/sys/fs/cgroup";
/// linux/magic.h
const CGROUP2_SUPER_MAGIC: FsWord = 0x6367_7270;

/// What stands among the options of a version 1 mount and is a controller (cgroup-v1(7), "Controllers").
const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "blkio",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
];

/// One hierarchy and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// The controllers as `/proc/PID/cgroup` writes them: `cpu,cpuacct`, `name=systemd`; empty for version 2.
    pub controllers: String,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Which of its cgroups is at the mount point: `/`, or that of the container we are in.
    pub root: PathBuf,
}

/// The hierarchies of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// Version 2 alone.
    Unified(Hierarchy),
    /// Version 1: one or more. A version 2 mount beside them (hybrid) is left out: it has no controllers to speak of,
    /// and runc leaves processes where they are in it.
    Legacy(Vec<Hierarchy>),
}

impl Layout {
    /// The layout of this machine, as this process sees it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if no cgroup file system is mounted; those of reading the mount table.
    pub(super) fn find() -> Result<Self> {
        if is_unified(Path::new(ROOT)) {
            return Ok(Self::Unified(Hierarchy {
                controllers: String::new(),
                mount: PathBuf::from(ROOT),
                root: PathBuf::from("/"),
            }));
        }
        let table = mount_table::read()?;
        parse(&table).ok_or_else(|| {
            Error::new(Kind::Unsupported, "find the cgroup hierarchies", "no cgroup file system is mounted")
                .next("mount cgroup2 at /sys/fs/cgroup")
        })
    }

    /// Its hierarchies.
    pub(super) fn hierarchies(&self) -> &[Hierarchy] {
        match self {
            Self::Unified(one) => std::slice::from_ref(one),
            Self::Legacy(all) => all,
        }
    }
}

impl Hierarchy {
    /// The directory of a cgroup that `/proc/PID/cgroup` names; `None` if it is outside of what is mounted.
    pub(super) fn directory(&self, name: &Path) -> Option<PathBuf> {
        let below = name.strip_prefix(&self.root).ok()?;
        // Names with `..` are those of a process outside of our cgroup namespace.
        let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        plain.then(|| self.mount.join(below))
    }
}

/// Whether a cgroup2 file system is mounted here.
pub(super) fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC)
}

/// The layout that a mountinfo table shows; `None` if there is no cgroup mount in it.
fn parse(table: &str) -> Option<Layout> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in mount_table::parse(table).filter_map(of_mount) {
        let usual = hierarchy.mount.starts_with(ROOT);
        match found.iter_mut().find(|other| other.controllers == hierarchy.controllers) {
            None => found.push(hierarchy),
            // The same hierarchy again: the usual place wins, else the first, and of mounts on one point the last.
            Some(other) if usual && !other.mount.starts_with(ROOT) => *other = hierarchy,
            Some(other) if other.mount == hierarchy.mount => *other = hierarchy,
            Some(_) => {}
        }
    }
    let (unified, legacy): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.controllers.is_empty());
    // A hierarchy that only has a name counts no resources: beside version 2 it is an ornament.
    if legacy.iter().all(|one| one.controllers.starts_with("name=")) && !unified.is_empty() {
        return unified.into_iter().next().map(Layout::Unified);
    }
    (!legacy.is_empty()).then_some(Layout::Legacy(legacy))
}

/// The hierarchy that a mount shows, if it is one of cgroups.
fn of_mount(mount: Mount<'_>) -> Option<Hierarchy> {
    let controllers = match mount.kind {
        "cgroup2" => String::new(),
        "cgroup" => {
            let options = mount.options.split(',');
            let kept: Vec<&str> =
                options.filter(|word| CONTROLLERS.contains(word) || word.starts_with("name=")).collect();
            if kept.is_empty() {
                return None;
            }
            kept.join(",")
        }
        _ => return None,
    };
    Some(Hierarchy { controllers, mount: mount.point, root: mount.root })
}

/// The cgroup of a process in each hierarchy, from the text of `/proc/PID/cgroup`: (controllers, name).
pub(super) fn parse_membership(text: &str) -> Vec<(&str, &Path)> {
    let parse = |line| {
        let mut fields = str::splitn(line, 3, ':').skip(1);
        Some((fields.next()?, Path::new(fields.next()?)))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        26 25 0:23 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory\n\
        27 25 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        28 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:7 - cgroup cgroup rw,cpu,cpuacct\n\
        29 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n";

    fn controllers(layout: &Layout) -> Vec<&str> {
        layout.hierarchies().iter().map(|one| one.controllers.as_str()).collect()
    }

    #[test]
    fn a_hybrid_machine_is_one_of_version_1() {
        let layout = parse(HYBRID).unwrap();
        assert!(matches!(layout, Layout::Legacy(_)));
        assert_eq!(controllers(&layout), ["memory", "cpu,cpuacct", "name=systemd"]);
    }

    #[test]
    fn version_2_alone_may_be_anywhere() {
        let layout = parse("30 1 0:9 / /mnt/a\\040b rw - cgroup2 none rw\n").unwrap();
        let Layout::Unified(one) = &layout else { panic!("{layout:?}") };
        assert_eq!(one.mount, Path::new("/mnt/a b"));
        let beside = "1 0 0:1 / /a rw - cgroup none rw,name=systemd\n2 0 0:2 / /b rw - cgroup2 none rw\n";
        assert!(matches!(parse(beside), Some(Layout::Unified(_))));
        assert_eq!(parse("25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
    }

    #[test]
    fn a_hierarchy_that_is_mounted_twice_counts_once_and_in_the_usual_place() {
        let table = format!("24 1 0:23 / /mnt/memory rw - cgroup cgroup rw,memory\n{HYBRID}");
        let layout = parse(&table).unwrap();
        assert_eq!(controllers(&layout), ["memory", "cpu,cpuacct", "name=systemd"]);
        assert_eq!(layout.hierarchies()[0].mount, Path::new("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn names_in_proc_are_relative_to_the_root_of_the_mount() {
        let table = "26 25 0:23 /docker/a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let layout = parse(table).unwrap();
        let one = &layout.hierarchies()[0];
        assert_eq!(one.directory(Path::new("/docker/a/b")), Some(PathBuf::from("/sys/fs/cgroup/memory/b")));
        assert_eq!(one.directory(Path::new("/docker/a")), Some(PathBuf::from("/sys/fs/cgroup/memory")));
        assert_eq!(one.directory(Path::new("/other")), None);
        assert_eq!(one.directory(Path::new("/docker/a/../x")), None);
    }

    #[test]
    fn a_membership_has_controllers_and_a_name_that_may_contain_colons() {
        let parsed = parse_membership("9:name=systemd:/\n4:memory:/a:b\n0::/x\n");
        let name = Path::new;
        assert_eq!(parsed, [("name=systemd", name("/")), ("memory", name("/a:b")), ("", name("/x"))]);
    }

    #[test]
    fn this_machine_has_a_layout() {
        let layout = Layout::find().unwrap();
        assert!(layout.hierarchies().iter().all(|one| one.mount.join("cgroup.procs").exists()), "{layout:?}");
    }
}
