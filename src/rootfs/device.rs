//! /dev: the device nodes that every container has, those of `linux.devices`, and the usual links.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount::attach;
use super::plan::{Form, Mount, normalize};
use super::root::{Links, Make, Root};
use crate::error::{Context, Error, Kind, Result, quote};

/// What every container has, by the specification ("Default Devices"): all of them 0666 and root's.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Symlinks: name in /dev, and where it leads.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// What is made in /dev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) nodes: Vec<Node>,
}

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Absolute in the container.
    pub(super) path: PathBuf,
    pub(super) kind: FileType,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The nodes that are to be made; None if /dev is bound from the host, which has its own.
///
/// # Errors
/// [`Kind::Invalid`] for a device that cannot exist.
pub(super) fn plan(given: &[LinuxDevice], mounts: &[Mount]) -> Result<Option<Devices>> {
    let bound = |mount: &Mount| mount.destination == Path::new("/dev") && matches!(mount.form, Form::Bind { .. });
    if mounts.iter().any(bound) {
        return Ok(None);
    }
    let given = given.iter().map(plan_node).collect::<Result<Vec<_>>>()?;
    let default = |(path, major, minor): (&str, u32, u32)| Node {
        path: PathBuf::from(path),
        kind: FileType::CharacterDevice,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let missing = |node: &Node| !given.iter().any(|other| other.path == node.path);
    let mut nodes: Vec<Node> = DEFAULT.into_iter().map(default).filter(missing).collect();
    // /dev/ptmx is always the link to the container's own.
    nodes.extend(given.iter().filter(|node| node.path != Path::new("/dev/ptmx")).cloned());
    Ok(Some(Devices { nodes }))
}

fn plan_node(device: &LinuxDevice) -> Result<Node> {
    let path = normalize(device.path());
    let operation = || format!("check device {}", quote(&path));
    let refuse = |cause: &str| Error::new(Kind::Invalid, operation(), cause);
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(refuse("'a' is no type of a node; use 'b', 'c', 'u' or 'p'")),
    };
    if path == Path::new("/") {
        return Err(refuse("it has no name"));
    }
    // As wide as the kernel's own: 12 bits and 20.
    let number = |value: i64, bits: u32| u32::try_from(value).ok().filter(|value| value >> bits == 0);
    let major = number(device.major(), 12).ok_or_else(|| refuse("its major number is out of range"))?;
    let minor = number(device.minor(), 20).ok_or_else(|| refuse("its minor number is out of range"))?;
    Ok(Node {
        kind,
        major,
        minor,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        path,
    })
}

impl Devices {
    /// Makes everything; the umask is 0.
    ///
    /// # Errors
    /// Those of mknod(2) other than that it is not allowed, and something else in a node's place.
    pub(super) fn make(&self, root: &Root) -> Result<()> {
        let mut parent: Option<(&Path, OwnedFd)> = None;
        for node in &self.nodes {
            let operation = || format!("make device {}", quote(&node.path));
            let (Some(directory), Some(name)) = (node.path.parent(), node.path.file_name()) else { continue };
            let open = match parent {
                Some((path, open)) if path == directory => open,
                Some(_) | None => root.make(directory, Make::Directory, Links::Refuse).context(operation)?,
            };
            node.make(&open, Path::new(name)).context(operation)?;
            parent = Some((directory, open));
        }
        make_links(root).context(|| "make the links in '/dev'")
    }
}

impl Node {
    fn number(&self) -> u64 {
        makedev(self.major, self.minor)
    }

    /// Whether this open file is the node.
    pub(super) fn is(&self, file: impl AsFd) -> Result<bool> {
        let found = statat(file, "", AtFlags::EMPTY_PATH).context(|| "look at it")?;
        let same_kind = FileType::from_raw_mode(found.st_mode) == self.kind;
        Ok(same_kind && (self.kind == FileType::Fifo || found.st_rdev == self.number()))
    }

    fn make(&self, directory: &OwnedFd, name: &Path) -> Result<()> {
        let mode = Mode::from_raw_mode(self.mode);
        match mknodat(directory, name, self.kind, mode, self.number()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return self.check(directory, name),
            // In a user namespace, or where the host says so.
            Err(Errno::PERM | Errno::ACCESS) => return self.bind(directory, name),
            Err(errno) => return Err(errno).context(|| "mknod"),
        }
        let owner = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if (self.uid, self.gid) != (0, 0) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(directory, name, Some(owner.0), Some(owner.1), flags).context(|| "chown")?;
        }
        Ok(())
    }

    /// An image may bring the node along. Anything else is not taken for it, and not removed either: it may be a
    /// volume's.
    fn check(&self, directory: &OwnedFd, name: &Path) -> Result<()> {
        let found = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open what is there")?;
        if self.is(&found)? {
            return Ok(());
        }
        let cause = "something else is in its place";
        Err(Error::new(Kind::Invalid, "look at what is there", cause)
            .next("mount a tmpfs at '/dev', or remove it from the image"))
    }

    /// Puts the host's node there, which has to be the same device.
    fn bind(&self, directory: &OwnedFd, name: &Path) -> Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let host = open_tree(CWD, &self.path, flags).context(|| "open the host's")?;
        if !self.is(&host)? {
            return Err(Error::new(Kind::Invalid, "look at the host's", "it is another device"));
        }
        let point = super::root::make_file(directory, name).context(|| "make a file to bind it to")?;
        attach(&host, &point).context(|| "bind the host's")
    }
}

/// Makes the links. /dev/ptmx always leads to the container's own terminals; of the others an image's own are kept.
fn make_links(root: &Root) -> Result<()> {
    let dev = root.make(Path::new("/dev"), Make::Directory, Links::Refuse)?;
    match symlinkat("pts/ptmx", &dev, "ptmx") {
        Err(Errno::EXIST) => {
            unlinkat(&dev, "ptmx", AtFlags::empty()).context(|| "remove 'ptmx'")?;
            symlinkat("pts/ptmx", &dev, "ptmx").context(|| "link 'ptmx'")?;
        }
        result => result.context(|| "link 'ptmx'")?,
    }
    let kcore = statat(CWD, "/proc/kcore", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let core = kcore.then_some(("core", "/proc/kcore"));
    for (name, target) in LINKS.into_iter().chain(core) {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| format!("link '{name}'")),
        }
    }
    Ok(())
}
