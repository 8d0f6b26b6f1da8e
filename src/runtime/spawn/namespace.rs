//! Which namespaces a container gets: new ones, and those of others.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::namespace::{self, NEW_TIME};

/// What `linux.namespaces` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespaces {
    /// Those to be made. A mount namespace is always among them unless one is joined: the container's mounts would
    /// otherwise be the host's.
    pub new: CloneFlags,
    /// Those to be joined.
    pub joined: Vec<(CloneFlags, PathBuf)>,
    /// What is written to `timens_offsets` of a new time namespace.
    pub offsets: String,
}

/// A namespace of somebody else's, open.
#[derive(Debug)]
pub(super) struct Open {
    kind: CloneFlags,
    path: PathBuf,
    file: File,
}

/// Decides.
///
/// # Errors
/// [`Kind::Invalid`] for a type that is listed twice, or offsets without a new time namespace.
pub(super) fn plan(linux: Option<&Linux>) -> Result<Namespaces> {
    let invalid = |what: &str, cause: &str| Err(Error::new(Kind::Invalid, format!("check {what}"), cause));
    let mut new = CloneFlags::empty();
    let mut joined: Vec<(CloneFlags, PathBuf)> = Vec::new();
    for namespace in linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten() {
        let kind = flag(namespace.typ());
        if new.contains(kind) || joined.iter().any(|(other, _)| *other == kind) {
            return invalid("linux.namespaces", &format!("'{}' is listed twice", word(namespace.typ())));
        }
        match namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
            None => new |= kind,
            Some(path) => joined.push((kind, path.to_owned())),
        }
    }
    if !joined.iter().any(|(kind, _)| *kind == CloneFlags::CLONE_NEWNS) {
        new |= CloneFlags::CLONE_NEWNS;
    }
    let offsets = offsets(linux)?;
    if !offsets.is_empty() && !new.contains(NEW_TIME) {
        return invalid("linux.timeOffsets", "there is no new time namespace to set them in");
    }
    Ok(Namespaces { new, joined, offsets })
}

/// time_namespaces(7): `CLOCK SECONDS NANOSECONDS`, a line each.
fn offsets(linux: Option<&Linux>) -> Result<String> {
    let Some(offsets) = linux.and_then(|linux| linux.time_offsets().as_ref()) else { return Ok(String::new()) };
    let mut lines = Vec::new();
    for (clock, offset) in offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            let cause = format!("'{}' is neither 'monotonic' nor 'boottime'", clock.escape_debug());
            return Err(Error::new(Kind::Invalid, "check linux.timeOffsets", cause));
        }
        lines.push(format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)));
    }
    lines.sort();
    Ok(lines.concat())
}

impl Namespaces {
    /// Whether the container has one of this kind that is not its creator's.
    pub(super) fn has(&self, kind: CloneFlags) -> bool {
        self.new.contains(kind) || self.joined.iter().any(|(other, _)| *other == kind)
    }

    /// Whether a process between creator and container is needed: what is joined for children only (pid), has to be
    /// set before the first process enters (time), or takes away rights that the creator still needs (user).
    pub(super) fn need_intermediate(&self) -> bool {
        let taking = |kind: &CloneFlags| matches!(*kind, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID);
        self.new.contains(NEW_TIME) || self.joined.iter().any(|(kind, _)| taking(kind))
    }

    /// Those that the container's process is born with. A cgroup namespace shows as its root where its maker is, so
    /// it is made later; a time namespace is the intermediate's, and with it a user namespace.
    pub(super) fn at_birth(&self) -> CloneFlags {
        let mut flags = self.new - CloneFlags::CLONE_NEWCGROUP - NEW_TIME;
        if self.need_intermediate() {
            flags -= CloneFlags::CLONE_NEWUSER;
        }
        flags
    }

    /// Opens those to be joined.
    ///
    /// # Errors
    /// As [`namespace::open`].
    pub(super) fn open(&self) -> Result<Vec<Open>> {
        let open = |(kind, path): &(CloneFlags, PathBuf)| {
            let file = namespace::open(path, *kind)?;
            Ok(Open { kind: *kind, path: path.clone(), file })
        };
        self.joined.iter().map(open).collect()
    }
}

