//! The root of the container, as a descriptor: every name inside it is resolved from here, and never leads out.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat, statat};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result, quote};

/// As many symlinks as the kernel follows in one path.
const LINKS_MAX: usize = 40;

/// How often a lookup is tried again that a rename elsewhere disturbed.
const RETRIES: usize = 64;

/// What a symlink on the way means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// It leads where it leads inside the root.
    Follow,
    /// It is an error: the place must be where its name says.
    Refuse,
}

/// What is made at the end of a path where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    Directory,
    /// An empty file, in a directory that is made if need be.
    File,
}

/// An open directory that is, or will be, the container's `/`.
#[derive(Debug)]
pub(super) struct Root(pub(super) OwnedFd);

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

impl Root {
    /// Opens a name as a place only (O_PATH): what is mounted there last is what is opened.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR; ELOOP for a symlink that is not wanted.
    pub(super) fn open(&self, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
        let links = match links {
            Links::Follow => ResolveFlags::empty(),
            Links::Refuse => ResolveFlags::NO_SYMLINKS,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | links;
        for _ in 0..RETRIES {
            match openat2(&self.0, path, PATH, Mode::empty(), resolve) {
                // The kernel gives up if something was renamed while it went through a `..`.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a name, after making what is missing: directories on the way, and at the end what `make` says. Where a
    /// dangling symlink is to be followed, it is what it points to that is made, inside the root.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a symlink that is not wanted and for a way that leads through a file; those of mkdir(2)
    /// and open(2).
    pub(super) fn make(&self, path: &Path, make: Make, links: Links) -> Result<OwnedFd> {
        let operation = || format!("find {} in the container", quote(path));
        match self.open(path, links) {
            Ok(found) => Ok(found),
            Err(Errno::NOENT) => Walk::new(self, path, links).go(make).context(operation),
            Err(Errno::LOOP) if links == Links::Refuse => Err(refuse_link(operation())),
            Err(errno) => Err(errno).context(operation),
        }
    }
}

fn refuse_link(operation: String) -> Error {
    Error::new(Kind::Invalid, operation, "it is reached through a symlink of the image").next("remove the symlink")
}

/// Opens the file `name` in a directory as a place to mount on, and makes it if it is missing.
///
/// # Errors
/// ELOOP if it is a symlink; those of open(2).
pub(super) fn make_file(directory: impl AsFd, name: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    match openat(directory.as_fd(), name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let found = openat(directory, name, PATH | OFlags::NOFOLLOW, Mode::empty())?;
    match file_type(&found)? {
        FileType::Symlink => Err(Errno::LOOP),
        _ => Ok(found),
    }
}

/// What an open file is.
pub(super) fn file_type(file: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(statat(file, "", AtFlags::EMPTY_PATH)?.st_mode))
}

/// A way through the root, one component at a time: each is opened without following it, symlinks are read and their
/// text is put in front of what is left. `..` goes back to the descriptor that it came from, never to what the file system
/// calls the parent.
struct Walk<'a> {
    root: &'a Root,
    /// The directories on the way, without the root.
    stack: Vec<OwnedFd>,
    left: VecDeque<OsString>,
    links: Links,
    followed: usize,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Root, path: &Path, links: Links) -> Self {
        Self { root, stack: Vec::new(), left: parts(path).collect(), links, followed: 0 }
    }

    fn here(&self) -> &OwnedFd {
        self.stack.last().unwrap_or(&self.root.0)
    }

    fn go(mut self, make: Make) -> Result<OwnedFd> {
        while let Some(part) = self.left.pop_front() {
            if part == ".." {
                self.stack.pop();
                continue;
            }
            let name = Path::new(&part);
            let operation = || format!("open or make {}", quote(name));
            let last = self.left.is_empty();
            let next = match openat(self.here(), name, PATH | OFlags::NOFOLLOW, Mode::empty()) {
                Err(Errno::NOENT) if last && make == Make::File => make_file(self.here(), name).context(operation)?,
                Err(Errno::NOENT) => make_directory(self.here(), name).context(operation)?,
                result => result.context(operation)?,
            };
            match file_type(&next).context(operation)? {
                FileType::Symlink => self.follow(name)?,
                FileType::Directory => self.stack.push(next),
                _ if last => return Ok(next),
                _ => return Err(Errno::NOTDIR).context(operation),
            }
        }
        match self.stack.pop() {
            Some(end) => Ok(end),
            None => openat(&self.root.0, ".", PATH, Mode::empty()).context(|| "open the root"),
        }
    }

    fn follow(&mut self, name: &Path) -> Result<()> {
        let operation = || format!("follow the symlink {}", quote(name));
        if self.links == Links::Refuse {
            return Err(refuse_link(operation()));
        }
        self.followed += 1;
        if self.followed > LINKS_MAX {
            return Err(Errno::LOOP).context(operation);
        }
        let target = readlinkat(self.here(), name, Vec::new()).context(operation)?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.stack.clear();
        }
        for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
            self.left.push_front(part);
        }
        Ok(())
    }
}

/// Names and `..`; the rest says nothing.
fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Makes a directory, or takes what somebody else put there at the same time, but no symlink.
fn make_directory(parent: &OwnedFd, name: &Path) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => openat(parent, name, PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty()),
        Err(errno) => Err(errno),
    }
}
