//! A place in a tree of directories, held by descriptors: paths of any length, no link ever followed.
//!
//! Only the deepest [`KEPT`] directories are held open; going up beyond them opens `..`, and what that is must be
//! the directory that was left.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, statat, unlinkat};

use crate::error::{Context, Error, Kind, Result};

/// How many directories are held open at most.
const KEPT: usize = 64;

/// How directories are opened here.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directories from a root down to the current one.
#[derive(Debug)]
pub(super) struct Trail {
    /// Device and inode of every directory from the root down.
    identities: Vec<(u64, u64)>,
    /// The deepest of them, open; never empty.
    open: VecDeque<OwnedFd>,
    /// The current directory: the one most lately opened.
    current: OwnedFd,
}

impl Trail {
    /// Stands at `root`.
    pub(super) fn new(root: OwnedFd) -> Result<Self> {
        let stat = fstat(&root).context(|| "look at the root of the layer")?;
        Ok(Self { identities: vec![(stat.st_dev, stat.st_ino)], open: VecDeque::new(), current: root })
    }

    /// The current directory.
    pub(super) fn current(&self) -> BorrowedFd<'_> {
        self.current.as_fd()
    }

    /// How many directories the current one is below the root.
    pub(super) fn depth(&self) -> usize {
        self.identities.len() - 1
    }

    /// Steps into a child, which the caller has opened in the current directory.
    pub(super) fn descend(&mut self, child: OwnedFd, stat: &Stat) {
        self.identities.push((stat.st_dev, stat.st_ino));
        self.open.push_back(std::mem::replace(&mut self.current, child));
        if self.open.len() > KEPT {
            self.open.pop_front();
        }
    }

    /// Steps back to the parent. At the root it stays where it is.
    pub(super) fn ascend(&mut self) -> Result<()> {
        if self.depth() == 0 {
            return Ok(());
        }
        self.identities.pop();
        self.current = match self.open.pop_back() {
            Some(parent) => parent,
            None => self.reopen_parent()?,
        };
        Ok(())
    }

    fn reopen_parent(&self) -> Result<OwnedFd> {
        let parent = openat(&self.current, "..", DIRECTORY, Mode::empty()).context(|| "open the parent directory")?;
        let stat = fstat(&parent).context(|| "look at the parent directory")?;
        if self.identities.last() == Some(&(stat.st_dev, stat.st_ino)) {
            return Ok(parent);
        }
        let cause = "it was moved while it was read: nothing else may change a layer";
        Err(Error::new(Kind::Damaged, "return to the parent directory", cause))
    }
}

/// Opens a directory below `root` by its relative path, of any length, without a link in it.
pub(super) fn open_beneath(root: BorrowedFd<'_>, mut path: &[u8]) -> rustix::io::Result<OwnedFd> {
    // The kernel takes paths of 4095 bytes, and a component has at most 255.
    const STEP: usize = 3800;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut directory = openat2(root, ".", DIRECTORY, Mode::empty(), resolve)?;
    while !path.is_empty() {
        let slash = path.iter().skip(STEP).position(|byte| *byte == b'/').map(|at| at + STEP);
        let (now, rest) = slash.map_or((path, &b""[..]), |at| (&path[..at], &path[at + 1..]));
        directory = openat2(&directory, now, DIRECTORY, Mode::empty(), resolve)?;
        path = rest;
    }
    Ok(directory)
}

/// Removes a directory with everything in it, however deep, following no link.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let top = openat(parent, name, DIRECTORY, Mode::empty()).context(|| "open the directory to remove")?;
    let mut trail = Trail::new(top)?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    loop {
        if let Some(child) = remove_files(trail.current())? {
            let fd = openat(trail.current(), child.as_slice(), DIRECTORY, Mode::empty())
                .context(|| "open a directory to remove")?;
            let stat = fstat(&fd).context(|| "look at a directory to remove")?;
            trail.descend(fd, &stat);
            names.push(child);
            continue;
        }
        let Some(done) = names.pop() else { break };
        trail.ascend()?;
        unlinkat(trail.current(), done.as_slice(), AtFlags::REMOVEDIR).context(|| "remove a directory")?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).context(|| "remove a directory")
}

/// Removes what is no directory; the name of the first child directory, if there is one.
fn remove_files(directory: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    for name in names(directory)? {
        let stat = statat(directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).context(|| "look at a file")?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(Some(name));
        }
        unlinkat(directory, name.as_slice(), AtFlags::empty()).context(|| "remove a file")?;
    }
    Ok(None)
}

/// The names in a directory, sorted by their bytes.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let read = || -> rustix::io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    };
    read().context(|| "read the directory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mkdirat};

    fn open(path: &std::path::Path) -> OwnedFd {
        openat(CWD, path, DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_trail_deeper_than_what_it_holds_open_finds_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut trail = Trail::new(open(directory.path())).unwrap();
        mkdirat(trail.current(), "top", Mode::RWXU).unwrap();
        let names = [b"top".to_vec(), vec![b'n'; 255]].into_iter().cycle();
        for name in names.take(3 * KEPT) {
            let _ = mkdirat(trail.current(), name.as_slice(), Mode::RWXU);
            let child = openat(trail.current(), name.as_slice(), DIRECTORY, Mode::empty()).unwrap();
            let stat = fstat(&child).unwrap();
            trail.descend(child, &stat);
        }
        while trail.depth() > 0 {
            trail.ascend().unwrap();
        }
        let (here, root) = (fstat(trail.current()).unwrap(), fstat(open(directory.path())).unwrap());
        assert_eq!(here.st_ino, root.st_ino);
        remove_tree(trail.current(), b"top").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_was_moved_away_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(path("a/b")).unwrap();
        std::fs::create_dir(path("c")).unwrap();
        let mut trail = Trail::new(open(&path("a"))).unwrap();
        let child = open(&path("a/b"));
        let stat = fstat(&child).unwrap();
        trail.descend(child, &stat);
        trail.open.clear();
        std::fs::rename(path("a/b"), path("c/b")).unwrap();
        assert_eq!(trail.ascend().unwrap_err().kind(), Kind::Damaged);
    }
}