/// Joins namespaces: what the caller may join as it is, then the user namespace, then what only its owner may join.
///
/// # Errors
/// Those of setns(2).
pub(super) fn join(namespaces: &[Open]) -> Result<()> {
    let user = |open: &&Open| open.kind == CloneFlags::CLONE_NEWUSER;
    let mut later = Vec::new();
    for open in namespaces.iter().filter(|open| !user(open)) {
        match setns(&open.file, open.kind) {
            Ok(()) => {}
            Err(Errno::EPERM) => later.push(open),
            Err(errno) => return Err(errno).context(|| describe(open)),
        }
    }
    for open in namespaces.iter().filter(user).chain(later) {
        match setns(&open.file, open.kind) {
            Ok(()) => {}
            // The kernel lets nobody join the user namespace that it is in.
            Err(Errno::EINVAL) if user(&open) && is_own(&open.path) => {}
            Err(errno) => return Err(errno).context(|| describe(open)),
        }
    }
    Ok(())
}

fn is_own(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    id(path).is_some_and(|theirs| Some(theirs) == id(Path::new("/proc/self/ns/user")))
}

fn describe(open: &Open) -> String {
    format!("join namespace {}", crate::error::quote(&open.path))
}

/// clone(2)'s flag for a type.
pub(super) fn flag(kind: LinuxNamespaceType) -> CloneFlags {
    match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => NEW_TIME,
    }
}

fn word(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan_of(linux: Value) -> Result<Namespaces> {
        plan(Some(&serde_json::from_value(linux).unwrap()))
    }

    fn plan_list(list: Value) -> Result<Namespaces> {
        plan_of(json!({"namespaces": list}))
    }

    #[test]
    fn without_a_word_about_namespaces_there_is_one_for_mounts() {
        assert_eq!(plan(None).unwrap().new, CloneFlags::CLONE_NEWNS);
        assert_eq!(plan_of(json!({})).unwrap().new & CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWNS);
        let joined = plan_list(json!([{"type": "mount", "path": "/m"}])).unwrap();
        assert_eq!((joined.new, joined.joined.len()), (CloneFlags::empty(), 1));
    }

    #[test]
    fn an_intermediate_is_there_only_for_what_needs_one() {
        let needs = |list| plan_list(list).unwrap().need_intermediate();
        assert!(!needs(json!([{"type": "user"}, {"type": "pid"}, {"type": "network", "path": "/n"}])));
        assert!(needs(json!([{"type": "user", "path": "/u"}])));
        assert!(needs(json!([{"type": "pid", "path": "/p"}])));
        assert!(needs(json!([{"type": "time"}])));
    }

    #[test]
    fn cgroup_and_time_namespaces_are_not_made_at_birth() {
        let namespaces = plan_list(json!([{"type": "cgroup"}, {"type": "time"}, {"type": "user"}])).unwrap();
        assert_eq!(namespaces.at_birth(), CloneFlags::CLONE_NEWNS);
        let namespaces = plan_list(json!([{"type": "cgroup"}, {"type": "user"}])).unwrap();
        assert_eq!(namespaces.at_birth(), CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER);
    }

    #[test]
    fn a_type_that_is_listed_twice_is_refused() {
        for twice in
            [json!([{"type": "pid"}, {"type": "pid"}]), json!([{"type": "pid", "path": "/p"}, {"type": "pid"}])]
        {
            let error = plan_list(twice).unwrap_err();
            assert!(error.to_string().contains("'pid' is listed twice"), "{error}");
        }
    }

    #[test]
    fn offsets_belong_to_a_new_time_namespace() {
        let offsets = json!({"monotonic": {"secs": 5, "nanosecs": 7}, "boottime": {"secs": -1}});
        let planned = plan_of(json!({"namespaces": [{"type": "time"}], "timeOffsets": offsets})).unwrap();
        assert_eq!(planned.offsets, "boottime -1 0\nmonotonic 5 7\n");
        assert!(plan_of(json!({"namespaces": [], "timeOffsets": offsets})).is_err());
        let wrong = json!({"namespaces": [{"type": "time"}], "timeOffsets": {"realtime": {"secs": 1}}});
        assert!(plan_of(wrong).is_err());
    }
}
