//! Making mounts that are attached nowhere: of a file system, or of a part of what is mounted.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use super::option::{Options, Source};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::by_descriptor;
use crate::sys::mount::{Depth, set_attributes};

/// The kernel copies at most this much of a parameter's text, its final NUL included.
const VALUE_MAX: usize = 256;

/// File systems of which there is one for all mounts: to be read-only is the mount's, not theirs.
const SHARED: [&str; 7] = ["cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs"];

/// What came of making a file system's mount.
#[derive(Debug)]
pub(super) enum Made {
    /// A mount that is attached nowhere.
    Detached(OwnedFd),
    /// It could only be made by mount(2), and is in its place already.
    Attached,
}

/// Why the newer calls gave no mount.
enum Refusal {
    System { errno: Errno, log: Vec<String> },
    TooLong,
}

impl Refusal {
    fn new(errno: Errno, context: Option<&OwnedFd>) -> Self {
        Self::System { errno, log: context.map(read_log).unwrap_or_default() }
    }
}

/// Makes a mount of a new file system for `place`.
///
/// # Errors
/// What the kernel has against the type or an option, in its own words where it has some.
pub(super) fn make(kind: &str, source: &str, options: &Options, place: &OwnedFd) -> Result<Made> {
    match make_detached(kind, source, options) {
        Ok(mount) => Ok(Made::Detached(mount)),
        // Options that are only known to the older call, values that are too long for the newer one, and kernels
        // without it. If that does not help either, the first refusal tells more.
        Err(Refusal::System { errno: errno @ (Errno::INVAL | Errno::NOSYS), log }) => {
            make_attached(kind, source, options, place).map(|()| Made::Attached).map_err(|_| explain(errno, &log))
        }
        Err(Refusal::System { errno, log }) => Err(explain(errno, &log)),
        Err(Refusal::TooLong) => {
            make_attached(kind, source, options, place).context(|| "mount")?;
            Ok(Made::Attached)
        }
    }
}

fn make_detached(kind: &str, source: &str, options: &Options) -> Result<OwnedFd, Refusal> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| Refusal::new(errno, None))?;
    let refused = |errno| Refusal::new(errno, Some(&context));
    let parameters = split(kind, &options.data).ok_or(Refusal::TooLong)?;
    if source.len() >= VALUE_MAX {
        return Err(Refusal::TooLong);
    }
    fsconfig_set_string(&context, "source", source).map_err(refused)?;
    let read_only = options.this.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) && !SHARED.contains(&kind);
    for name in options.superblock.iter().map(|(name, _)| *name).chain(read_only.then_some("ro")) {
        match fsconfig_set_flag(&context, name) {
            // Nothing to count versions of.
            Err(Errno::INVAL) if name == "iversion" => {}
            result => result.map_err(refused)?,
        }
    }
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, key),
        }
        .map_err(refused)?;
    }
    fsconfig_create(&context).map_err(refused)?;
    let mut attributes = options.this.set | options.all.set;
    if kind == "tmpfs" {
        // Something may have to be put into it first.
        attributes = attributes.difference(MountAttrFlags::MOUNT_ATTR_RDONLY);
    }
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(refused)
}

/// Keys with their values; None if one does not fit, or if only the file system itself knows where one ends.
fn split<'a>(kind: &str, data: &'a [String]) -> Option<Vec<(&'a str, Option<&'a str>)>> {
    let mut parameters = Vec::new();
    for word in data {
        if word.contains('\\') || (kind == "overlay" && word.contains(',')) {
            return None;
        }
        let mut quoted = false;
        let outside = |character: char| {
            quoted ^= character == '"';
            character == ',' && !quoted
        };
        for part in word.split(outside).filter(|part| !part.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value.trim_matches('"'))),
                None => (part, None),
            };
            if value.unwrap_or_default().len() >= VALUE_MAX || key.len() >= VALUE_MAX {
                return None;
            }
            parameters.push((key, value));
        }
    }
    Some(parameters)
}

/// By mount(2), onto the descriptor's own name.
fn make_attached(kind: &str, source: &str, options: &Options, place: &OwnedFd) -> Result<(), Errno> {
    let mut flags = options.flags();
    if kind == "tmpfs" {
        flags = flags.difference(rustix::mount::MountFlags::RDONLY);
    }
    let data = CString::new(options.data.join(",")).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, by_descriptor(place), kind, flags, data.as_c_str())
}

fn explain(errno: Errno, log: &[String]) -> Error {
    let error = Err::<(), _>(errno).context(|| "make the file system");
    match error {
        Err(error) if log.is_empty() => error,
        Err(error) => error.next(format!("the kernel says: {}", log.join("; "))),
        Ok(()) => Error::new(Kind::System, "make the file system", "no error"),
    }
}

/// What the kernel says about a failed fsconfig(2): messages like `e tmpfs: …`, one per read.
fn read_log(context: &OwnedFd) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        messages.push(text.trim().trim_start_matches("e ").trim_start_matches("w ").to_owned());
        if messages.len() == 8 {
            break;
        }
    }
    messages
}

/// A new tmpfs, attached nowhere, with these parameters.
pub(super) fn tmpfs(parameters: &[(&str, &str)], attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    for (key, value) in parameters {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A procfs of the caller's namespaces that is attached nowhere. Where a user namespace may have none of its own because
/// the host hides parts of it, a view of /proc as it is, which must be one.
///
/// # Errors
/// Those of both.
pub(super) fn detached_proc() -> Result<OwnedFd> {
    let new = || {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    match new() {
        Err(Errno::PERM) => {
            let tree = open_source(Path::new("/proc"), Depth::One, Source::NoFollow)?;
            super::mount::check_is_proc(&tree)?;
            // Without what is mounted below it; if that makes it read-only, writing says so.
            let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
            match set_attributes(&tree, MountAttrFlags::empty(), read_only, Depth::One) {
                Ok(()) | Err(_) => Ok(tree),
            }
        }
        result => result.context(|| "make a procfs"),
    }
}

/// A detached copy of the mount at a path of the host, or of the part of a mount that begins there.
///
/// # Errors
/// Those of open_tree(2), with the path.
pub(super) fn open_source(source: &Path, depth: Depth, links: Source) -> Result<OwnedFd> {
    let links = match links {
        Source::Follow | Source::CopySymlink => OpenTreeFlags::empty(),
        Source::NoFollow => OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    };
    open_tree(CWD, source, flags(depth) | links).context(|| format!("open {}", quote(source)))
}

/// A detached copy of the mount at an open place. The place must be in the caller's mount namespace.
pub(super) fn clone_tree(place: impl AsFd, depth: Depth) -> rustix::io::Result<OwnedFd> {
    open_tree(place, "", flags(depth) | OpenTreeFlags::AT_EMPTY_PATH)
}

fn flags(depth: Depth) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match depth {
        Depth::One => flags,
        Depth::All => flags | OpenTreeFlags::AT_RECURSIVE,
    }
}
