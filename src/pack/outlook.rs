//! What a look at every name of a layer needs, laid out before the look begins.
//!
//! It is taken while a container stands still, so all that can be done beforehand is: names are written one after another,
//! and what they stand for is opened, as far as descriptors go, for asking a descriptor costs less than asking for a name.
//!
//! **A descriptor goes on to stand for what it was opened for, a name does not.** A name that came to stand for something
//! else shows in the times of its directory. So descriptors count only as long as the status of their directory is what it
//! was *before* they were opened; else its names are asked for, those of directories in it too.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::known::{Names, Node, What};
use super::name;
use super::seen::Seen;
use super::trail::open_beneath;
use crate::sys::open_files::Raised;

/// Names that one thread looks at before it asks for more.
const BATCH: usize = 512;
/// So many descriptors at least are left for everything else in this process.
const RESERVE_MIN: usize = 1024;
/// More in one process are not worth the kernel's memory, which is some 300 bytes for each.
const HELD_MAX: usize = 1 << 16;
/// Those of all outlooks of this process.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// What is known of a layer, in the order in which it is looked at.
#[derive(Debug)]
pub(super) struct Outlook {
    directories: Vec<Directory>,
    /// All that is no directory, directory by directory.
    files: Vec<File>,
    /// Their names.
    names: Vec<Box<[u8]>>,
    batches: Vec<Batch>,
    /// What allows so many to be open.
    room: Option<Room>,
}

/// Descriptors that may be held, and are given back at its end.
#[derive(Debug)]
struct Room {
    taken: usize,
    _limit: Raised,
}

#[derive(Debug)]
struct Directory {
    path: Vec<u8>,
    seen: Seen,
    held: Option<OwnedFd>,
    /// Names of the directories in it, with their numbers here.
    below: Vec<(Box<[u8]>, usize)>,
}

#[derive(Debug)]
struct File {
    seen: Seen,
    names: Names,
    held: Option<OwnedFd>,
}

/// What one thread looks at in one go: files of one directory.
#[derive(Debug)]
struct Batch {
    directory: usize,
    files: Range<usize>,
    /// The directory itself belongs to it, too.
    is_first: bool,
}

/// Which part of a path is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// What it leads to.
    Itself,
    /// A file that has to be looked at, whether it changed or not.
    Visit,
}

/// Paths that are suspected.
pub(super) type Paths = Vec<(Vec<u8>, Found)>;

impl Outlook {
    /// Lays out what is known.
    pub(super) fn of(known: &Node) -> Self {
        let (directories, files, names, batches) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut outlook = Self { directories, files, names, batches, room: None };
        let mut left = vec![(Vec::new(), known, None)];
        while let Some((path, node, parent)) = left.pop() {
            let Some(directory) = node.directory() else { continue };
            let (number, first) = (outlook.directories.len(), outlook.files.len());
            if let Some((parent, name)) = parent {
                let parent: &mut Directory = &mut outlook.directories[parent];
                parent.below.push((name, number));
            }
            for (name, child) in &directory.children {
                match child.kind {
                    What::Directory(_) => {
                        let mut path = path.clone();
                        name::push(&mut path, name);
                        left.push((path, child, Some((number, name.as_slice().into()))));
                    }
                    What::File | What::Whiteout => {
                        outlook.files.push(File { seen: child.seen, names: child.names, held: None });
                        outlook.names.push(name.as_slice().into());
                    }
                }
            }
            outlook.directories.push(Directory { path, seen: node.seen, held: None, below: Vec::new() });
            outlook.divide(number, first);
        }
        outlook
    }

    /// Adds the batches of a directory whose files begin at `first`.
    fn divide(&mut self, directory: usize, first: usize) {
        let end = self.files.len();
        let mut start = first;
        loop {
            let next = end.min(start + BATCH);
            self.batches.push(Batch { directory, files: start..next, is_first: start == first });
            start = next;
            if start == end {
                return;
            }
        }
    }

