//! The file that a unix socket of a program has: in its container, where it is not the host's.
//!
//! Clients are on the host and connect to the host's file, which is the keeper's. The one in the container is there for
//! the program alone, which looks at it, changes its mode, renames it, removes it; nobody listens behind it once the
//! program's socket was replaced.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fstat, mknodat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::sys::fs::{by_descriptor, open_path};
use crate::sys::socket::{Address, Family, Socket, Transport};

/// A declared path, as a process sees it: a directory and a name in it.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    name: String,
}

/// What is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occupant {
    /// Nothing.
    None,
    /// The file of a socket behind which nobody is.
    DeadSocket,
    /// Something that is somebody's.
    Other,
}

impl Place {
    /// Where a process finds an absolute path; `None` if there is no such directory.
    pub(super) fn find(thread: i32, path: &Path) -> Option<Self> {
        let root = open_path(Path::new(&format!("/proc/{thread}/root"))).ok()?;
        let parent = path.parent()?.strip_prefix("/").ok()?;
        Self::below(&root, parent, path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Where a process finds a path that it gave itself.
    fn find_as_given(thread: i32, path: &Path) -> Option<Self> {
        if path.is_absolute() {
            return Self::find(thread, path);
        }
        let here = open_path(Path::new(&format!("/proc/{thread}/cwd"))).ok()?;
        Self::below(&here, path.parent()?, path, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
    }

    fn below(root: &File, parent: &Path, path: &Path, resolve: ResolveFlags) -> Option<Self> {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat2(root, parent, flags, Mode::empty(), resolve).ok()?;
        Some(Self { directory, name: path.file_name()?.to_str()?.to_owned() })
    }

    /// Whether a path that the process gave names this place.
    pub(super) fn is_named_by(&self, thread: i32, path: &Path) -> bool {
        Self::find_as_given(thread, path).is_some_and(|other| {
            let identity = |place: &Self| fstat(&place.directory).map(|status| (status.st_dev, status.st_ino)).ok();
            other.name == self.name && identity(&other).is_some() && identity(&other) == identity(self)
        })
    }

    /// Whether a path of ours names this place: the container has the host's directory.
    pub(super) fn is_ours(&self, path: &Path) -> bool {
        let Some(Ok(ours)) = path.parent().map(open_path) else { return false };
        let identity = |status: rustix::io::Result<Stat>| status.map(|status| (status.st_dev, status.st_ino)).ok();
        identity(fstat(&self.directory)).is_some() && identity(fstat(&self.directory)) == identity(fstat(&ours))
    }

    /// Whether the file of a bound socket is here now.
    pub(super) fn has(&self, file: &OwnedFd) -> bool {
        let (Ok(is), Ok(here)) = (fstat(file), self.status()) else { return false };
        (is.st_dev, is.st_ino) == (here.st_dev, here.st_ino)
    }

    fn status(&self) -> rustix::io::Result<Stat> {
        statat(&self.directory, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// What is here.
    pub(super) fn occupant(&self) -> Occupant {
        match self.status() {
            Ok(status) if FileType::from_raw_mode(status.st_mode) == FileType::Socket => match self.answers() {
                true => Occupant::Other,
                false => Occupant::DeadSocket,
            },
            Ok(_) => Occupant::Other,
            Err(_) => Occupant::None,
        }
    }

    /// Whether somebody has the socket whose file is here: only then the kernel says anything else than "refused".
    fn answers(&self) -> bool {
        let attempt = || {
            let socket = Socket::new(Family::Unix, Transport::Datagram)?;
            socket.set_nonblocking()?;
            socket.connect(&Address::Path(by_descriptor(&self.directory).join(&self.name)))
        };
        attempt().map_or_else(|error| error.errno() != Some(Errno::CONNREFUSED.raw_os_error()), |()| true)
    }

    /// Removes what is here.
    pub(super) fn clear(&self) -> Result<()> {
        unlinkat(&self.directory, self.name.as_str(), AtFlags::empty()).context(|| format!("remove '{}'", self.name))
    }

    /// Makes the file of a socket here, for a user and a group.
    pub(super) fn occupy(&self, mode: u32, (uid, gid): (Uid, Gid)) -> Result<()> {
        let operation = || format!("make the file of socket '{}'", self.name);
        let mode = Mode::from_raw_mode(mode);
        mknodat(&self.directory, self.name.as_str(), FileType::Socket, mode, 0).context(operation)?;
        chownat(&self.directory, self.name.as_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context(operation)
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}