    /// How many parts there are to look at, each for itself.
    pub(super) fn parts(&self) -> usize {
        self.batches.len()
    }

    /// How many names there are, but for the root.
    pub(super) fn names(&self) -> usize {
        (self.files.len() + self.directories.len()).saturating_sub(1)
    }

    /// Opens what is looked at: directories first, and of all files as many as descriptors are there for. It is at worst as
    /// if nothing were open.
    pub(super) fn open(&mut self, root: BorrowedFd<'_>) {
        let room = Room::take(self.names() + 1);
        let mut left = room.taken;
        self.room = Some(room);
        for directory in &mut self.directories {
            if left == 0 {
                return;
            }
            directory.held = open_beneath(root, &directory.path).ok();
            left -= 1;
        }
        for batch in &self.batches {
            let Some(directory) = &self.directories[batch.directory].held else { continue };
            for number in batch.files.clone() {
                if left == 0 {
                    return;
                }
                match hold(directory.as_fd(), &self.names[number]) {
                    // It is asked for by name then, and so is what may have been replaced by now.
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => return,
                    Ok((held, stat)) if !self.files[number].seen.is_outdated_by(&stat) => {
                        self.files[number].held = Some(held);
                        left -= 1;
                    }
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }

    /// Looks at one of the parts. What cannot be looked at is suspected.
    pub(super) fn look_at(&self, root: BorrowedFd<'_>, part: usize, found: &mut Paths) {
        let Some(batch) = self.batches.get(part) else { return };
        let directory = &self.directories[batch.directory];
        if let Some(held) = &directory.held
            && fstat(held).is_ok_and(|stat| !directory.seen.is_outdated_by(&stat))
        {
            for number in batch.files.clone() {
                let file = &self.files[number];
                let stat = match &file.held {
                    Some(held) => fstat(held),
                    None => by_name(held.as_fd(), &self.names[number]),
                };
                self.judge(number, stat, directory, found);
            }
            return;
        }
        let Ok(opened) = open_beneath(root, &directory.path) else {
            found.push((directory.path.clone(), Found::Itself));
            return;
        };
        if batch.is_first {
            if fstat(&opened).map_or(true, |stat| directory.seen.is_outdated_by(&stat)) {
                found.push((directory.path.clone(), Found::Itself));
            }
            for (name, number) in &directory.below {
                let below = &self.directories[*number];
                if by_name(opened.as_fd(), name).map_or(true, |stat| below.seen.is_outdated_by(&stat)) {
                    found.push((below.path.clone(), Found::Itself));
                }
            }
        }
        for number in batch.files.clone() {
            self.judge(number, by_name(opened.as_fd(), &self.names[number]), directory, found);
        }
    }

    fn judge(&self, number: usize, stat: rustix::io::Result<Stat>, directory: &Directory, found: &mut Paths) {
        let file = &self.files[number];
        let what = if stat.map_or(true, |stat| file.seen.is_outdated_by(&stat)) {
            Found::Itself
        } else if file.names == Names::Several {
            // Only all names of a file together say which one is to be a link to which.
            Found::Visit
        } else {
            return;
        };
        let mut path = directory.path.clone();
        name::push(&mut path, &self.names[number]);
        found.push((path, what));
    }
}

impl Room {
    /// Room for `wanted`, or for as many as there is room for.
    fn take(wanted: usize) -> Self {
        let limit = Raised::new();
        let most = limit.limit();
        let most = most.saturating_sub(RESERVE_MIN.max(most / 8)).min(HELD_MAX);
        let mut taken = 0;
        let take = |held: usize| {
            taken = wanted.min(most.saturating_sub(held));
            Some(held + taken)
        };
        // Both ways to fail say the same: the closure always has an answer.
        let _ = HELD.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        Self { taken, _limit: limit }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        HELD.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

fn by_name(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Stat> {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Opens a name for looking at what it stands for, and for nothing else.
fn hold(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<(OwnedFd, Stat)> {
    let held = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&held)?;
    Ok((held, stat))
}
